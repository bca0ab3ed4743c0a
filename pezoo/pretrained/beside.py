"""What a transformers model brings to attention beside the scheme: a mask, sinks, a soft cap, another scale.

Each is an extension that is made for one call and joins those of the scheme. Legend: R rows, H heads, Lq queries,
Lk keys.
"""

from torch import Tensor

from pezoo.contract import Extension, NoSettings, Positions, Shape


class Mask(Extension):
    """What the model lets a query see."""

    def __init__(self, shape: Shape, seen: Tensor, offset: int) -> None:
        super().__init__(shape, NoSettings())
        self.seen, self.offset = seen, offset  # (R, Lq, Lk), of the queries from `offset` on

    def mask(self, positions: Positions) -> Tensor:
        """Its part for these queries and keys."""
        start = positions.offset - self.offset
        return self.seen[:, start : start + positions.query.shape[1], : positions.key.shape[1]]


class Sink(Extension):
    """One more logit for each head, (H,)."""

    def __init__(self, shape: Shape, logits: Tensor) -> None:
        super().__init__(shape, NoSettings())
        self.logits = [logits]  # in a list: it is a parameter of the model's, not one of this module

    def sink(self) -> Tensor:
        """The logit of each head."""
        return self.logits[0].float()


class SoftCap(Extension):
    """Logits bent so that none exceeds a cap: cap tanh(l / cap)."""

    def __init__(self, shape: Shape, cap: float) -> None:
        super().__init__(shape, NoSettings())
        self.cap = cap

    def adapt(self, logits: Tensor, bias: Tensor | None, positions: Positions) -> Tensor:
        """The sum of logits and bias, bent."""
        total = logits if bias is None else logits + bias
        return self.cap * (total / self.cap).tanh()


class Scale(Extension):
    """A factor on all logits that read q and k."""

    def __init__(self, shape: Shape, factor: float) -> None:
        super().__init__(shape, NoSettings())
        self.factor = factor

    def scale(self, positions: Positions) -> float:
        """The factor."""
        return self.factor
