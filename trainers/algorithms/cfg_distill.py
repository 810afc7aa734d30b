"""Guidance distillation: one forward a step at any guidance scale.

Meng et al. 2023, "On Distillation of Guided Diffusion Models" (arXiv:2210.03142), stage one, in
velocity form for flow matching:

    noisy  = (1 - sigma) * latents + sigma * noise
    target = v_T(noisy, negative) + g * (v_T(noisy, prompt) - v_T(noisy, negative))
    loss   = mean( sqrt( (v_S(noisy, prompt, g) - target)^2 + c^2 ) - c ),   c = 1e-3

g is uniform in [min_scale, max_scale], one a sample; sigma is uniform, then shifted. The student
gets g as an input (pipelines/sampling/guidance_embedder.py). It starts exactly as its teacher is
without guidance, because the last layer of its guidance embedder starts at zero; distill_wan2.1
starts elsewhere.
Left out: the SNR weights of the paper, which velocity and the Huber loss replace; whole-number g
shared by all ranks, which only makes the gradient noisier.
"""

from collections.abc import Iterator

import torch
from pydantic import Field

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise, shift_sigmas
from pipelines.sampling.guidance import guided_velocity
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import pseudo_huber
from trainers.settings.roles import AlgorithmConfig, Ema, Frozen, Guidance, GuidedTrainable


class Config(AlgorithmConfig):
    """Settings of guidance distillation."""

    student: GuidedTrainable = GuidedTrainable()
    teacher: Frozen = Frozen()
    ema: Ema | None = Field(None, description="Sample and export a moving average of the student.")
    guidance: Guidance = Guidance()
    flow_shift: float = Field(5.0, gt=0, description="Moves the noise levels toward 1.")


class Method(Algorithm[Config]):
    """A student that imitates the guided teacher."""

    Config = Config

    def sampler(self, own: SamplerSpec) -> SamplerSpec:
        """The model's own solver and steps, with guidance inside the network."""
        scale = self.config.guidance.nearest(own.guidance_scale)
        return own.model_copy(update={"guidance_mode": "embedded", "guidance_scale": scale})

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step."""
        yield Update("student", self.guidance_loss)

    def guidance_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Pseudo-Huber distance to the guided velocity over one micro-batch."""
        student, teacher = self.denoiser("student"), self.denoiser("teacher")
        latents = batch.require("latents").float()  # [B, C, F, H, W]
        prompt, negative = batch.require("prompt"), batch.require("negative_embeds")
        scale = self.draw_guidance(self.config.guidance, latents, rng)  # g, [B]
        sigma = shift_sigmas(rng.rand(latents.shape[0], latents.device), self.config.flow_shift)
        noisy = add_noise(latents, rng.randn_like(latents), sigma)
        with torch.no_grad():
            # v_T(noisy, negative) + g * (v_T(noisy, prompt) - v_T(noisy, negative)): section 3.1
            target = guided_velocity(teacher, noisy, sigma, prompt, negative, scale)
        velocity = student.velocity(noisy, sigma, prompt.with_guidance(scale))
        return Loss(pseudo_huber(velocity, target))
