"""How well a video is exposed: 1 minus how far luminance lies outside a band, averaged.

Distillation and rewards such as VideoAlign's visual quality burn pictures out; this pulls back.
It has a gradient wherever a pixel is outside, also where it is nearly white.
"""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.figures import luminance
from trainers.scoring.reward import Reward


class Config(Strict):
    """The band of luminance."""

    low: float = Field(0.05, gt=0, lt=1)
    high: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class RewardModel(Reward[Config]):
    """1 where all luminance is in the band, 0 where all is black or white."""

    Config = Config
    differentiable = True

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        low, high = self.config.low, self.config.high
        luma = luminance(video)
        below, above = (low - luma).relu() / low, (luma - high).relu() / (1 - high)
        return 1 - (below + above).mean((1, 2, 3))
