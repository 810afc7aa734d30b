"""Flow matching on encoded videos: how Wan itself was trained.

Lipman et al. 2023, "Flow Matching for Generative Modeling" (arXiv:2210.02747); Esser et al. 2024,
"Scaling Rectified Flow Transformers" (arXiv:2403.03206).

    noisy = (1 - sigma) * latents + sigma * noise                            (Esser eq. 1)
    loss  = mean || velocity(noisy, sigma, prompt) - (noise - latents) ||^2  (Esser eq. 12, w = 1)

sigma is uniform and then shifted (Esser eq. 23), as Wan samples. The prompt is dropped for a share
of the samples, so that the model learns the unconditional velocity that guidance needs. Left out:
logit-normal sigma, which with the shift would count the middle twice.
"""

from collections.abc import Iterator

import torch
from pydantic import Field

from pipelines.sampling.flow import add_noise, shift_sigmas
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import flow_matching
from trainers.settings.roles import AlgorithmConfig, Ema, Trainable


class Config(AlgorithmConfig):
    """Settings of flow-matching training."""

    student: Trainable = Trainable()
    ema: Ema | None = Field(None, description="Sample and export a moving average of the student.")
    flow_shift: float = Field(3.0, gt=0, description="Moves the noise levels toward 1.")
    prompt_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of the samples trained without a prompt."
    )


class Method(Algorithm[Config]):
    """One network, one loss."""

    Config = Config

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step."""
        yield Update("student", self.flow_loss)

    def flow_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean squared velocity error over one micro-batch."""
        latents, prompt = batch.require("latents").float(), batch.require("prompt")
        batch_size, device = latents.shape[0], latents.device
        noise = rng.randn_like(latents)  # [B, C, F, H, W]
        sigma = shift_sigmas(rng.rand(batch_size, device), self.config.flow_shift)  # [B], eq. 23
        dropped = rng.rand(batch_size, device) < self.config.prompt_dropout
        negative_embeds = batch.require("negative_embeds")
        embeds = torch.where(dropped[:, None, None], negative_embeds, prompt.embeds)
        noisy = add_noise(latents, noise, sigma)  # eq. 1
        velocity = self.denoiser("student").velocity(noisy, sigma, prompt.with_text(embeds))
        return Loss(flow_matching(velocity, latents, noise))  # eq. 12
