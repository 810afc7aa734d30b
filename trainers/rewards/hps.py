"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv:2306.09341): a CLIP ViT-H-14.

    r = cos( image(frame), text(prompt) )         typically 0.2 to 0.33; tables report 100 r

The published file is the state of an open_clip ViT-H-14 under `state_dict`; it is opened as plain
tensors and its MD5 is checked. Scores compare videos of ONE prompt. `pad` is how HPSv2 itself is
evaluated, `squash` how reward training for Wan has used it; for wide frames the two differ.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.clip import ClipScorer
from trainers.scoring.reward import Reward
from trainers.scoring.weight_files import FOLDER, require_file, require_md5

REPOSITORY, SIZE_GB = "xswu/HPSv2", 2
FILES = {  # name and MD5, as published
    "v2.1": ("HPS_v2.1_compressed.pt", "4067542e34ba2553a738c5ac6c1d75c0"),
    "v2.0": ("HPS_v2_compressed.pt", "fd9180de357abf01fdb4eaad64631db4"),
}


class Config(Strict):
    """Which version, and how frames are fitted into the square that it reads."""

    version: Literal["v2.1", "v2.0"] = "v2.1"
    folder: Path = Field(FOLDER, description="Of the published file.")
    fit: Literal["pad", "squash"] = Field(
        "pad", description="pad: longest side fits, black around it. squash: proportions are lost."
    )


class RewardModel(Reward[Config]):
    """The mean over the frames it sees; by default the first frame alone."""

    Config = Config
    frames = "first"
    differentiable = True

    def load(self) -> None:
        """Checks and loads the published file."""
        config, device = self.config, self.device
        name, md5 = FILES[config.version]
        weights = config.folder / name
        require_file(weights, REPOSITORY, SIZE_GB)
        require_md5(weights, md5)
        self.scorer = ClipScorer.from_weights("ViT-H-14", weights, config.fit, device)

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        return self.scorer.score_frames(video, prompts)
