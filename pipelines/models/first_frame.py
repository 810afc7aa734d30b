"""The first frame as an input: what image-to-video Wan reads beside the noise and the prompt.

    channels of the input = noisy latents (C) | mask (4) | image latents (C)       36 for Wan2.1

The image latents are those of a video that starts with the image and is grey from then on; the mask
is 1 where the image is, once for each of the 4 frames that a latent frame stands for. Where the
checkpoint has an image encoder (CLIP), the tokens of its last layer but one are attended to beside
those of the prompt. All of it stays in the unconditional forward, as in Wan's own inference.

A checkpoint says how the image is brought to size (`image_preprocessing`):

    diffusers  Lanczos for the VAE; CLIP as the repository's image_processor has it: in Wan's, the
               shorter side to 224 and the middle cut out
    native     Wan2.1's own code, and so its training: bicubic without anti-aliasing for both, the
               whole image squashed to 224x224 for CLIP
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipelines.files.images import crop_to_ratio, read_image
from pipelines.models.codecs import ImageEncoder, VideoCodec
from pipelines.recipe import ImagePreprocessing
from pipelines.sampling.first_frame import ImageCondition

GREY = 0.5  # 0 in the VAE's [-1, 1]


@dataclass(frozen=True)
class ImageConditioner:
    """Turns images into what one checkpoint reads of them."""

    codec: VideoCodec
    encoder: ImageEncoder | None
    preprocessing: ImagePreprocessing

    def condition(self, path: Path, width: int, height: int, num_frames: int) -> ImageCondition:
        """The condition [1, ...] of an image file, cut to the video's ratio.

        ValueError where the file is no image.
        """
        image = crop_to_ratio(read_image(path), width, height)
        return self.condition_of(image, width, height, num_frames)

    def condition_of(
        self, image: Image.Image, width: int, height: int, num_frames: int
    ) -> ImageCondition:
        """The condition [1, ...] of an RGB image that has the video's ratio."""
        frame = self._resized(image, width, height)
        latents = first_frame_latents(frame, num_frames, self.codec)
        embeds = None if self.encoder is None else self._embeds(image, self.encoder)
        return ImageCondition(latents, embeds)

    def _resized(self, image: Image.Image, width: int, height: int) -> Tensor:
        """[1, 3, height, width] in [0, 1]; bicubic overshoots it a little."""
        if self.preprocessing == "native":
            return _bicubic(image, (height, width))
        return _pixels(image.resize((width, height), Image.Resampling.LANCZOS))

    @torch.no_grad()
    def _embeds(self, image: Image.Image, encoder: ImageEncoder) -> Tensor:
        """The tokens of CLIP's last layer but one. [1, L, D]."""
        network, processor = encoder.network, encoder.processor
        if self.preprocessing == "native":
            side = network.config.image_size
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in _statistics(processor))
            pixels = (_bicubic(image, (side, side)) - mean) / std
        else:
            pixels = processor(images=image, return_tensors="pt").pixel_values
        output = network(pixels.to(network.device, network.dtype), output_hidden_states=True)
        tokens: Tensor = output.hidden_states[-2]
        return tokens


def first_frame_latents(frames: Tensor, num_frames: int, codec: VideoCodec) -> Tensor:
    """First frames [B, 3, H, W] in [0, 1] -> latents [B, C, f, h, w] of `num_frames` frames."""
    video = frames[:, None].repeat(1, num_frames, 1, 1, 1)
    video[:, 1:] = GREY
    return codec.encode(video)


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def _bicubic(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """As Wan2.1's `interpolate(..., mode="bicubic")`. [1, 3, *size]."""
    return functional.interpolate(_pixels(image), size=size, mode="bicubic")


def _statistics(processor: Any) -> tuple[list[float], list[float]]:
    return processor.image_mean, processor.image_std
