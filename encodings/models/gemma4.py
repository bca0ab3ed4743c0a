"""Gemma 4: five layers see a window and rotate all pairs, the sixth sees all and rotates the fastest quarter.

    layer 1 ... 5:  RoPE of base 10,000,  l_ij = -inf for i - j >= W
    layer 6:        p-RoPE of base 1,000,000,  w_k = 0 for k >= d/8

W is a share of the training length L; of d/2 pairs of channels a quarter turns in the sixth layer, and the others read
content alone.

Training and testing: the same. No parameters. The model has a multiple of six layers.

Source: Google DeepMind 2026, as in transformers (`proportional`); p-RoPE is Barbero et al. 2024 (arXiv 2410.06205).
Published: W = 512 or 1024, by the size of the model. The length of its first training could not be established; the
share is Gemma 3's.
Departures: heads are as wide in all layers (the sixth has 512 channels for 256 in the others), k and v differ in the
sixth. Gemma 4 also normalises q, k and v; `model.qk_norm=true` does so with q and k. Its smallest model has four
windowed layers for each full one.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "gemma4",
    title="Gemma 4",
    year=2026,
    authors="Google DeepMind",
    equation="5 x (RoPE, window W), 1 x (p-RoPE of a large base)",
)
class Gemma4(Schedule):
    """Five windowed layers with RoPE, then a full one in which few pairs turn."""

    @dataclass
    class Config:
        """Settings of both kinds of layers."""

        window: float = setting(1 / 32, "W as a share of the training length", above=0)
        local_base: float = setting(10000.0, "base of the windowed layers", above=1)
        base: float = setting(1000000.0, "base of the full layers", above=1)
        kept: float = setting(0.25, "share of the pairs that turn in the full layers", at_least=0, at_most=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """Five local layers and a global one."""
        local = f"rope:base={config.local_base}+window:share={config.window}:at=train,tune,test"
        return [*[local] * 5, f"rope:base={config.base}:kept={config.kept}"]
