"""Policy gradient with one stochastic step a video: GRPO at the price of one forward and backward.

"Flash-GRPO" (arXiv:2605.15980), on the SDE of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470, eq. 9).
A video follows the flow's ODE but for ONE step i, the same for all videos of a group (iso-temporal,
so that rewards compare one decision), drawn among the first steps:

    mu   = x + d v + d s^2 / (2 sigma) (x + (1 - sigma) v),     d = sigma' - sigma < 0
    x'   = mu + s sqrt(|d|) noise,    s = min_spread + (max_spread - min_spread) sigma
    logp = - mean || x' - mu ||^2 / (2 s^2 |d|)
    ratio = exp( logp_S - logp_old )
    A    = (reward - mean of its group) / spread over the batch
    loss = - w mean min( ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A )
    w    = 1 / ( sqrt(|d|) / s + s sqrt(|d|) (1 - sigma) / (2 sigma) )

The derivative of logp by v has the size 1 / w, which differs between steps; w cancels it, so that
every step moves the student alike. logp is a mean over elements, as in Flow-GRPO, or the ratio
would depend on the size of the video. `old` follows the student and samples; before the first
update both are equal and every ratio is exactly 1. Level 1 has no finite term (1 - sigma) / sigma
to worry about, but 0 has: the last step is never stochastic.

Needs a sampler that follows the ODE, euler: lcm is stochastic in every step, and UniPC's later
steps would read the noise as history. Left out: several updates from one set of videos, and the
paper's KL term, which it sets to 0; `kl_weight` is that of the other methods.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from pipelines.sampling.flow import euler_step
from pipelines.sampling.samplers import noise_levels
from trainers.algorithm import Batch, Loss, RewardConfig, RewardMethod, Rng, Update
from trainers.losses import group_advantages
from trainers.settings.roles import Ema


class Config(RewardConfig):
    """Settings of Flash-GRPO."""

    old: Ema = Field(Ema(decay=0.9), description="Samples the videos; follows the student.")
    group_size: int = Field(8, ge=2, description="Videos of one prompt that are compared.")
    share_of_steps: float = Field(
        0.5, gt=0, le=1, description="The stochastic step is drawn among the first ones."
    )
    min_spread: float = Field(0.2, gt=0, description="s at level 0.")
    max_spread: float = Field(0.9, gt=0, description="s at level 1.")
    clip_range: float = Field(1e-3, gt=0, lt=1)


@dataclass(frozen=True)
class Decision:
    """The stochastic step of a group: from `before` at `sigma` to `after` at `next_sigma`."""

    before: Tensor  # [B * G, C, F, H, W]
    after: Tensor
    sigma: float
    next_sigma: float


class Method(RewardMethod[Config]):
    """Student, old student and teacher, in the notation of the module's docstring."""

    Config = Config

    def problem(self) -> str | None:
        """A sampler that does not follow the ODE, or is for another kind of student."""
        sampler = self.rollout_sampler
        if sampler.name != "euler":
            return (
                f"algorithm.sampler.name is {sampler.name} but the videos have to follow the "
                "ODE; set it to euler"
            )
        if sampler.num_inference_steps < 2:
            return "algorithm.sampler.num_inference_steps is 1 but the last step is deterministic"
        return super().problem()

    def updates(self, step: int) -> Iterator[Update]:
        """One student update a step; `old` follows it."""
        yield Update("student", self.policy_loss)

    def policy_loss(self, batch: Batch, rng: Rng) -> Loss:
        """The clipped policy gradient of one decision."""
        group = batch.repeated(self.config.group_size)
        with torch.no_grad():
            decision, latents = self._rollout(group, rng)
            reward = self.reward(latents, group.prompts)
            old = self._log_density("old", group, decision)[0]
            teacher = self._velocity("teacher", group, decision.before, decision.sigma)
        advantage = group_advantages(reward, self.config.group_size)  # A
        log_density, velocity = self._log_density("student", group, decision)
        ratio = (log_density - old).exp()  # exactly 1 before the first update
        clip = self.config.clip_range
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        kl = (velocity - teacher).square().mean()
        loss = -self.weight(decision.sigma, decision.next_sigma) * gain.mean()
        metrics = {
            "reward": reward.mean(),
            "kl": kl.detach(),
            "ratio_distance": (ratio.detach() - 1).abs().mean(),
        }
        return Loss(loss + self.config.kl_weight * kl, metrics)

    # ---------------------------------------------------------------- its parts

    def spread(self, sigma: float) -> float:
        """s of the docstring."""
        low, high = self.config.min_spread, self.config.max_spread
        return low + (high - low) * sigma

    def weight(self, sigma: float, next_sigma: float) -> float:
        """w of the docstring: one over the size of d logp / d v."""
        spread, root = self.spread(sigma), (sigma - next_sigma) ** 0.5
        return 1 / (root / spread + spread * root * (1 - sigma) / (2 * sigma))

    def _rollout(self, group: Batch, rng: Rng) -> tuple[Decision, Tensor]:
        """What the old student makes, with one stochastic step. Latents [B * G, C, F, H, W]."""
        sigmas = noise_levels(self.rollout_sampler).tolist()
        num_early = max(1, int(self.config.share_of_steps * (len(sigmas) - 2)))
        chosen = int(torch.randint(num_early, (), generator=rng.shared))
        embeds = group.require("prompt").embeds
        latents = rng.randn((len(embeds), *group.latent_shape), embeds.device)
        decision = None
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
            velocity = self._velocity("old", group, latents, sigma)
            if step == chosen:
                mean, deviation = self._transition(latents, velocity, sigma, next_sigma)
                after = mean + deviation * rng.randn_like(mean)
                decision = Decision(latents, after, sigma, next_sigma)
                latents = after
            else:
                here, there = latents.new_tensor([sigma]), latents.new_tensor([next_sigma])
                latents = euler_step(latents, velocity, here, there)
        assert decision is not None
        return decision, latents

    def _log_density(self, role: str, group: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        """logp of the decision [B * G], and the role's velocity before it."""
        velocity = self._velocity(role, group, decision.before, decision.sigma)
        mean, deviation = self._transition(
            decision.before, velocity, decision.sigma, decision.next_sigma
        )
        squares = (decision.after - mean).square().mean((1, 2, 3, 4))  # || x' - mu ||^2
        return -squares / (2 * deviation**2), velocity

    def _transition(
        self, noisy_latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float
    ) -> tuple[Tensor, float]:
        """mu and s sqrt(|d|) of the docstring."""
        change, spread = next_sigma - sigma, self.spread(sigma)
        # The SDE's drift: the ODE's velocity and what takes the added noise back (eq. 9)
        drift = velocity + spread**2 / (2 * sigma) * (noisy_latents + (1 - sigma) * velocity)
        return noisy_latents + change * drift, spread * (-change) ** 0.5

    def _velocity(self, role: str, group: Batch, noisy_latents: Tensor, sigma: float) -> Tensor:
        level = noisy_latents.new_full((len(noisy_latents),), sigma)
        return self.guided_velocity(role, group, noisy_latents, level)
