"""The trained model of a study, asked by lm-evaluation-harness.

    lm_eval.simple_evaluate(model=Harness.of("runs/quickstart", "rope"), tasks=["lambada_openai"])

The model is tested as ever: it reads a whole text at the text's own length, or the last `max_length` tokens of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pezoo.contract import Undefined
from pezoo.data.tokenizer import Tokenizer, load_tokenizer
from pezoo.errors import UserError
from pezoo.model.decode import stream
from pezoo.model.transformer import Transformer
from pezoo.study.models import find_model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("this needs lm-evaluation-harness: type `pip install 'pezoo[lm_eval]'`") from None

NEW_TOKENS = 64
"""What is written where a task does not say how much."""


class Harness(TemplateLM):
    """A model of pezoo, as lm-evaluation-harness asks it.

    Args:
        model: a decoder, in evaluation mode.
        tokenizer: that it was trained with. The first token of a text without context is read after the tokenizer's
            mark for the beginning of a text; bytes have none, and a new line stands for it.
        max_length: tokens that it reads at most, the last of a longer text; default: all of them.

    Raises:
        UserError: if the model is no decoder of this tokenizer's texts.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        super().__init__()
        if not model.config.causal:
            raise UserError("an encoder cannot be asked for the next token: it was trained to see what comes after")
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length must be at least 2, got {max_length}")
        self.model, self.texts, self.max_length = model.eval(), tokenizer, max_length

    @classmethod
    def of(
        cls,
        folder: str | Path,
        scheme: str | None = None,
        *,
        seed: int | None = None,
        part: str | None = None,
        max_length: int | None = None,
        device: str = "cpu",
    ) -> "Harness":
        """The language model of a study's row; arguments as in `pezoo.study.models.find_model`."""
        found = find_model(folder, scheme, seed, part)
        name = found.inputs["data"]["tokenizer"]
        return cls(found.model.to(device), load_tokenizer(None if name == "bytes" else name), max_length)

    @property
    def eot_token_id(self) -> int:
        """What texts begin with."""
        return self.tok_encode("\n")[0] if self.texts.bos is None else self.texts.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; none is special, whatever it says."""
        return [int(i) for i in self.texts.encode([string])[0]]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether it is what greedy decoding writes."""
        found = []
        for asked, context, continuation in requests:
            answer = self._score(context, continuation)
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
            found.append(answer)
        return found

    @torch.inference_mode()
    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        n = len(continuation)
        if not n:
            return 0.0, True
        if self.max_length is not None and n > self.max_length - 1:
            raise UserError(f"a continuation has {n} tokens, and max_length={self.max_length} leaves room for fewer")
        # The harness moves white space from the context's end to the continuation, and may leave nothing.
        ids = self._cut([*(context or [self.prefix_token_id]), *continuation])
        try:
            hidden = self.model.hidden(self._tensor(ids[:-1]))[0, -n:]
        except Undefined as reason:
            raise UserError(
                f"{self.model.scheme.spec} has no value for a text of {len(ids)} tokens: {reason}; pass max_length="
            ) from None
        logits = self.model.head(hidden).float()
        targets = self._tensor(continuation)[0]
        known = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
        return float(known), bool((logits.argmax(-1) == targets).all())

    def _cut(self, ids: list[int]) -> list[int]:
        """The last tokens, if there are more than may be read."""
        return ids if self.max_length is None else ids[-self.max_length :]

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=next(self.model.parameters()).device)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in nats; of a longer one than may be read, in disjoint windows."""
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            size = self.max_length - 1 if self.max_length is not None else max(1, len(ids))
            windows = map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, size, 1))
            found.append(sum(self._score(context, continuation)[0] for context, continuation in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the texts that end it."""
        found = []
        for request in requests:
            context, how = request.args
            found.append(self._write(context, dict(how)))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _write(self, context: str, how: dict[str, Any]) -> str:
        ends = how.get("until") or []
        ends = [ends] if isinstance(ends, str) else [end for end in ends if end]
        n_new = int(how.get("max_gen_toks", NEW_TOKENS))
        ids = self.tok_encode(context) or [self.prefix_token_id]
        if self.max_length is not None:
            ids = ids[-max(1, self.max_length - n_new) :]
        sampled = how.get("do_sample") or False
        temperature = float(how.get("temperature", 1.0)) if sampled else 0.0
        decode, text = self.texts.decoder(), ""
        try:
            for token, _ in stream(self.model, self._tensor(ids), n_new, temperature=temperature):
                text += decode([int(token)])
                if any(end in text for end in ends):
                    return text[: min(text.find(end) for end in ends if end in text)]
        except Undefined:
            pass  # the text ends where the scheme has no value
        return text + decode([], final=True)
