"""iRoPE: three layers rotate inside chunks, the fourth sees all, without positions and with a temperature. Llama 4.

    layer 1, 2, 3:  RoPE,  l_ij = -inf unless floor(i / C) = floor(j / C)
    layer 4:        NoPE,  l_ij -> (1 + 0.1 ln(1 + floor((i + 1) / S))) l_ij

Chunks know nothing of each other: the first token of one sees itself alone. C is a share of the training length L, and
S is L.

Training and testing: the same, but for the temperature, which acts in tuning and testing. No parameters. The model has
a multiple of four layers.

Source: Meta 2025, Llama 4 (its release, and its code in transformers). Published: C = 8192 and a training length of up
to 256K tokens, a share of 1/32, which is the default; S = 8192; a base of 500,000; the temperature at inference alone,
as its authors announced it.
Departures: S is L here, so that texts of the training length are read as in training. Llama 4 Scout also normalises
the rotated q and k of its chunked layers, for which there is no setting: `model.qk_norm=true` does it in all layers.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "irope",
    title="iRoPE (Llama 4)",
    year=2025,
    authors="Meta",
    equation="3 x (RoPE, chunks of C), 1 x (NoPE, temperature)",
)
class IRoPE(Schedule):
    """Three chunked layers with RoPE, then a full one without positions that is sharpened with the length."""

    @dataclass
    class Config:
        """Settings of the chunked layers."""

        chunk: float = setting(1 / 32, "C as a share of the training length", above=0)
        base: float = setting(500000.0, "base of RoPE", above=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """Three local layers and a global one."""
        local = f"rope:base={config.base}+blockwise:before=0:share={config.chunk}:at=train,tune,test"
        return [local, local, local, "nope+temperature:first=1"]
