"""Testing a task: are the answers right, and where do they go wrong?

Two protocols, on the same questions, drawn anew for each length from the test seed:

- `answers`: one pass over question and answer, each token predicted from the true ones before it (of an encoder's
  form, all at once). Whether an answer is right as a whole, and where its first error is, comes out as in greedy
  decoding, since up to the first error both have read the same tokens.
- `generation`: greedy decoding through the cache, as long as the true answer. Only `token_accuracy` can differ: here
  the model goes on from its own errors.

Metrics: `exact_match` (share of questions with no wrong token), `token_accuracy` (share of right tokens, each
question counting by its tokens; the mark after an answer is none of them, so that guessing gives the task's `chance`),
`first_error` (mean place of the first wrong token, from 1, in wrong answers; absent if there is none), `loss` (nats a
token, `answers` alone); `k_max` for tasks with depths, see `pezoo.evaluation.retrieval`.
Such tasks are asked at each depth as often, and have a result for each depth and one for all together.

Schemes that depend on the total length are told that of question and answer together.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from pezoo.contract import Undefined
from pezoo.data.material import TESTING, Questions
from pezoo.errors import UserError, suggest
from pezoo.evaluation.passes import read_out
from pezoo.evaluation.protocols import Protocol
from pezoo.evaluation.result import LengthResult
from pezoo.evaluation.retrieval import k_max
from pezoo.model.decode import stream
from pezoo.model.devices import check_testing, testing_in
from pezoo.model.transformer import Transformer
from pezoo.outcome import halving, outcome, peak_memory, reset_peak_memory
from pezoo.task import IGNORE, Example

ANSWER_PROTOCOLS = {
    "answers": ("exact_match", "token_accuracy", "first_error", "loss", "k_max"),
    "generation": ("exact_match", "token_accuracy", "first_error", "k_max"),
}
"""Metrics of each protocol."""
DRAWN = 32
"""Questions of one shape that are drawn together: the result does not depend on the size of a forward pass."""


def parse_answer_protocol(protocol: str, questions: Questions) -> Protocol:
    """Read a protocol that a task is to be tested by.

    Raises:
        UserError: if there is no such protocol, or the task has no use for it.
    """
    if protocol not in ANSWER_PROTOCOLS:
        near, known = suggest(protocol, ANSWER_PROTOCOLS), ", ".join(ANSWER_PROTOCOLS)
        raise UserError(f"no protocol {protocol!r} for tasks.{near} Known: {known}")
    if protocol == "generation" and (questions.form == "encoder" or questions.task.layout == "inline"):
        raise UserError(f"{questions.source}, has no answer to generate token by token; use the protocol answers")
    return Protocol(protocol, None, ANSWER_PROTOCOLS[protocol])


class _NotFiniteError(ArithmeticError):
    """The model has diverged."""


@dataclass
class _Tally:
    """What the answers so far were like."""

    end: int
    """The mark after an answer; `IGNORE` if there is none."""
    wrong_at: list[Tensor] = field(default_factory=list)
    """(B,) place of the first error, from 1; 0 where there is none."""
    right: int = 0
    answer: int = 0
    """Tokens of answers, of which so many are right."""
    asked: int = 0
    """The same with the marks."""
    loss: float = 0.0
    n_losses: int = 0

    def add(self, said: Tensor, targets: Tensor, losses: Tensor | None = None) -> None:
        """Count what was said (B, L) where `targets` (B, L) ask; `losses` (B, L) in nats."""
        asked = targets != IGNORE
        wrong = asked & (said != targets)
        place = (asked.cumsum(1) * wrong).masked_fill(~wrong, asked.shape[1] + 1).amin(1)
        self.wrong_at.append(place.where(wrong.any(1), 0))
        answer = asked & (targets != self.end)
        self.right += int((answer & ~wrong).sum())
        self.answer += int(answer.sum())
        self.asked += int(asked.sum())
        if losses is not None:
            self.loss += losses[asked].sum(dtype=torch.float64).item()
            self.n_losses += int(asked.sum())

    def values(self) -> dict[str, float]:
        """The metrics."""
        wrong_at = torch.cat(self.wrong_at)
        values = {"exact_match": (wrong_at == 0).double().mean().item()}
        if self.answer:
            values["token_accuracy"] = self.right / self.answer
        if wrong_at.any():
            values["first_error"] = wrong_at[wrong_at > 0].double().mean().item()
        if self.n_losses:
            values["loss"] = self.loss / self.n_losses
        return values

    def counts(self) -> dict[str, int]:
        """Tokens that were asked, and questions."""
        return {"n_tokens": self.asked, "n_documents": sum(map(len, self.wrong_at))}

    def merge(self, other: "_Tally") -> None:
        """Count what another one has."""
        self.wrong_at += other.wrong_at
        self.right, self.answer = self.right + other.right, self.answer + other.answer
        self.asked += other.asked
        self.loss, self.n_losses = self.loss + other.loss, self.n_losses + other.n_losses


def evaluate_answers(
    model: Transformer,
    questions: Questions,
    lengths: Sequence[int],
    *,
    protocol: str = "answers",
    count: int,
    seed: int = 0,
    batch_tokens: int = 16384,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> list[LengthResult]:
    """Test `model` on a task at each of `lengths`, in evaluation mode, without gradients.

    A length at which the scheme is undefined or the task has no questions, the output is not finite, or memory does not
    suffice for one question is a result with that status; the others have theirs.

    Args:
        model: the trained model; its mode and device are put back afterwards.
        questions: the task in its form.
        lengths: task lengths.
        protocol: `answers` or `generation`; see this module.
        count: questions of each length, and of each depth where the task has some.
        seed: of the questions.
        batch_tokens: most tokens in one forward pass (but at least one question).
        device: where to compute.
        precision: how exactly, one of `pezoo.model.devices.TestPrecision`.
        progress: called with (done, in all) after each forward pass; each question counts by its length.

    Returns:
        For each length, in order, one result, followed by one for each depth where it has a value.

    Raises:
        UserError: an unknown protocol, one that the form does not have, or a precision that the device does not have.
        Exception: whatever else the model or the task raises.
    """
    parse_answer_protocol(protocol, questions)
    device = torch.device(device)
    check_testing(device, precision)
    training, home = model.training, next(model.parameters()).device
    model = model.eval().to(device)
    depths: Sequence[float | None] = questions.task.depths or (None,)
    end = questions.task.eos if questions.task.layout == "marked" and questions.causal else IGNORE
    done, total = 0, sum(lengths) * count * len(depths)

    def report(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress(done, total)

    results = []
    try:
        for length in lengths:
            before, after = done, done + length * count * len(depths)

            def attempt(tokens: int, length: int = length, before: int = before) -> dict[float | None, _Tally]:
                nonlocal done
                done, tallies = before, {depth: _Tally(end) for depth in depths}
                for i, depth in enumerate(depths):
                    for first, example in _drawn(questions, length, count, seed, i, depth):
                        for rows in _rows(example, tokens):
                            with testing_in(device, precision):
                                _ask(model, example, rows, first + i * count, protocol, device, tallies[depth])
                            report(length * (rows.stop - rows.start))
                return tallies

            tallies: dict[float | None, _Tally] = {}
            reset_peak_memory(device)
            start, status, reason = time.perf_counter(), "ok", ""
            try:
                context = questions.n_tokens(length)
                tallies = halving(attempt, min(batch_tokens, min(count, DRAWN) * context), context, device)
            except _NotFiniteError as error:
                status, reason = "diverged", str(error)
            except Exception as error:
                status, reason = outcome(error)
                if status == "failed":
                    raise
            if done < after:
                report(after - done)
            cost = {"seconds": time.perf_counter() - start, "peak_memory_bytes": peak_memory(device)}
            results += _results(questions, length, protocol, tallies, status, reason, cost)
    finally:
        model.to(home).train(training)
    return results


def _drawn(
    questions: Questions, length: int, count: int, seed: int, number: int, depth: float | None
) -> Iterator[tuple[int, Example]]:
    """`count` questions, in groups of one shape, each with the number of its first row."""
    place = {} if depth is None else {"depth": depth}
    for group, first in enumerate(range(0, count, DRAWN)):
        size = min(DRAWN, count - first)
        stream = (group * 1024 + number) * 2**20 + length  # one for each length, depth and group
        try:
            pairs = questions.pairs(TESTING, stream, size, length, seed, **place)
        except UserError as error:
            raise Undefined(str(error)) from error
        yield first, questions.example(pairs)


def _rows(example: Example, batch_tokens: int) -> Iterator[slice]:
    n, length = example.tokens.shape
    size = max(1, batch_tokens // length)
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


@torch.inference_mode()
def _ask(
    model: Transformer,
    example: Example,
    rows: slice,
    first: int,
    protocol: str,
    device: torch.device,
    tally: _Tally,
) -> None:
    tokens, targets = example.tokens[rows].to(device), example.targets[rows].to(device)
    n, length = tokens.shape
    keys = tuple(range(first + rows.start, first + rows.stop))  # of random draws
    if protocol == "answers":
        hidden = model.hidden(tokens, model.positions(n, length, phase="test", rows=keys))
        _check_finite(hidden)
        asked = targets != IGNORE
        right, hidden = targets[asked], hidden[asked]
        likeliest, of_right = torch.empty_like(right), torch.empty(len(right), device=device)
        for some, logits in read_out(model, hidden):
            likeliest[some] = logits.argmax(-1)
            of_right[some] = F.cross_entropy(logits, right[some], reduction="none")
        _check_finite(of_right)
        said, losses = targets.masked_scatter(asked, likeliest), of_right.new_zeros(targets.shape)
        losses[asked] = of_right
        tally.add(said.cpu(), targets.cpu(), losses.cpu())
    else:
        asked = int((targets != IGNORE).any(0).nonzero()[0])
        said = []
        for ids, log_probability in stream(model, tokens[:, : asked + 1], length - asked, length=length, rows=keys):
            _check_finite(log_probability)
            said.append(ids)
        tally.add(torch.stack(said, 1).cpu(), targets[:, asked:].cpu())


def _check_finite(output: Tensor) -> None:
    if not output.isfinite().all():
        raise _NotFiniteError("the output is not finite")


def _results(
    questions: Questions,
    length: int,
    protocol: str,
    tallies: dict[float | None, _Tally],
    status: str,
    reason: str,
    cost: dict[str, float | int | None],
) -> list[LengthResult]:
    """One result for all depths together, then one for each."""
    if status != "ok":
        return [LengthResult(length, protocol=protocol, status=status, reason=reason, **cost)]
    whole = _Tally(IGNORE)  # what counts is counted already
    for tally in tallies.values():
        whole.merge(tally)
    values = whole.values()
    parts = {} if None in tallies else tallies
    if parts:
        success: dict[int, list[float]] = {}  # in a short question several depths are one place
        for depth, tally in parts.items():
            success.setdefault(questions.distance(length, depth), []).append(tally.values()["exact_match"])
        values["k_max"] = float(k_max({distance: fmean(shares) for distance, shares in success.items()}))
    results = [LengthResult(length, protocol=protocol, values=values, **whole.counts(), **cost)]
    for depth, tally in parts.items():
        facts = {"depth": depth, "values": tally.values()} | tally.counts() | cost
        results.append(LengthResult(length, protocol=protocol, **facts))
    return results
