"""Latent consistency distillation: every point of the teacher's path leads to the same video.

Song et al. 2023, "Consistency Models" (arXiv:2303.01469), algorithm 2; Luo et al. 2023, "Latent
Consistency Models" (arXiv:2310.04378), eq. 13 for skipping k steps of the guided ODE:

    x_i    = (1 - sigma_i) * latents + sigma_i * noise
    x_i+k  = k Euler steps of the guided teacher from x_i
    target = d_target(x_i+k, sigma_i+k)         where sigma_i+k > 0
           = x_i+k                              where sigma_i+k = 0: the anchor
    loss   = pseudo-Huber( d_S(x_i, sigma_i), target )

d(x, sigma) = x - sigma * v(x, sigma) is x itself at sigma 0, so no boundary functions c_skip, c_out
are needed. The target network is the student's moving average; without one (`target: null`) it is
the teacher, which regresses the teacher's denoised latents k + 1 steps ahead and is no consistency
model: an error here, the default of distill_wan2.1. That code also lacks the anchor: its last
level is never tied to clean latents. Left out: distance weights lambda(sigma), LPIPS.
"""

from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise, euler_step, expand_sigma, sigma_schedule
from pipelines.sampling.guidance import guided_velocity
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import pseudo_huber
from trainers.settings.roles import AlgorithmConfig, Ema, Frozen, Guidance, Trainable


class Config(AlgorithmConfig):
    """Settings of consistency distillation."""

    student: Trainable = Trainable()
    teacher: Frozen = Frozen()
    target: Ema = Field(Ema(decay=0.95), description="What the student is held against.")
    num_teacher_steps: int = Field(48, ge=2, description="Steps of the teacher's ODE grid.")
    num_skipped_steps: int = Field(1, ge=1, description="Teacher steps between student and target.")
    num_student_steps: int = Field(4, ge=1, description="Steps the student is sampled with.")
    flow_shift: float = Field(5.0, gt=0, description="Of both grids.")
    guidance: Guidance = Guidance(min_scale=5, max_scale=5)

    @model_validator(mode="after")
    def _skips_within_the_grid(self) -> Self:
        if self.num_skipped_steps > self.num_teacher_steps:
            raise ValueError(
                f"num_skipped_steps is {self.num_skipped_steps} but the grid has only "
                f"{self.num_teacher_steps} steps; lower it"
            )
        return self


class Method(Algorithm[Config]):
    """A student that jumps to the end of the path from anywhere on it."""

    Config = Config

    def problem(self) -> str | None:
        """A range of guidance scales needs a student that is told the scale."""
        return self.guidance_problem(self.config.guidance)

    def sampler(self, own: SamplerSpec) -> SamplerSpec:
        """Jump, add new noise, jump again."""
        config = self.config
        scale = config.guidance.nearest(own.guidance_scale)
        return self.distilled_sampler("lcm", config.num_student_steps, config.flow_shift, scale)

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step; the target follows it."""
        yield Update("student", self.consistency_loss)

    def consistency_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Distance between two points of one path, one random pair for each sample."""
        student, target = self.denoiser("student"), self.denoiser("target")
        latents = batch.require("latents").float()  # [B, C, F, H, W]
        scale = self.draw_guidance(self.config.guidance, latents, rng)  # [B]
        prompt = batch.require("prompt").with_guidance(self.student_scale(scale))
        num_steps, skipped = self.config.num_teacher_steps, self.config.num_skipped_steps
        sigmas = sigma_schedule(num_steps, self.config.flow_shift).to(latents.device)
        first = (rng.rand(latents.shape[0], latents.device) * (num_steps - skipped + 1)).long()
        noisy = add_noise(latents, rng.randn_like(latents), sigmas[first])
        denoised = student(noisy, sigmas[first], prompt)  # d_S(x_i, sigma_i)
        with torch.no_grad():
            ahead = self._teacher_path(noisy, sigmas, first, batch, scale)
            last = sigmas[first + skipped]
            predicted = target(ahead, last, prompt)  # d_target(x_i+k, sigma_i+k)
            clean = expand_sigma(last, ahead) == 0  # the anchor: x_0 is its own answer
        return Loss(pseudo_huber(denoised, torch.where(clean, ahead, predicted)))

    def _teacher_path(
        self, noisy: Tensor, sigmas: Tensor, first: Tensor, batch: Batch, scale: Tensor
    ) -> Tensor:
        """The guided teacher's Euler steps from level `first` [B] on. Shape of noisy."""
        teacher = self.denoiser("teacher")
        prompt, negative = batch.require("prompt"), batch.require("negative_embeds")
        for step in range(self.config.num_skipped_steps):
            here, there = sigmas[first + step], sigmas[first + step + 1]
            velocity = guided_velocity(teacher, noisy, here, prompt, negative, scale)
            noisy = euler_step(noisy, velocity, here, there)  # one step toward x_i+k
        return noisy
