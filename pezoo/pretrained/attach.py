"""Any scheme inside a decoder of the library transformers: `pezoo.attach(model, "rope+yarn:factor=4")`.

Legend: B batch, L new tokens, H heads, Lq queries, Lk keys, d head_dim, D hidden size.
"""

import inspect
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pezoo.attention import attend
from pezoo.compose import Prepared, Scheme
from pezoo.composition import Composition
from pezoo.contract import Encoding, Positions, overrides
from pezoo.errors import UserError
from pezoo.positions import on_tensors
from pezoo.pretrained import beside, memory, seam, where
from pezoo.pretrained.fit import Fit, fit
from pezoo.pretrained.seam import bring_back, decoder_of, put_aside, rotary_modules
from pezoo.scheme import Spec

CHILD = "pezoo"
"""The name of the sub-module of a model that holds what is attached."""
FORWARD = "pezoo_forward"
"""The keyword by which a forward of the model hands on what it knows."""


class Forward:
    """What one forward of the model knows: where its tokens stand, and the scheme made ready for them."""

    def __init__(self, prepared: Prepared, positions: Positions, cache: Any, spans: list[tuple[int, int]]) -> None:
        self.prepared, self.positions, self.cache = prepared, positions, cache
        self.spans = spans  # by layer, which of the keys its cache gives back: [start, stop)
        self.masks: dict[Any, tuple[Tensor | None, Tensor]] = {}
        self.x: dict[int, Tensor] = {}  # by layer, what its queries and keys are made of
        self.reads: dict[int, Any] = {}  # and what the scheme has read there, for all keys

    def whole(self, layer: int, keys: Tensor) -> Tensor:
        """Keys or values with zeros for those that the layer's cache has let go of, or not yet."""
        (start, stop), n_keys = self.spans[layer], self.positions.key.shape[1]
        return keys if stop - start == n_keys else F.pad(keys, (0, 0, start, n_keys - stop))

    def seen(self, mask: Tensor | None, layer: int) -> Tensor | None:
        """What the model lets queries see of all keys, (R, Lq, Lk), bool; None is all. Each token sees itself."""
        (start, stop), n_keys = self.spans[layer], self.positions.key.shape[1]
        if mask is None and stop - start == n_keys:
            return None
        key = id(mask), start, stop
        if key not in self.masks:
            n_queries, offset = self.positions.query.shape[1], self.positions.offset
            place = torch.arange(n_keys, device=self.positions.key.device)
            if mask is None:
                seen = (place >= start)[None, None].expand(1, n_queries, -1)
            elif mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1] == 1:
                seen = F.pad(mask[:, 0], (start, n_keys - stop))
            else:
                kind = f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
                raise UserError(f"a mask of pairs says which keys a query sees, bool (B, 1, Lq, Lk), not {kind}")
            own = place[offset : offset + n_queries, None] == place
            self.masks[key] = mask, seen | own  # the mask is kept, so that its id stays its own
        return self.masks[key][1]


