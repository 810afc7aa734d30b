"""`Prompt`: what a video is asked to be, as one value in the model call.

Whatever else a network is conditioned on becomes a field here, and no signature changes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.sampling.first_frame import ImageCondition


@dataclass(frozen=True)
class Prompt:
    """embeds [B, L, D] of the text; guidance_scale [B] for networks that take it as an input.

    `image` is for networks that continue one. Guidance None is such a network without guidance.
    """

    embeds: Tensor
    guidance_scale: Tensor | None = None
    image: ImageCondition | None = None

    def with_text(self, embeds: Tensor) -> "Prompt":
        """The same video with another text [1 or B, L, D], such as the negative prompt."""
        return replace(self, embeds=embeds.expand_as(self.embeds))

    def with_guidance(self, guidance_scale: Tensor | None) -> "Prompt":
        """The same video at another guidance_scale [B]."""
        return replace(self, guidance_scale=guidance_scale)

    def to(self, device: torch.device) -> "Prompt":
        """The same on a device."""
        scale, image = self.guidance_scale, self.image
        return Prompt(
            self.embeds.to(device),
            None if scale is None else scale.to(device),
            None if image is None else image.to(device),
        )

    def repeated(self, times: int) -> "Prompt":
        """Every video `times` times, copies side by side."""
        scale, image = self.guidance_scale, self.image
        return Prompt(
            self.embeds.repeat_interleave(times, 0),
            None if scale is None else scale.repeat_interleave(times, 0),
            None if image is None else image.repeated(times),
        )
