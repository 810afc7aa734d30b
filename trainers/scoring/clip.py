"""How well pictures fit texts by a CLIP: one code path for every reward built on one.

    score = cos( image(picture), text(prompt) )        fp32, without the logit scale

A gradient by the pictures may be asked for: resizing is differentiable, and the image tower keeps
only the inputs of its blocks (checkpointing). A model is a folder in open_clip's layout
(`open_clip_config.json` beside `open_clip_model.safetensors`), or an architecture that open_clip
knows with a file of weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from torch.nn import functional

Fit = Literal["pad", "squash"]


class ClipScorer:
    """A frozen CLIP and how it wants pictures."""

    def __init__(self, model: open_clip.CLIP, tokenize: Callable[[list[str]], Tensor], fit: Fit):
        self.model = model.requires_grad_(False).eval()
        self.model.set_grad_checkpointing(True)
        self.tokenize, self.fit = tokenize, fit
        size = model.visual.image_size
        self.side: int = size if isinstance(size, int) else size[0]

    @classmethod
    def from_folder(cls, folder: Path, fit: Fit, device: torch.device) -> "ClipScorer":
        """A model in open_clip's own layout, tokenizer included."""
        name = f"local-dir:{folder}"
        model = open_clip.create_model(name, device=device)
        return cls(model, open_clip.get_tokenizer(name), fit)

    @classmethod
    def from_weights(
        cls, architecture: str, weights: Path, fit: Fit, device: torch.device
    ) -> "ClipScorer":
        """An architecture of open_clip's list with a file of weights, opened as plain tensors.

        ValueError where the file is damaged or holds another architecture.
        """
        try:
            model = open_clip.create_model(
                architecture, pretrained=str(weights), device=device, weights_only=True
            )
        except Exception as error:  # unpickling and open_clip raise many kinds
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"reward: {weights} does not hold the weights of {architecture} ({reason}); "
                "download it again"
            ) from error
        return cls(model, open_clip.get_tokenizer(architecture), fit)

    def score(self, pictures: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """pictures [N, 3, H, W] in [0, 1], N prompts -> [N] fp32 in [-1, 1]."""
        with torch.autocast(pictures.device.type, enabled=False):
            images = self.image_features(pictures)
            return (images * self.text_features(prompts)).sum(-1)

    def image_features(self, pictures: Tensor) -> Tensor:
        """pictures [N, 3, H, W] in [0, 1] -> [N, D] of length 1, fp32."""
        prepared = prepare(pictures.float(), self.side, self.fit)
        features: Tensor = self.model.encode_image(prepared)
        return functional.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def text_features(self, prompts: tuple[str, ...]) -> Tensor:
        """N prompts -> [N, D] of length 1, fp32."""
        device = next(self.model.parameters()).device
        tokens = self.tokenize(list(prompts)).to(device)
        features: Tensor = self.model.encode_text(tokens)
        return functional.normalize(features.float(), dim=-1)

    def score_frames(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """The mean over frames, each a picture. video [B, F, 3, H, W] in [0, 1] -> [B]."""
        num_frames = video.shape[1]
        repeated = tuple(prompt for prompt in prompts for _ in range(num_frames))
        return self.score(video.flatten(0, 1), repeated).view(-1, num_frames).mean(1)


def prepare(pictures: Tensor, side: int, fit: Fit) -> Tensor:
    """Pictures as CLIP reads them: bicubic, side x side, normalised. [N, 3, H, W] -> [N, 3, S, S].

    pad: the longer side fits and the rest is black, as HPSv2 is evaluated. squash: both sides fit
    and proportions are lost, as EasyAnimate trains with it.
    """
    height, width = pictures.shape[-2:]
    size = (side, side)
    if fit == "pad":
        longer = max(height, width)
        size = (round(height * side / longer), round(width * side / longer))
    resized = functional.interpolate(
        pictures, size, mode="bicubic", antialias=True, align_corners=False
    )
    resized = resized.clamp(0, 1)  # bicubic overshoots at edges; 8-bit pictures cannot
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    padded = functional.pad(resized, (left, side - size[1] - left, top, side - size[0] - top))
    mean, std = (
        torch.tensor(values, device=pictures.device).view(1, 3, 1, 1)
        for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    )
    return (padded - mean) / std


def contact_sheet(video: Tensor) -> Tensor:
    """[B, F, 3, H, W] in [0, 1] -> [B, 3, 2H, 2W]."""
    last = video.shape[1] - 1
    first, middle, final = video[:, 0], video[:, last // 2], video[:, last]
    brightness = [frame.amax(1) for frame in (first, middle, final)]  # luminance hides blue on grey
    in_colours = torch.stack(brightness, 1)
    above, below = torch.cat([first, middle], -1), torch.cat([final, in_colours], -1)
    return torch.cat([above, below], -2)
