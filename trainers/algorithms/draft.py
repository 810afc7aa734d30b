"""Reward backpropagation: the gradient of a reward through the last steps of sampling.

Clark et al. 2024, "Directly Fine-Tuning Diffusion Models on Differentiable Rewards" (DRaFT,
arXiv:2309.17400), on flow matching and on students that sample in few steps:

    DRaFT-K    x = sample(noise), a gradient through its last K steps          algorithm 1
    DRaFT-LV   y = sg(sample(noise));  x_i = d_S((1 - s) y + s noise_i, s)     s the last level
               the mean over n draws: K = 1 with less variance, for n more forwards
    loss       = 1 - r(x)   or   - r(x)
                 + kl_weight * mean || v_S - v_teacher ||^2                    at the same steps

The steps before run without a gradient and keep nothing, so the peak of memory does not grow with
their number. The student is a LoRA on top of the run's model, which may itself be distilled: its
own LoRA is merged first, its own sampler is the rollout's. The teacher is that model without the
new LoRA: the KL term's reference, and what the drift monitor compares with. In its Gaussian
transitions the KL divergence is that square, up to a weight for each level.

Which reward, how much of the video it sees and at which size is the reward's business. The second
term of the two losses has no gradient, so they differ in what is logged; |r - 1| of EasyAnimate
and distill_wan2.1 is 1 - r for every r below 1. Left out: K drawn at random; the detached input of
EasyAnimate (`stop_latent_model_input_gradient`), which LV replaces.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.sampling.denoiser import DenoiserCall
from pipelines.sampling.flow import add_noise, expand_sigma
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import noise_levels, per_sample
from trainers.algorithm import Batch, Loss, RewardConfig, RewardMethod, Rng, Update
from trainers.rollout import sample_whole
from trainers.settings.roles import LoraSettings, Trainable


class Config(RewardConfig):
    """Settings of DRaFT."""

    student: Trainable = Trainable(lora=LoraSettings(), learning_rate=1e-4, max_grad_norm=0.3)
    num_gradient_steps: int = Field(1, ge=1, description="K: last steps that carry a gradient.")
    num_draws: int | None = Field(
        None, ge=1, description="LV: draws of the last step, instead of K. Empty: DRaFT-K."
    )
    loss: Literal["one_minus_reward", "negative_reward"] = "one_minus_reward"

    @model_validator(mode="after")
    def _one_way_to_the_gradient(self) -> Self:
        if self.num_draws is not None and self.num_gradient_steps != 1:
            raise ValueError("num_draws goes with one gradient step; leave num_gradient_steps at 1")
        return self


class Method(RewardMethod[Config]):
    """Student and teacher, in the notation of the module's docstring."""

    Config = Config

    def problem(self) -> str | None:
        """A reward without a gradient, a sampler of another kind of student, too many steps."""
        assert self.score is not None  # the configuration has been checked
        if not self.score.differentiable:
            return "reward: draft needs a gradient, and this reward is a black box; use nft"
        num_steps = self.rollout_sampler.num_inference_steps
        if self.config.num_gradient_steps > num_steps:
            return (
                f"algorithm.num_gradient_steps is {self.config.num_gradient_steps} but the sampler "
                f"has {num_steps} steps; lower it"
            )
        return super().problem()

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step."""
        yield Update("student", self.reward_loss)

    def reward_loss(self, batch: Batch, rng: Rng) -> Loss:
        """1 - r or - r, and the KL term."""
        divergences: list[Tensor] = []
        if self.config.num_draws is None:
            latents, prompts = self._truncated(batch, rng, divergences), batch.prompts
        else:
            latents = self._low_variance(batch, rng, divergences)
            prompts = tuple(p for p in batch.prompts for _ in range(self.config.num_draws))
        reward = self.reward(latents, prompts).mean()
        kl = torch.stack(divergences).mean()
        # both have the gradient - d r / d x
        ahead = 1 - reward if self.config.loss == "one_minus_reward" else -reward
        metrics = {"reward": reward.detach(), "kl": kl.detach()}
        return Loss(ahead + self.config.kl_weight * kl, metrics)

    # ---------------------------------------------------------------- its parts

    def _truncated(self, batch: Batch, rng: Rng, divergences: list[Tensor]) -> Tensor:
        """The student's latents with a gradient through the last K steps. [B, C, F, H, W]."""
        prompt, sampler = batch.require("prompt"), self.rollout_sampler
        noise = rng.randn((len(prompt.embeds), *batch.latent_shape), prompt.embeds.device)
        student = self._measured(batch, divergences)
        return sample_whole(student, prompt, sampler, noise, rng, self.config.num_gradient_steps)

    def _low_variance(self, batch: Batch, rng: Rng, divergences: list[Tensor]) -> Tensor:
        """The last step from n noisings of one rollout. [B * n, C, F, H, W], copies together."""
        with torch.no_grad():
            latents = self._truncated(batch, rng, [])
        num_draws = self.config.num_draws
        assert num_draws is not None
        latents = latents.repeat_interleave(num_draws, 0)  # y
        sigma = per_sample(noise_levels(self.rollout_sampler)[-2], latents)  # s
        noisy_latents = add_noise(latents, rng.randn_like(latents), sigma)
        group = batch.repeated(num_draws)
        return self._measured(group, divergences)(noisy_latents, sigma, group.require("prompt"))

    def _measured(self, batch: Batch, divergences: list[Tensor]) -> DenoiserCall:
        """The student; where an answer carries a gradient, its KL term is noted."""
        student, teacher = self.guided("student", batch), self.guided("teacher", batch)

        def call(noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
            denoised = student(noisy_latents, sigma, prompt)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    before = teacher(noisy_latents, sigma, prompt)
                # v_S - v_teacher, as both start at the same noisy latents
                distance = (before - denoised) / expand_sigma(sigma, denoised)
                divergences.append(distance.square().mean())
            return denoised

        return call
