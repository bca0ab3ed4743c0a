"""Attention under a scheme, for people's own models."""

from collections.abc import Sequence

from torch import Tensor

from pezoo.compose.scheme import Scheme
from pezoo.contract import Encoding, Member, Positions, overrides
from pezoo.errors import UserError
from pezoo.registry import entry


def attend_with(
    scheme: Scheme,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layer: int = 0,
    phase: str | None = None,
    rows: Sequence[int] | None = None,
    positions: Positions | None = None,
    x: Tensor | None = None,
    tokens: Tensor | None = None,
    embedded: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Attention under a scheme, for people's own models (`pezoo.attend`).

    Each call makes the whole scheme ready anew. In a model of several layers, do so once: see `Scheme`.

    Args:
        scheme: from `pezoo.create`.
        q: queries, (B, H, Lq, d), not rotated; the last Lq of Lk tokens.
        k: keys, (B, Hkv, Lk, d), not rotated.
        v: values, (B, Hkv, Lk, d).
        layer: which layer's part of the scheme to use.
        phase: "train", "tune" or "test"; may be left out where the scheme acts alike in all of them.
        rows: numbers of these sequences, for schemes that draw random positions. In training count on from step to
            step, range(step * B, (step + 1) * B), or each step draws the same.
        positions: of these queries and keys, instead of the above; default: one document a row, without padding.
        x: the input of the layer, which q, k and v are made of, (B, Lk, D), for schemes that read it.
        tokens: ids of the keys' tokens, (B, Lk), for schemes that make coordinates of them.
        embedded: say True for a scheme that changes the token embeddings, once `scheme.prepare(...).embed(x)` has.
        backend: "auto", "eager", "sdpa" or "chunked"; on a CUDA GPU "flex" too.

    Returns:
        (B, H, Lq, d).

    Raises:
        UserError: if sizes are not those of the scheme, or phase, rows, x or tokens are missing.
        Undefined: if the scheme has no value for a position.
    """
    changing = [m.name for m in scheme.spec.all_members() if _embeds(entry(m.name).member)]
    if changing and not embedded:
        raise UserError(
            f"{', '.join(changing)} changes the token embeddings, which attend never sees. Call "
            "x = scheme.prepare(scheme.positions(batch, length)).embed(x) first, then attend(..., embedded=True)"
        )
    where = scheme.positions_of(q, k, phase=phase, rows=rows, positions=positions, tokens=tokens)
    return scheme.prepare(where).attend(layer, q, k, v, backend, x=x)


def _embeds(cls: type[Member]) -> bool:
    return issubclass(cls, Encoding) and overrides(cls, "embed")
