"""Forward-process reinforcement learning: any sampler, any reward, no likelihoods.

Zheng et al. 2025, "DiffusionNFT" (arXiv:2509.16117). G videos of each prompt are sampled with the
old student, and the new one learns which of them to be like and which not, by flow matching:

    A   = (reward - mean of its group) / spread over the batch
    r   = 1/2 + 1/2 clip( A / clip_range, -1, 1 )                          eq. 7, in [0, 1]
    x_s = (1 - s) x + s noise,   s one of the sampler's own levels
    v+  = (1 - beta) v_old + beta v_S                                      the implicit positive
    v-  = (1 + beta) v_old - beta v_S                                      and negative policy
    loss = mean  r || d+ - x ||^2 / sg mean | d+ - x |
               + (1 - r) || d- - x ||^2 / sg mean | d- - x |               d = x_s - s v

and kl_weight * mean || v_S - v_teacher ||^2. The division is the paper's self-normalised weight for
the levels. `old` follows the student slowly; it makes the videos and is what the run exports.
Where both agree the gradient is beta (2 r - 1) (v_old - v), not zero; but with an average that is
always the student itself v+ and v- are one policy, so `contrast` = mean | v+ - v- | is logged.

Few-step students are sampled and trained at the same levels, those of the sampler, because no other
is ever used. Left out: several passes over one set of videos; prompts dropped for having equal
rewards, whose r is 1/2 and whose loss only keeps the student near `old`.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from pipelines.sampling.flow import add_noise, denoised_from_velocity
from pipelines.sampling.samplers import noise_levels
from trainers.algorithm import Batch, Loss, RewardConfig, RewardMethod, Rng, Update
from trainers.losses import group_advantages
from trainers.rollout import sample_whole
from trainers.settings.roles import Ema


class Config(RewardConfig):
    """Settings of DiffusionNFT."""

    old: Ema = Field(Ema(decay=0.9), description="Samples the videos; follows the student.")
    group_size: int = Field(8, ge=2, description="Videos of one prompt that are compared.")
    num_levels: int = Field(2, ge=1, description="Noise levels each video is learned at.")
    beta: float = Field(1.0, gt=0, le=1, description="How far v+ and v- lie from the old one.")
    clip_range: float = Field(1.5, gt=0, description="Advantages beyond it count as it.")


class Method(RewardMethod[Config]):
    """Student, old student and teacher, in the notation of the module's docstring."""

    Config = Config

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step; `old` follows it."""
        yield Update("student", self.contrastive_loss)

    def contrastive_loss(self, batch: Batch, rng: Rng) -> Loss:
        """Toward the group's better videos, away from the worse."""
        group = batch.repeated(self.config.group_size)
        with torch.no_grad():
            latents = self._rollout(group, rng)
            reward = self.reward(latents, group.prompts)
        optimality = self._optimality(reward)
        losses, contrasts, divergences = [], [], []
        for _ in range(self.config.num_levels):
            sigma = self._levels(latents, rng)
            noisy_latents = add_noise(latents, rng.randn_like(latents), sigma)
            velocity = self.guided_velocity("student", group, noisy_latents, sigma)
            with torch.no_grad():
                old = self.guided_velocity("old", group, noisy_latents, sigma)
                teacher = self.guided_velocity("teacher", group, noisy_latents, sigma)
            step = self.config.beta * (velocity - old)  # v+ = old + step, v- = old - step
            better = self._distance(noisy_latents, old + step, sigma, latents)
            worse = self._distance(noisy_latents, old - step, sigma, latents)
            losses.append((optimality * better + (1 - optimality) * worse).mean())
            contrasts.append(2 * step.detach().abs().mean())  # mean | v+ - v- |
            divergences.append((velocity - teacher).square().mean())
        kl = torch.stack(divergences).mean()
        metrics = {
            "reward": reward.mean(),
            "kl": kl.detach(),
            "contrast": torch.stack(contrasts).mean(),
        }
        return Loss(torch.stack(losses).mean() + self.config.kl_weight * kl, metrics)

    # ---------------------------------------------------------------- its parts

    def _rollout(self, group: Batch, rng: Rng) -> Tensor:
        """What the old student makes. [B * G, C, F, H, W]."""
        prompt = group.require("prompt")
        noise = rng.randn((len(prompt.embeds), *group.latent_shape), prompt.embeds.device)
        return sample_whole(self.guided("old", group), prompt, self.rollout_sampler, noise, rng)

    def _optimality(self, reward: Tensor) -> Tensor:
        """r of the docstring. [B * G] in [0, 1]."""
        advantage = group_advantages(reward, self.config.group_size) / self.config.clip_range
        return 0.5 + 0.5 * advantage.clamp(-1, 1)  # eq. 7

    def _levels(self, latents: Tensor, rng: Rng) -> Tensor:
        """One of the sampler's levels for each video. [B * G]."""
        sigmas = noise_levels(self.rollout_sampler).to(latents.device)
        drawn = rng.rand(len(latents), latents.device) * (len(sigmas) - 1)
        return sigmas[drawn.long()]

    def _distance(
        self, noisy_latents: Tensor, velocity: Tensor, sigma: Tensor, latents: Tensor
    ) -> Tensor:
        """The square of d - x over its own mean size, which carries no gradient. [B * G]."""
        axes = tuple(range(1, latents.ndim))
        error = denoised_from_velocity(noisy_latents, velocity, sigma) - latents  # d - x
        size = error.detach().abs().mean(axes).clamp_min(1e-5)  # sg mean | d - x |
        return error.square().mean(axes) / size
