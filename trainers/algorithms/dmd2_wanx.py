"""DMD2 with the two flaws of DMD2_wanx, kept to show what they cost.

    normaliser: column    scale = mean over the axes 1 to 3 | x - d_teacher(x_s) |
                          Written for images [B, C, H, W], it averages channels, frames and rows of
                          a video, so that every column of its pictures has a scale of its own.
    shared_noise: false   delta = d_critic(x_s') - d_teacher(x_s), two noisy samples of one level,
                          whose difference is not zero where both networks agree.

Everything else is `dmd2`.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from pipelines.sampling.flow import add_noise
from trainers.algorithm import Rng
from trainers.algorithms import dmd2
from trainers.losses import mean_distance


class Config(dmd2.Config):
    """Settings of DMD2_wanx; each flaw can be left out."""

    normaliser: Literal["sample", "column"] = "column"
    shared_noise: bool = Field(False, description="Critic and teacher see the same noisy sample.")


class Method(dmd2.Method):
    """Student, critic and teacher, in the notation of `dmd2`."""

    Config = Config

    def seen_by_critic(self, noisy: Tensor, latents: Tensor, sigma: Tensor, rng: Rng) -> Tensor:
        """Noised anew, unless `shared_noise`. [B, C, F, H, W]."""
        assert isinstance(self.config, Config)
        if self.config.shared_noise:
            return noisy
        return add_noise(latents, rng.randn_like(latents), sigma)

    def scale(self, latents: Tensor, teacher_denoised: Tensor) -> Tensor:
        """[B, 1, 1, 1, W] for `column`."""
        assert isinstance(self.config, Config)
        if self.config.normaliser == "sample":
            return super().scale(latents, teacher_denoised)
        return mean_distance(latents, teacher_denoised, (1, 2, 3))
