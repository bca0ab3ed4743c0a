"""gpt-oss: a windowed layer and a full one in turn, all with a sink logit, and YaRN for more than the training length.

    layer 1:  RoPE with YaRN,  a sink,  l_ij = -inf for i - j >= W
    layer 2:  RoPE with YaRN,  a sink

W is a share of the training length L. The ends of YaRN's ramp are not rounded to whole pairs.

Training and testing: the same, but for YaRN, which acts in tuning and testing. H parameters per layer, its sink logits.
The model has an even number of layers.

Source: OpenAI 2025 (arXiv 2508.10925), and its code in transformers. Published: W = 128 and YaRN from L = 4096 to
131,072 tokens, a factor of 32; a share of 1/32 is the default. The base is 150,000.
Departures: the factor follows the length as `yarn` has it, max(1, T / L), which at the published length is 32; type
`gpt_oss:factor=32` to fix it.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "gpt_oss",
    title="gpt-oss",
    year=2025,
    authors="OpenAI",
    arxiv="2508.10925",
    equation="1 x (RoPE, YaRN, sink, window W), 1 x (RoPE, YaRN, sink)",
)
class GPTOSS(Schedule):
    """A windowed layer, then a full one, both with RoPE, YaRN and a sink logit."""

    @dataclass
    class Config:
        """Settings of both layers."""

        window: float = setting(1 / 32, "W as a share of the training length", above=0)
        base: float = setting(150000.0, "base of RoPE", above=1)
        factor: float | None = setting(None, "YaRN's factor; unset: max(1, T / L)", at_least=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """A local layer and a global one."""
        rope = f"rope:base={config.base}+sink_logits"
        yarn = "yarn:truncate=false" if config.factor is None else f"yarn:truncate=false:factor={config.factor}"
        return [f"{rope}+window:share={config.window}:at=train,tune,test+{yarn}", f"{rope}+{yarn}"]
