"""A small CLIP of the shapes world: the reward that this repository brings along.

The same code path as HPS: an open_clip model, a differentiable resize, a cosine. It sees three
frames of the clip as one picture, so that motion counts. `trainers.tiny.clip` trains it.
"""

from pathlib import Path

from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.clip import ClipScorer, contact_sheet
from trainers.scoring.reward import Reward

OWN = Path(__file__).resolve().parents[2] / "assets" / "tiny-clip"


class Config(Strict):
    """Where it lies."""

    folder: Path = Field(OWN, description="In open_clip's layout.")


class RewardModel(Reward[Config]):
    """The cosine between the contact sheet of a clip and its caption."""

    Config = Config
    needs_motion = True
    differentiable = True

    def load(self) -> None:
        """Loads the folder."""
        config, device = self.config, self.device
        if not (config.folder / "open_clip_model.safetensors").is_file():
            raise ValueError(
                f"reward.settings.folder: {config.folder} holds no open_clip model; run `make tiny`"
            )
        self.scorer = ClipScorer.from_folder(config.folder, "pad", device)

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B] in [-1, 1]."""
        return self.scorer.score(contact_sheet(video), prompts)
