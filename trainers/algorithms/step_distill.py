"""Progressive distillation: a student that makes two of its teacher's steps in one.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"
(arXiv:2202.00512), algorithm 2, in velocity form. The teacher's grid has 2S levels, the student's
its every other one. From noisy latents x_a at level a the teacher steps along its ODE to b and c:

    x_b = x_a + (b - a) v_T(x_a, a)          x_c = x_b + (c - b) v_T(x_b, b)
    target = (x_c - x_a) / (c - a)           the mean velocity of the two steps
    loss   = pseudo-Huber( v_S(x_a, a), target )

c may be 0. The shift stays the same, so stages chain: 48 -> 24 -> 12 -> 6, each run starting at the
student of the one before. On a straight ODE the target is the teacher's own velocity.

`variant` offers what distill_wan2.1 does, to compare. Both ask for less than two steps in one:

    half    H( d_S(x_i), d_T(x_{i+1}) ) + H( x_i + (b - a) v_S, x_{i+1} + (c - b) v_T )
            The second term wants (c - a) / (b - a) times the mean velocity, about twice what the
            first (denoised against denoised) wants; the student ends between the two, and is
            run with a larger shift to make up for it.
    half2   H( d_S(x_a), d_T(x_b) ) only: one teacher step, so a student step still lands short.

Left out: the cosine schedule and SNR weights of the paper; velocity has them in it.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import (
    add_noise,
    denoised_from_velocity,
    expand_sigma,
    sigma_schedule,
)
from pipelines.sampling.guidance import guided_velocity
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import euler_step, pseudo_huber
from trainers.settings.roles import AlgorithmConfig, Ema, Frozen, Guidance, Trainable


class Config(AlgorithmConfig):
    """Settings of progressive distillation."""

    student: Trainable = Trainable()
    teacher: Frozen = Frozen()
    ema: Ema | None = Field(None, description="Sample and export a moving average of the student.")
    num_student_steps: int = Field(24, ge=1, description="The teacher's steps are twice as many.")
    flow_shift: float = Field(5.0, gt=0, description="Of both grids, and of the student's sampler.")
    guidance: Guidance = Guidance(min_scale=5, max_scale=5)
    variant: Literal["progressive", "half", "half2"] = "progressive"


class Method(Algorithm[Config]):
    """A student that takes two steps in one."""

    Config = Config

    def problem(self) -> str | None:
        """A range of guidance scales needs a student that is told the scale."""
        return self.guidance_problem(self.config.guidance)

    def sampler(self, own: SamplerSpec) -> SamplerSpec:
        """Euler on the student's grid: the very step it was trained to make."""
        config = self.config
        scale = config.guidance.nearest(own.guidance_scale)
        return self.distilled_sampler("euler", config.num_student_steps, config.flow_shift, scale)

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step."""
        yield Update("student", self.step_loss)

    def step_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The variant's loss at one random step of the student's grid for each sample."""
        student, teacher = (self.network(name, batch) for name in ("student", "teacher"))
        latents = batch.require("latents").float()  # [B, C, F, H, W]
        prompt_embeds = batch.require("prompt_embeds")
        negative = batch.require("negative_prompt_embeds")
        scale = self.draw_guidance(self.config.guidance, latents, rng)  # [B]
        a, b, c = self._levels(latents, rng)  # [B] each
        noisy = add_noise(latents, rng.randn_like(latents), a)

        def teach(noisy_latents: Tensor, sigma: Tensor) -> Tensor:
            return guided_velocity(teacher, noisy_latents, sigma, prompt_embeds, negative, scale)

        with torch.no_grad():
            halfway = euler_step(noisy, teach(noisy, a), a, b)
            second = teach(halfway, b)
        velocity = student.velocity(noisy, a, prompt_embeds, self.student_scale(scale))
        if self.config.variant == "progressive":
            target = (euler_step(halfway, second, b, c) - noisy) / expand_sigma(c - a, noisy)
            return Loss(pseudo_huber(velocity, target))
        denoised = denoised_from_velocity(noisy, velocity, a)
        loss = pseudo_huber(denoised, denoised_from_velocity(halfway, second, b))
        if self.config.variant == "half":
            stepped = euler_step(noisy, velocity, a, b)
            loss = loss + pseudo_huber(stepped, euler_step(halfway, second, b, c))
        return Loss(loss)

    def _levels(self, latents: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Three neighbouring levels a > b > c of the teacher's grid, a on the student's. [B]."""
        num_steps = self.config.num_student_steps
        sigmas = sigma_schedule(2 * num_steps, self.config.flow_shift).to(latents.device)
        first = 2 * (rng.rand(latents.shape[0], latents.device) * num_steps).long()
        return sigmas[first], sigmas[first + 1], sigmas[first + 2]
