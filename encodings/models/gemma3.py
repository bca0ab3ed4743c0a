"""Gemma 3: five layers see a window and rotate fast, the sixth sees all and rotates slowly.

    layer 1 ... 5:  RoPE of base 10,000,  l_ij = -inf for i - j >= W
    layer 6:        RoPE of base 1,000,000

W is a share of the training length L.

Training and testing: the same. No parameters. The model has a multiple of six layers.

Source: Gemma Team 2025 (arXiv 2503.19786). Published: W = 1024 (512 for the model of 1B) for sequences of 32K tokens,
a share of 1/32, which is the default. To reach 128K the sixth layers alone were then interpolated by 8:
`gemma3:factor=8`.
Departures: where the number of layers is no multiple of six, the released models end within a pattern; here such a
model is refused. Gemma 3 also normalises q and k, which is a setting of the model: `model.qk_norm=true`.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "gemma3",
    title="Gemma 3",
    year=2025,
    authors="Gemma Team",
    arxiv="2503.19786",
    equation="5 x (RoPE, window W), 1 x (RoPE of a large base)",
)
class Gemma3(Schedule):
    """Five windowed layers with RoPE, then a full one with RoPE of a large base."""

    @dataclass
    class Config:
        """Settings of both kinds of layers."""

        window: float = setting(1 / 32, "W as a share of the training length", above=0)
        local_base: float = setting(10000.0, "base of the windowed layers", above=1)
        base: float = setting(1000000.0, "base of the full layers", above=1)
        factor: float = setting(1.0, "interpolation of the full layers in tuning and testing", at_least=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """Five local layers and a global one."""
        local = f"rope:base={config.local_base}+window:share={config.window}:at=train,tune,test"
        interpolated = f"+pi:factor={config.factor}" if config.factor > 1 else ""
        return [*[local] * 5, f"rope:base={config.base}{interpolated}"]
