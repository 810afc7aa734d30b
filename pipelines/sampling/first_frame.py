"""The image that a network continues, as its inputs: latents, a mask, CLIP's tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.geometry import WAN21

MASK_CHANNELS = WAN21.temporal_stride  # of Wan2.1's networks: one for each frame of a latent's


@dataclass(frozen=True)
class ImageCondition:
    """image_latents [B, C, F, H, W], normalised; image_embeds [B, L, D], None without CLIP."""

    image_latents: Tensor
    image_embeds: Tensor | None = None

    def to(self, device: torch.device) -> "ImageCondition":
        """The same on a device."""
        embeds = self.image_embeds
        return ImageCondition(
            self.image_latents.to(device), None if embeds is None else embeds.to(device)
        )

    def repeated(self, times: int) -> "ImageCondition":
        """Every image `times` times, copies side by side."""
        embeds = self.image_embeds
        return ImageCondition(
            self.image_latents.repeat_interleave(times, 0),
            None if embeds is None else embeds.repeat_interleave(times, 0),
        )

    def beside(self, noisy_latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, C + 4 + C, F, H, W]; a condition of one image serves them all."""
        batch_size, _, *rest = noisy_latents.shape
        image_latents = self.image_latents.to(noisy_latents).expand(batch_size, -1, -1, -1, -1)
        mask = noisy_latents.new_zeros(batch_size, MASK_CHANNELS, *rest)
        mask[:, :, 0] = 1
        return torch.cat([noisy_latents, mask, image_latents], dim=1)


def join(conditions: list[ImageCondition]) -> ImageCondition:
    """One batch of several conditions, which agree on size and on whether there are embeddings."""
    embeds = [c.image_embeds for c in conditions if c.image_embeds is not None]
    return ImageCondition(
        torch.cat([c.image_latents for c in conditions]), torch.cat(embeds) if embeds else None
    )
