"""RNoPE-SWA: three layers rotate and see a window, the fourth sees all and has no positions. Cohere 2 and EXAONE 4.

    layer 1, 2, 3:  RoPE,  l_ij = -inf for i - j >= W
    layer 4:        NoPE

So near tokens are told apart by position, far ones by content alone, and no rotation is ever read beyond the window.
W is a share of the training length L.

Training and testing: the same. No parameters. The model has a multiple of four layers.

Source: Yang, Venkitesh, Talupuru, Lin, Cairuz, Blunsom, Locatelli 2025 (arXiv 2501.18795). Published: Command R7B and
Command A have W = 4096, for a model of 8192 tokens before its context was extended: half of that is the default.
EXAONE 4 (32B) has W = 4096 as well. The released models' bases, which grow as context is extended, could not be
established; the default is RoPE's.
Departures: none. EXAONE 4 also normalises q and k, which is a setting of the model: `model.qk_norm=true`.
"""

from dataclasses import dataclass

from pezoo.contract import Schedule
from pezoo.registry import register, setting


@register(
    "rnope_swa",
    title="RNoPE-SWA (Cohere 2, EXAONE 4)",
    year=2025,
    authors="Yang, Venkitesh, Talupuru, Lin, Cairuz, Blunsom, Locatelli",
    arxiv="2501.18795",
    equation="3 x (RoPE, window W), 1 x NoPE",
)
class RNoPESWA(Schedule):
    """Three windowed layers with RoPE, then a full one without positions."""

    @dataclass
    class Config:
        """Settings of the windowed layers."""

        window: float = setting(0.5, "W as a share of the training length", above=0)
        base: float = setting(10000.0, "base of RoPE", above=1)

    @classmethod
    def layers(cls, config: Config) -> list[str]:
        """Three local layers and a global one."""
        local = f"rope:base={config.base}+window:share={config.window}:at=train,tune,test"
        return [local, local, local, "nope"]
