"""A Gaussian window as a bias: what a package outside pezoo adds to the zoo.

    l_ij = q_i . k_j / sqrt(d) - ((p_i - p_j) / width)^2

Shapes: distances (...) -> (H, ...). Training and testing: the same; no parameters.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo import Encoding, Traits, register, setting


@register(
    "example_gaussian",
    title="Gaussian window",
    equation="l_ij = q_i.k_j / sqrt(d) - ((i - j) / width)^2",
    family="bias",
)
class ExampleGaussian(Encoding):
    """A penalty that grows with the square of distance."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    @dataclass
    class Config:
        """Settings of the window."""

        width: float = setting(32.0, "tokens over which the odds fall by e", above=0)

    def distance_bias(self, distance: Tensor) -> Tensor:
        """-(distance / width)^2, the same for every head."""
        return -((distance.float() / self.config.width) ** 2).expand(self.shape.n_heads, *distance.shape)
