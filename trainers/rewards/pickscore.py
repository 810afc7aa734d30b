"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): a CLIP ViT-H-14 tuned on people's choices.

    r = exp(logit scale) / 100 * cos( image(frame), text(prompt) )          typically about 0.2

The published model is one of transformers, in safetensors. Pictures are fitted as its processor
does it but for the crop: the longer side fits, so that nothing of a wide frame is cut off.
"""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from pipelines.strict import Strict
from trainers.scoring.clip import prepare
from trainers.scoring.reward import Reward
from trainers.scoring.weight_files import FOLDER, require_folder

REPOSITORY, SIZE_GB = "yuvalkirstain/PickScore_v1", 4
TEXT_LENGTH = 77


class Config(Strict):
    """Where it lies."""

    folder: Path = Field(FOLDER / "PickScore_v1", description="Of transformers, tokenizer too.")


class RewardModel(Reward[Config]):
    """The mean over the frames it sees; by default the first frame alone."""

    Config = Config
    frames = "first"
    differentiable = True

    def load(self) -> None:
        """Loads model and tokenizer."""
        config, device = self.config, self.device
        require_folder(config.folder, REPOSITORY, SIZE_GB)
        own = {"local_files_only": True}
        self.model = CLIPModel.from_pretrained(config.folder, use_safetensors=True, **own)
        self.model.requires_grad_(False).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(config.folder, **own)

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]."""
        side = self.model.config.vision_config.image_size
        pixels = prepare(video.flatten(0, 1).float(), side, "pad")
        images = self.model.get_image_features(pixels).pooler_output
        images = functional.normalize(images, dim=-1).unflatten(0, video.shape[:2])
        cosines = torch.einsum("bfd,bd->bf", images, self._texts(prompts))
        return self.model.logit_scale.exp() / 100 * cosines.mean(1)

    @torch.no_grad()
    def _texts(self, prompts: tuple[str, ...]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        ).to(self.device)
        texts = self.model.get_text_features(**tokens).pooler_output
        return functional.normalize(texts, dim=-1)
