"""SmolLM3: every fourth layer has no positions; all layers see everything.

    layer 1, 2, 3:  RoPE
    layer 4:        NoPE

Training and testing: the same. No parameters. The model has a multiple of four layers.

Source: Hugging Face 2025, SmolLM3 (its announcement and its code in transformers), after Yang et al. 2025 (arXiv
2501.18795). Published: 36 layers; a base of 2,000,000 as the code's default, which was raised as context was extended,
to 5,000,000 for 64K tokens. In a short text such bases leave most pairs nearly still.
Departures: none. With `use_sliding_window` the code puts windows on the layers without rotation; the released model
does not have it.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "smollm3",
    title="SmolLM3",
    year=2025,
    authors="Hugging Face",
    equation="3 x RoPE, 1 x NoPE",
)
class SmolLM3(Schedule):
    """Three layers with RoPE, then one without positions."""

    @dataclass
    class Config:
        """Settings of the layers that rotate."""

        base: float = setting(2000000.0, "base of RoPE", above=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """Three layers that rotate and one that does not."""
        rotated = f"rope:base={config.base}"
        return [rotated, rotated, rotated, "nope"]
