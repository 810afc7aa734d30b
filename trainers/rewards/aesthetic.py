"""LAION's aesthetic predictor v2: five linear layers on the image features of CLIP ViT-L/14.

    r = head( image(frame) of length 1 ) / 10          people's ratings are 1 to 10

Read from `sac+logos+ava1-l14-linearMSE.pth` of christophschuhmann/improved-aesthetic-predictor,
opened as plain tensors. It does not read the prompt. Alone it drives videos to one look.
"""

from itertools import pairwise
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from pipelines.strict import Strict
from trainers.scoring.clip import prepare
from trainers.scoring.reward import Reward
from trainers.scoring.weight_files import FOLDER, require_folder

REPOSITORY, SIZE_GB = "openai/clip-vit-large-patch14", 1.7
WIDTHS = (1024, 128, 64, 16, 1)
LAYERS = (0, 2, 4, 6, 7)  # their places among the dropouts of the published head


class Config(Strict):
    """The two files."""

    folder: Path = Field(FOLDER / "clip-vit-large-patch14", description="CLIP, of transformers.")
    head: Path = FOLDER / "sac+logos+ava1-l14-linearMSE.pth"


class RewardModel(Reward[Config]):
    """The mean over the frames it sees; by default the first frame alone."""

    Config = Config
    frames = "first"
    differentiable = True

    def load(self) -> None:
        """Loads CLIP and the head."""
        config, device = self.config, self.device
        require_folder(config.folder, REPOSITORY, SIZE_GB)
        if not config.head.is_file():
            raise ValueError(
                f"reward.settings.head: {config.head} is not here; take {config.head.name} (3.7 "
                "MB) from christophschuhmann/improved-aesthetic-predictor on GitHub"
            )
        self.model = CLIPVisionModelWithProjection.from_pretrained(
            config.folder, use_safetensors=True, local_files_only=True
        )
        self.model.requires_grad_(False).eval().to(device)
        self.head = read_head(config.head, self.model.config.projection_dim).to(device)

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        pixels = prepare(video.flatten(0, 1).float(), self.model.config.image_size, "pad")
        features = functional.normalize(self.model(pixels).image_embeds, dim=-1)
        return self.head(features).view(video.shape[:2]).mean(1) / 10


def read_head(path: Path, width: int) -> nn.Sequential:
    """The head in evaluation mode. ValueError where the file does not hold it."""
    sizes = (width, *WIDTHS)
    head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    stored = torch.load(path, map_location="cpu", weights_only=True)
    try:
        head.load_state_dict(
            {
                f"{own}.{kind}": stored[f"layers.{published}.{kind}"]
                for own, published in enumerate(LAYERS)
                for kind in ("weight", "bias")
            }
        )
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"reward.settings.head: {path} is not the published head; download it again"
        ) from error
    return head.requires_grad_(False).eval()
