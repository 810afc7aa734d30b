"""CLIP score (Hessel et al. 2021, arXiv:2104.08718): how well frames fit the prompt.

Any model that open_clip knows, with its weights in a file, or a folder in open_clip's own layout.
The score is the cosine, without the paper's factor 2.5 and its cut at 0, which has no gradient.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.clip import ClipScorer
from trainers.scoring.reward import Reward
from trainers.scoring.weight_files import FOLDER, require_file


class Config(Strict):
    """Which CLIP."""

    architecture: str = Field("ViT-B-32", description="A name of open_clip's list.")
    weights: Path = Field(
        FOLDER / "open_clip_model.safetensors", description="Its weights, safetensors or plain .pt."
    )
    repository: str = Field(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", description="Where they come from, to say so."
    )
    fit: Literal["pad", "squash"] = "pad"


class RewardModel(Reward[Config]):
    """The mean over the frames it sees; by default the first frame alone."""

    Config = Config
    frames = "first"
    differentiable = True

    def load(self) -> None:
        """Loads the weights."""
        config, device = self.config, self.device
        require_file(config.weights, config.repository, 0.6)
        self.scorer = ClipScorer.from_weights(
            config.architecture, config.weights, config.fit, device
        )

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        return self.scorer.score_frames(video, prompts)
