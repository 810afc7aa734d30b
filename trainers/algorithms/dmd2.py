"""Distribution matching distillation: the student's videos become as likely as the teacher's.

Yin et al. 2024, "Improved Distribution Matching Distillation" (DMD2, arXiv:2405.14867), on flow
matching, with the data-free rollout of Self-Forcing (arXiv:2506.08009). One student update:

    x       = the student's rollout                                  trainers/rollout.py
    x_s     = (1 - s) x + s noise          ONE noisy sample for both networks
    delta   = d_critic(x_s) - d_teacher(x_s)                         DMD eq. 7
    scale   = mean over all axes but the batch | x - d_teacher(x_s) |   DMD eq. 8
    loss    = 1/2 mean || x - sg(x - delta / scale) ||^2             d loss / d x = delta / scale

The critic models the student's distribution by flow matching on fresh rollouts, one update every
step; the student moves every `student_every` steps (DMD2 section 4.2). s is uniform, shifted, and
kept within [min_sigma, max_sigma]. Where critic and teacher agree the gradient is zero.

Options: a discriminator on the teacher's features (DMD2 section 4.3; needs data), `reward` (Re-DMD,
arXiv:2512.04678, or with the reward's gradient DMDR, arXiv:2511.13649, where distribution matching
keeps the student honest), `critic.pull` (IDA), `decoupled_guidance`.
Left out: the regression loss of the first DMD; the critic's classifier head of DMD2, which the
teacher's features replace, so that the critic has one task.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise, denoised_from_velocity, shift_sigmas
from pipelines.sampling.guidance import guide, guided_velocity
from pipelines.sampling.prompt import Prompt
from pipelines.strict import Strict
from trainers.algorithm import Algorithm, Batch, Loss, Rng, Update
from trainers.losses import (
    discriminator_loss,
    distribution_matching,
    flow_matching,
    generator_loss,
    sample_scale,
)
from trainers.rollout import exit_step, from_data, simulate
from trainers.settings.roles import AlgorithmConfig, Discriminator, Ema, Frozen, Trainable

FOUR_STEPS = SamplerSpec(
    name="lcm",
    num_inference_steps=4,
    sigmas=(1.0, 0.75, 0.5, 0.25),
    flow_shift=5.0,
    guidance_mode="off",
    guidance_scale=1.0,
)


class DecoupledGuidance(Strict):
    """Noise levels of the guidance part alone (arXiv:2511.22677): high ones shape the layout."""

    min_sigma: float = Field(0.5, ge=0, le=1)
    max_sigma: float = Field(0.98, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_sigma > self.max_sigma:
            raise ValueError(f"min_sigma {self.min_sigma:g} is above max_sigma {self.max_sigma:g}")
        return self


class RewardTerm(Strict):
    """How the run's `reward` enters the student's loss."""

    beta: float = Field(1.0, ge=0, description="Re-DMD: samples count exp(beta * reward).")
    gradient_weight: float = Field(
        0.0, ge=0, description="DMDR: of 1 - reward, with a gradient through the last step."
    )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.beta == self.gradient_weight == 0:
            raise ValueError("beta and gradient_weight are both 0; raise one or leave reward out")
        return self


class Config(AlgorithmConfig):
    """Settings of DMD2."""

    student: Trainable = Trainable(learning_rate=2e-6, betas=(0, 0.999))
    teacher: Frozen = Frozen()
    critic: Trainable = Trainable(learning_rate=4e-7, betas=(0, 0.999))
    discriminator: Discriminator | None = None
    ema: Ema | None = Field(None, description="Sample and export a moving average of the student.")
    sampler: SamplerSpec = Field(
        FOUR_STEPS,
        description="The student's own: lcm adds new noise between steps, euler does not. Levels "
        "in `sigmas` are warped by flow_shift; flow_shift 1 takes them as they are.",
    )
    rollout: Literal["simulate", "data"] = Field(
        "simulate",
        description="simulate: from noise, needs prompts only. data: from noised videos.",
    )
    guidance_scale: float = Field(5.0, ge=1, le=30, description="Of the teacher, standard form.")
    student_every: int = Field(5, ge=1, description="Critic updates for one of the student.")
    score_shift: float = Field(5.0, gt=0, description="Shift of the noise levels of the scores.")
    min_sigma: float = Field(0.02, ge=0, lt=1)
    max_sigma: float = Field(0.98, gt=0, le=1)
    discriminator_weight: float = Field(0.03, ge=0, description="Of the GAN term, student's side.")
    reward: RewardTerm | None = None
    decoupled_guidance: DecoupledGuidance | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_sigma > self.max_sigma:
            raise ValueError(f"min_sigma {self.min_sigma:g} is above max_sigma {self.max_sigma:g}")
        if self.rollout == "simulate" and self.sampler.name == "unipc":
            raise ValueError("sampler.name is unipc but a simulated rollout is lcm or euler")
        if self.discriminator is not None and self.rollout != "data":
            raise ValueError("discriminator needs encoded videos; set rollout to data")
        if self.sampler.guidance_mode == "two_pass":
            raise ValueError(
                "sampler.guidance_mode: a student runs without; choose off or embedded"
            )
        return self

    def reward_setting(self) -> str | None:
        """The term that reads it, where there is one."""
        return "reward" if self.reward else None


class Method(Algorithm[Config]):
    """Student, critic and teacher, in the notation of the module's docstring."""

    Config = Config

    def problem(self) -> str | None:
        """Where the sampler and the student disagree on guidance, or a reward has no gradient."""
        term = self.config.reward
        if term and term.gradient_weight and self.score and not self.score.differentiable:
            return (
                "algorithm.reward.gradient_weight: this reward is a black box; set it to 0 and "
                "raise beta, or name another reward"
            )
        mode, embeds = self.config.sampler.guidance_mode, self.student_embeds_guidance
        if embeds == (mode == "embedded"):
            return None
        takes, right = ("takes", "embedded") if embeds else ("does not take", "off")
        return (
            f"algorithm.sampler.guidance_mode is {mode} but this student {takes} guidance as an "
            f"input; set it to {right}"
        )

    def sampler(self, own: SamplerSpec) -> SamplerSpec:
        """The sampler the rollout simulates."""
        return self.config.sampler

    def updates(self, step: int) -> Iterator[Update]:
        """The student every few steps, then the networks that keep up with it."""
        if step % self.config.student_every == 0:
            yield Update("student", self.student_loss)
        yield Update("critic", self.critic_loss)
        if self.config.discriminator is not None:
            yield Update("discriminator", self.discriminator_loss)

    # ---------------------------------------------------------------- losses

    def student_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The distribution matching loss, and the GAN term where there is one."""
        latents = self._rollout(batch, rng)
        with torch.no_grad():
            gradient = self._gradient(latents.detach(), batch, rng)
            weight = self._reward_weight(latents.detach(), batch)
        loss = distribution_matching(latents, gradient, weight)  # DMD eq. 7, as a square
        metrics = {"gradient_size": gradient.abs().mean()}
        if self.config.reward is not None and self.config.reward.gradient_weight:
            assert self.score is not None  # the configuration has been checked
            reward = self.score(latents, batch.prompts).mean()
            metrics["reward"] = reward.detach()
            loss = loss + self.config.reward.gradient_weight * (1 - reward)  # DMDR
        if self.config.discriminator is not None:
            sigma = self._score_sigma(latents, rng)
            fooled = generator_loss(self._logits(latents, sigma, batch, rng))  # DMD2 eq. 4
            metrics["generator_loss"] = fooled.detach()
            loss = loss + self.config.discriminator_weight * fooled
        return Loss(loss, metrics)

    def critic_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Flow matching on what the student makes now, with its own noise level and noise."""
        with torch.no_grad():
            latents = self._rollout(batch, rng)
        sigma, noise = self._score_sigma(latents, rng), rng.randn_like(latents)
        noisy = add_noise(latents, noise, sigma)
        velocity = self.denoiser("critic").velocity(noisy, sigma, self._for_critic(batch, sigma))
        return Loss(flow_matching(velocity, latents, noise))

    def discriminator_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Encoded videos against the student's, both noised to the same level."""
        with torch.no_grad():
            latents = self._rollout(batch, rng)
        sigma = self._score_sigma(latents, rng)
        data_logits = self._logits(batch.require("latents").float(), sigma, batch, rng)
        return Loss(discriminator_loss(data_logits, self._logits(latents, sigma, batch, rng)))

    # ---------------------------------------------------------------- their parts

    def _rollout(self, batch: Batch, rng: Rng) -> Tensor:
        """The student's denoised latents at a random one of its steps. [B, C, F, H, W]."""
        sampler, prompt = self.config.sampler, batch.require("prompt")
        student = guide(self.denoiser("student"), sampler, None)
        last_step = exit_step(sampler, rng)
        if self.config.rollout == "data":
            latents = batch.require("latents").float()
            return from_data(student, prompt, sampler, latents, last_step, rng)
        shape = (len(prompt.embeds), *batch.latent_shape)
        noise = rng.randn(shape, prompt.embeds.device)
        return simulate(student, prompt, sampler, noise, last_step, rng)

    def _gradient(self, latents: Tensor, batch: Batch, rng: Rng) -> Tensor:
        """delta / scale of the docstring. [B, C, F, H, W]."""
        sigma = self._score_sigma(latents, rng)
        noisy = add_noise(latents, rng.randn_like(latents), sigma)  # x_s
        part = self.config.decoupled_guidance
        coupled = self.config.guidance_scale if part is None else 1.0
        teacher_denoised = self._teacher(noisy, sigma, batch, coupled)
        noisy = self.seen_by_critic(noisy, latents, sigma, rng)
        critic_denoised = self.denoiser("critic")(noisy, sigma, self._for_critic(batch, sigma))
        delta = critic_denoised - teacher_denoised  # DMD eq. 7
        if part is not None:
            delta = delta - self._guidance_part(part, latents, batch, rng)
        return delta / self.scale(latents, teacher_denoised)  # DMD eq. 8

    def seen_by_critic(self, noisy: Tensor, latents: Tensor, sigma: Tensor, rng: Rng) -> Tensor:
        """The noisy sample that the critic judges: the teacher's. [B, C, F, H, W]."""
        return noisy

    def scale(self, latents: Tensor, teacher_denoised: Tensor) -> Tensor:
        """What the gradient is divided by. Broadcasts to [B, C, F, H, W]."""
        return sample_scale(latents, teacher_denoised)

    def _teacher(self, noisy: Tensor, sigma: Tensor, batch: Batch, guidance_scale: float) -> Tensor:
        """The teacher's denoised latents at a guidance scale."""
        teacher, scale = self.denoiser("teacher"), torch.full_like(sigma, guidance_scale)
        prompt, negative = batch.require("prompt"), batch.require("negative_embeds")
        velocity = guided_velocity(teacher, noisy, sigma, prompt, negative, scale)
        return denoised_from_velocity(noisy, velocity, sigma)

    def _guidance_part(
        self, part: DecoupledGuidance, latents: Tensor, batch: Batch, rng: Rng
    ) -> Tensor:
        """What guidance adds, (g - 1) * (d(prompt) - d(negative)), at noise levels of its own."""
        sigma = rng.uniform(latents.shape[0], part.min_sigma, part.max_sigma, latents.device)
        noisy = add_noise(latents, rng.randn_like(latents), sigma)
        # d(negative) + g (d(prompt) - d(negative)) less d(prompt)
        guided = self._teacher(noisy, sigma, batch, self.config.guidance_scale)
        return guided - self._teacher(noisy, sigma, batch, 1.0)

    def _score_sigma(self, latents: Tensor, rng: Rng) -> Tensor:
        """Noise levels at which teacher and critic are compared. [B]."""
        sigma = shift_sigmas(rng.rand(latents.shape[0], latents.device), self.config.score_shift)
        return sigma.clamp(self.config.min_sigma, self.config.max_sigma)

    def _for_critic(self, batch: Batch, sigma: Tensor) -> Prompt:
        """A critic that started from a guidance-distilled model keeps being asked at one scale."""
        prompt = batch.require("prompt")
        if not self.denoiser("critic").embeds_guidance:
            return prompt
        return prompt.with_guidance(torch.full_like(sigma, self.config.guidance_scale))

    def _logits(self, latents: Tensor, sigma: Tensor, batch: Batch, rng: Rng) -> Tensor:
        """What the discriminator says about latents noised to sigma [B]. [B]."""
        noisy = add_noise(latents, rng.randn_like(latents), sigma)
        features = self.denoiser("teacher").features(noisy, sigma, batch.require("prompt"))
        logits: Tensor = self.roles["discriminator"](features)
        return logits

    def _reward_weight(self, latents: Tensor, batch: Batch) -> Tensor | None:
        """exp(beta * reward) for each sample, without a gradient. [B]."""
        if self.config.reward is None or self.config.reward.beta == 0:
            return None
        assert self.score is not None
        return torch.exp(self.config.reward.beta * self.score(latents, batch.prompts))  # Re-DMD