class Attached(nn.Module):
    """What `attach` adds to a model, as its sub-module `pezoo`.

    Attributes:
        scheme: the module that attention works by; its parameters are the model's.
        phase: "tune" or "test"; None: "tune" while the model trains, else "test".
        length: total length that length-dependent schemes are told; None: the tokens so far, by position_ids where
            they are given.
        rows: numbers of the next forward's sequences, the keys of random positions; None: 0 ... B - 1, while the
            model trains counted on from forward to forward.
    """

    def __init__(self, model: PreTrainedModel, fit: Fit) -> None:
        super().__init__()
        self.scheme, self.own, self.table = fit.scheme, fit.own, fit.table
        self.phase: str | None = None
        self.length: int | None = None
        self.rows: Sequence[int] | None = None
        self.told: Positions | None = None
        self.counted = 0
        self.forward_now: Forward | None = None
        self.carries, self.rotary = fit.carries, rotary_modules(decoder_of(model))
        self.register_buffer("signs", fit.signs, persistent=False)
        self.implementation = model.config._attn_implementation
        self.keywords = tuple(inspect.signature(decoder_of(model).forward).parameters)
        self.config = model.config
        encodings = [m for m in self.scheme.members if isinstance(m, Encoding)]
        self.reads = any(overrides(m, "read") for m in encodings)
        self.embeds = any(overrides(m, "embed") for m in encodings)
        self.own_scale = any(overrides(m, "scale") for m in encodings)
        self.normaliser = next((m.name for m in encodings if overrides(m, "normalise")), None)
        self.reads_tokens = any(m.traits.tokens for m in self.scheme.members)
        self.hooks: list[Any] = []

    def extra_repr(self) -> str:
        """The scheme as text."""
        return str(self.scheme.spec)

    # ---- a forward of the model, in order -------------------------------------------------------

    @torch.compiler.disable
    def before(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        """Find out where the tokens stand, before the model reads them."""
        kwargs = dict(zip(self.keywords, args, strict=False)) | kwargs
        tokens, vectors = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        given = tokens if tokens is not None else vectors
        if given is None:
            raise UserError("the model got neither input_ids nor inputs_embeds")
        if kwargs.get("output_attentions") or getattr(self.config, "output_attentions", False):
            raise UserError(
                "attached models give no attention weights: leave output_attentions out, and look at them inside "
                "pezoo.attention.observing(...)"
            )
        batch, new = given.shape[:2]
        use_cache = kwargs.get("use_cache")
        use_cache = getattr(self.config, "use_cache", False) if use_cache is None else use_cache
        cache = kwargs.get("past_key_values")
        if cache is None and use_cache and (self.reads or self.reads_tokens):
            cache = kwargs["past_key_values"] = DynamicCache(config=self.config)
        past, spans = 0, [(0, new)] * self.scheme.shape.n_layers
        if cache is not None:
            past = int(cache.get_seq_length())
            spans = memory.spans(cache, new, self.scheme.shape.n_layers, getattr(self.config, "layer_types", None))
        places = max(past + new, *(stop for _, stop in spans))
        if self.told is not None:
            positions = self.told
        else:
            if self.reads_tokens and tokens is not None and cache is not None:
                tokens = memory.extend(cache, "tokens", tokens, self.scheme.shape.n_layers, places)
            positions = where.positions(
                batch,
                new,
                past=past,
                places=places,
                valid=_valid(kwargs.get("attention_mask")),
                position_ids=kwargs.get("position_ids"),
                caching=cache is not None or bool(use_cache),
                device=given.device,
                tokens=tokens if self.reads_tokens else None,
                declared=self.length or _reached(kwargs.get("position_ids"), past + new),
                phase=self.phase or ("tune" if self.training else "test"),
                rows=self._rows(batch),
                seed=self.scheme.seed,
            )
        self.forward_now = forward = Forward(self.scheme.prepare(positions), positions, cache, spans)
        if self.embeds and vectors is not None:
            kwargs["inputs_embeds"] = forward.prepared.embed(vectors)
        if self.carries:
            kwargs[FORWARD] = forward
        elif base.training and base.is_activation_checkpointing:
            raise UserError("this family of models cannot be trained with gradient checkpointing while attached")
        return (), kwargs

    def _rows(self, batch: int) -> Sequence[int]:
        if self.rows is not None:
            return self.rows
        if not self.training:
            return range(batch)
        self.counted += batch
        return range(self.counted - batch, self.counted)

    def embed(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Token embeddings with positions; without, where somebody else looks tokens up."""
        return output if self.forward_now is None else self.forward_now.prepared.embed(output)

    def after(self, *call: Any) -> None:
        """Forget the forward, which holds on to tensors."""
        self.forward_now = None

    def hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the input of a layer's attention until its queries and keys are there."""
        forward, layer = self._forward(kwargs), int(module.layer_idx)
        forward.x[layer] = args[0] if args else kwargs["hidden_states"]
        forward.reads.pop(layer, None)

    def _forward(self, kwargs: Mapping[str, Any]) -> Forward:
        forward = kwargs.get(FORWARD) or self.forward_now
        assert isinstance(forward, Forward)
        return forward

    @torch.compiler.disable
    def attention(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer by the scheme: q (B, H, Lq, d), k and v (B, Hkv, Lk, d) -> (B, Lq, H, d)."""
        if dropout:
            raise UserError(
                f"the model drops {dropout:g} of its attention weights in training, which a scheme cannot: set "
                "attention_dropout=0 in its config when it is loaded"
            )
        if s_aux is not None and self.normaliser is not None:
            raise UserError(
                f"the model has sinks, which count in a softmax, and {self.normaliser} has another normaliser"
            )
        forward, layer, shape = self._forward(kwargs), int(module.layer_idx), self.scheme.shape
        if self.signs is not None:
            q, k = q * self.signs.to(q.dtype), k * self.signs.to(k.dtype)
        k, v, seen = forward.whole(layer, k), forward.whole(layer, v), forward.seen(mask, layer)
        groups = forward.prepared.groups(layer, q, k, v, read=self._read(forward, layer))
        joined: list[Any] = []
        if seen is not None:
            joined.append(beside.Mask(shape, seen, forward.positions.offset))
        if softcap:
            joined.append(beside.SoftCap(shape, softcap))
        if scaling and not self.own_scale and scaling != shape.head_dim**-0.5:
            joined.append(beside.Scale(shape, scaling * shape.head_dim**0.5))
        if len(groups) > 1 and k.shape[1] != q.shape[1]:
            repeat = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        outputs = []
        for group in groups:
            heads = group.heads if len(groups) > 1 else slice(None)
            sinks = [] if s_aux is None else [beside.Sink(shape, s_aux[group.heads])]
            c = group.composition
            composition = Composition(c.positions, c.regions, (*c.extensions, *joined, *sinks))
            outputs.append(attend(q[:, heads], k[:, heads], v[:, heads], composition))
        return torch.cat(outputs, dim=1).transpose(1, 2).contiguous(), None

    def _read(self, forward: Forward, layer: int) -> Any:
        """What the scheme reads of a layer's input, for all keys; None if it reads nothing."""
        if self.reads and layer not in forward.reads:  # some models attend twice in a layer
            cache, places, number = forward.cache, forward.positions.key.shape[1], count()

            def of_keys(new: Tensor) -> Tensor:
                if cache is None:
                    return new
                return memory.extend(cache, (layer, next(number)), new, self.scheme.shape.n_layers, places)

            forward.reads[layer] = on_tensors(of_keys, forward.prepared.read(layer, forward.x[layer]))
        return forward.reads.get(layer)


def _valid(mask: Any) -> Tensor | None:
    """The mask of padding, (B, K), that the model was given, or that its masks of pairs were made of."""
    if isinstance(mask, Mapping):
        found = [valid for one in mask.values() if (valid := _valid(one)) is not None]
        return found[0] if found else None
    if mask is None or not isinstance(mask, Tensor):
        return None
    valid: Tensor | None = mask if mask.ndim == 2 else getattr(mask, seam.VALID, None)
    return valid


def _reached(position_ids: Any, total: int) -> int:
    """Tokens so far: as position_ids count them where they are given, as transformers itself does."""
    return total if position_ids is None else int(position_ids.max()) + 1


def attach(
    model: Any,
    scheme: str | Mapping[str, Any] | Spec | None = None,
    *,
    train_length: int | None = None,
    seed: int = 0,
) -> Attached:
    """Have a decoder of the library transformers attend by a scheme (`pezoo.attach`).

    The model is changed in place, and used as before: forward, `generate`, training. Pairing, base and rotated share
    of a head are the model's: `rope` in a scheme stands for the model's own rotation without its extensions, and a
    layer that does not rotate stays so. What else the model does in attention goes on: windows, sinks, soft caps,
    the scale, norms of queries and keys.

    Positions come from the attention mask, packed rows from position_ids where there is neither mask nor cache. The
    scheme's parameters are the model's, under `pezoo.`: optimisers find them, and a state_dict holds them.

    Args:
        model: a model that transformers made, such as `AutoModelForCausalLM.from_pretrained(...)`. What was attached
            before is detached.
        scheme: such as "rope+yarn:factor=4", or a mapping; None: the model's own, which gives the same logits as
            before. A `Spec` is taken as it is: its `rope` has the settings that it names, and no others.
        train_length: tokens of a text that it was trained on (L); default: as its config states it, before any
            extension.
        seed: of the scheme's own parameters and its random positions.

    Returns:
        The sub-module that was added, with the scheme and what may be set: phase, length, rows.

    Raises:
        UserError: if the model is of a kind that cannot take a scheme, with the reason, or the scheme does not fit.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"attach takes a model of the library transformers, not {type(model).__name__}")
    detach(model)
    attached = Attached(model, found := fit(model, scheme, train_length, seed))
    decoder, words = decoder_of(model), model.get_input_embeddings()
    if attached.embeds and words.weight.shape[1] != attached.scheme.shape.d_model:
        raise UserError(f"{type(model).__name__} projects its token embeddings, which {attached.scheme.spec} changes")
    put_aside(decoder, attached.rotary)
    for module in found.modules:
        module.__dict__[seam.ATTACHED] = attached
        if attached.reads:
            attached.hooks.append(module.register_forward_pre_hook(attached.hear, with_kwargs=True))
    attached.hooks.append(decoder.register_forward_pre_hook(attached.before, with_kwargs=True))
    attached.hooks.append(decoder.register_forward_hook(attached.after, always_call=True))
    if attached.embeds:
        attached.hooks.append(words.register_forward_hook(attached.embed))
    if found.table is not None:
        seam.clear_table(table := decoder.get_submodule(found.table))
        _take_over(attached.scheme, table.weight)
    attached.to(words.weight.device).train(model.training)
    model.add_module(CHILD, attached)
    model.set_attn_implementation(seam.NAME)
    return attached


@torch.no_grad()
def _take_over(scheme: Scheme, table: Tensor) -> None:
    """Begin the scheme's learned table, if it has one, with the model's own; some have rows in front for padding."""
    for learned in (m.table for m in scheme.members if m.name == "learned"):
        if len(learned) <= len(table):
            learned.copy_(table[len(table) - len(learned) :])


def detach(model: Any) -> None:
    """Take away what `attach` added to a model (`pezoo.detach`), which is then as before; without, nothing changes."""
    attached = getattr(model, CHILD, None)
    if not isinstance(attached, Attached):
        return
    for hook in attached.hooks:
        hook.remove()
    for module in model.modules():
        module.__dict__.pop(seam.ATTACHED, None)
    if attached.table is not None:
        seam.restore_table(decoder_of(model).get_submodule(attached.table))
    bring_back(decoder_of(model), attached.rotary)
    delattr(model, CHILD)
    model.set_attn_implementation(attached.implementation)
