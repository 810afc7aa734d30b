"""Trains the video autoencoder that turns frames into latents, for a world too small for Wan's own.

Kingma & Welling 2014, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), with pixels in [-1, 1]:

    loss = |decoded - video| + squared_weight * (decoded - video)^2
           + kl_weight * KL(posterior || N(0, 1))

averaged over elements. The absolute term keeps edges sharp. The squared term is large while a shape
is missing and so leads away from the plain background, where the absolute error alone would rest.
Left out: perceptual and adversarial terms; flat colours need neither.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field

from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.settings.roles import AlgorithmConfig, Ema, Trainable


class Config(AlgorithmConfig):
    """Settings of autoencoder training."""

    student: Trainable = Trainable()
    ema: Ema | None = Field(None, description="Export a moving average of the student.")
    squared_weight: float = Field(2.0, ge=0)
    kl_weight: float = Field(1e-4, ge=0)


class Method(Algorithm[Config]):
    """One network, one loss."""

    Config = Config
    component: ClassVar[Literal["transformer", "vae"]] = "vae"

    def updates(self, step: int) -> Iterator[Update]:
        """One update a step."""
        yield Update("student", self.reconstruction_loss)

    def reconstruction_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Reconstruction error and divergence over one micro-batch; logs PSNR in dB."""
        video = batch.require("video")  # [B, F, C, H, W] in [0, 1]
        noise = rng.randn((len(video), *batch.latent_shape), video.device)
        decoded, mean, log_variance = self.roles["student"](video, noise)
        error = 2 * (decoded - video)  # in pixels of [-1, 1]
        # KL( N(mean, exp(log_variance)) || N(0, 1) ), Kingma & Welling appendix B
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        squared = error.square().mean()
        value = error.abs().mean() + self.config.squared_weight * squared
        psnr = -10 * torch.log10(squared.detach() / 4)  # the peak-to-peak range is 2
        return Loss(value + self.config.kl_weight * kl, {"psnr_db": psnr, "kl": kl.detach()})
