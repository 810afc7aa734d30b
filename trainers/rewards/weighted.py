"""A weighted sum of rewards. It has a gradient where all of them have one.

    reward:
      kind: weighted
      settings: {rewards: [{kind: hps, weight: 1}, {kind: motion, weight: 0.1}]}

Each sees the first frame or the whole clip, as it would alone.
"""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.registry import load_reward
from trainers.scoring.reward import Reward
from trainers.settings.reward import RewardChoice


class WeightedReward(Strict):
    """One reward of the sum."""

    kind: str = Field(description="A file in trainers/rewards/.")
    weight: float
    frames: Literal["first", "all"] | None = Field(None, description="Empty: the reward's own.")
    settings: dict[str, Any] = {}


class Config(Strict):
    """The parts."""

    rewards: tuple[WeightedReward, ...] = Field(min_length=1)


class RewardModel(Reward[Config]):
    """sum of weight * reward."""

    Config = Config
    needs_motion = True  # decides for each part itself

    def load(self) -> None:
        """Loads the parts."""
        config, device = self.config, self.device
        self.parts = [
            (part, load_reward(RewardChoice(kind=part.kind, settings=part.settings), device))
            for part in config.rewards
        ]
        for part, reward in self.parts:
            if reward.needs_motion and part.frames == "first":
                raise ValueError(
                    f"reward.settings.rewards: {part.kind} looks at motion and cannot do with the "
                    "first frame; leave frames out"
                )
        self.differentiable = all(reward.differentiable for _, reward in self.parts)

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        total = video.new_zeros(len(prompts))
        for part, reward in self.parts:
            first = (part.frames or reward.frames) == "first"
            scores = reward.score(video[:, :1] if first else video, prompts)
            total = total + part.weight * scores.to(total)
        return total
