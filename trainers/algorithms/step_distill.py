"""Progressive distillation: a student that makes two of its teacher's steps in one.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"
(arXiv:2202.00512), algorithm 2, in velocity form. The teacher's grid has 2S levels, the student's
its every other one. From noisy latents x_a at level a the teacher steps along its ODE to b and c:

    x_b = x_a + (b - a) v_T(x_a, a)          x_c = x_b + (c - b) v_T(x_b, b)
    target = (x_c - x_a) / (c - a)           the mean velocity of the two steps
    loss   = pseudo-Huber( v_S(x_a, a), target )

c may be 0. The shift stays the same, so stages chain: 48 -> 24 -> 12 -> 6, each run starting at the
student of the one before. On a straight ODE the target is the teacher's own velocity.

Left out: the cosine schedule and SNR weights of the paper; velocity has them in it.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise, euler_step, expand_sigma, sigma_schedule
from pipelines.sampling.guidance import guided_velocity
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import pseudo_huber
from trainers.settings.roles import AlgorithmConfig, Ema, Frozen, Guidance, Trainable

ThreeOf = tuple[Tensor, Tensor, Tensor]


class Config(AlgorithmConfig):
    """Settings of progressive distillation."""

    student: Trainable = Trainable()
    teacher: Frozen = Frozen()
    ema: Ema | None = Field(None, description="Sample and export a moving average of the student.")
    num_student_steps: int = Field(24, ge=1, description="The teacher's steps are twice as many.")
    flow_shift: float = Field(5.0, gt=0, description="Of both grids, and of the student's sampler.")
    guidance: Guidance = Guidance(min_scale=5, max_scale=5)


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
        """The loss at one random step of the student's grid for each sample."""
        teacher, prompt = self.denoiser("teacher"), batch.require("prompt")
        negative, latents = batch.require("negative_embeds"), batch.require("latents").float()
        scale = self.draw_guidance(self.config.guidance, latents, rng)  # [B]
        a, b, c = levels = self._levels(latents, rng)  # [B] each
        x_a = add_noise(latents, rng.randn_like(latents), a)  # [B, C, F, H, W]
        with torch.no_grad():
            first = guided_velocity(teacher, x_a, a, prompt, negative, scale)
            x_b = euler_step(x_a, first, a, b)
            second = guided_velocity(teacher, x_b, b, prompt, negative, scale)
            x_c = euler_step(x_b, second, b, c)
        told = prompt.with_guidance(self.student_scale(scale))
        velocity = self.denoiser("student").velocity(x_a, a, told)
        return Loss(self.distance(velocity, levels, (x_a, x_b, x_c), second))

    def distance(self, velocity: Tensor, levels: ThreeOf, path: ThreeOf, second: Tensor) -> Tensor:
        """From the student's velocity at x_a to what it should be; scalar.

        levels (a, b, c) [B], the teacher's path (x_a, x_b, x_c), and its velocity at x_b.
        """
        (a, _, c), (x_a, _, x_c) = levels, path
        target = (x_c - x_a) / expand_sigma(c - a, x_a)  # the mean velocity of the two steps
        return pseudo_huber(velocity, target)

    def _levels(self, latents: Tensor, rng: Rng) -> ThreeOf:
        """Three neighbouring levels a > b > c of the teacher's grid, a on the student's. [B]."""
        num_steps = self.config.num_student_steps
        sigmas = sigma_schedule(2 * num_steps, self.config.flow_shift).to(latents.device)
        first = 2 * (rng.rand(latents.shape[0], latents.device) * num_steps).long()
        return sigmas[first], sigmas[first + 1], sigmas[first + 2]
