"""How much moves: the mean change of luminance from frame to frame, up to `enough`.

More than enough counts as enough, or the best video would flicker. It does not read the prompt.
"""

from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.figures import motion
from trainers.scoring.reward import Reward


class Config(Strict):
    """What counts as full motion."""

    enough: float = Field(
        0.02, gt=0, le=1, description="Of the range from black to white; measure it on good videos."
    )


class RewardModel(Reward[Config]):
    """0 for a still, 1 from `enough` on."""

    Config = Config
    needs_motion = True
    differentiable = True

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        return (motion(video) / self.config.enough).clamp(max=1)
