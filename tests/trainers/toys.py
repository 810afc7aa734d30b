"""Denoisers whose answers are known exactly, to hold the methods against."""

import torch
from torch import Tensor, nn

from pipelines.sampling.flow import denoised_from_velocity, expand_sigma, velocity_from_denoised
from pipelines.sampling.prompt import Prompt
from trainers.algorithm import Batch, Loss, Rng


def rng(seed: int = 0) -> Rng:
    return Rng(torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))


def toy_batch(batch_size: int, width: int = 2, prompt: float = 1.0, seed: int = 7) -> Batch:
    """Latents [B, 2, 1, 2, width]; prompts all `prompt`, the negative prompt all zero."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        prompts=tuple(f"prompt {number}" for number in range(batch_size)),
        latents=torch.randn(batch_size, 2, 1, 2, width, generator=generator),
        prompt=Prompt(torch.full((batch_size, 3, 4), prompt)),
        negative_embeds=torch.zeros(1, 3, 4),
        latent_shape=(2, 1, 2, width),
    )


class Toy(nn.Module):
    """What methods see of a `Denoiser`: calls are counted and their inputs kept."""

    embeds_guidance = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []  # noisy latents
        self.sigmas: list[Tensor] = []
        self.scales: list[Tensor | None] = []
        self.with_grad: list[bool] = []

    @property
    def num_forwards(self) -> int:
        return len(self.seen)

    def forward(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        velocity = self.velocity(noisy_latents, sigma, prompt)
        return denoised_from_velocity(noisy_latents, velocity, sigma)

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        assert (prompt.guidance_scale is not None) == self.embeds_guidance
        self.seen.append(noisy_latents.detach())
        self.sigmas.append(sigma)
        self.scales.append(prompt.guidance_scale)
        self.with_grad.append(torch.is_grad_enabled())
        return self.answer(noisy_latents, sigma, prompt.embeds, prompt.guidance_scale)

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        raise NotImplementedError


class KnowsLatents(Toy):
    """The exact velocity of a straight ODE that ends at known latents, plus an offset."""

    def __init__(self, latents: Tensor, offset: float = 0.0):
        super().__init__()
        self.latents, self.offset = latents, offset

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        return velocity_from_denoised(noisy, self.latents, sigma) + self.offset


class KnowsGaussian(Toy):
    """The exact velocity for data N(mean + strength of the prompt, std^2) in every element."""

    def __init__(self, mean: float, std: float = 0.5, embeds_guidance: bool = False):
        super().__init__()
        self.mean, self.std, self.embeds_guidance = mean, std, embeds_guidance

    def posterior_mean(self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        mean = expand_sigma(self.mean + prompt_embeds[:, 0, 0], noisy)
        signal, level = 1 - expand_sigma(sigma, noisy), expand_sigma(sigma, noisy)
        variance = (signal * self.std) ** 2 + level**2
        return mean + signal * self.std**2 / variance * (noisy - signal * mean)

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        denoised = self.posterior_mean(noisy, sigma, prompt_embeds)
        if scale is not None:
            negative = self.posterior_mean(noisy, sigma, torch.zeros_like(prompt_embeds))
            denoised = torch.lerp(negative, denoised, expand_sigma(scale, noisy))
        return velocity_from_denoised(noisy, denoised, sigma)

    def features(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        """[B, L, 2]: what a discriminator of two channels reads."""
        return noisy_latents.flatten(2).transpose(1, 2)


class Makes(Toy):
    """Whatever the noise, it makes the latents that are its parameters."""

    def __init__(self, latents: Tensor, embeds_guidance: bool = False):
        super().__init__()
        self.latents, self.embeds_guidance = nn.Parameter(latents), embeds_guidance

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        return velocity_from_denoised(noisy, self.latents, sigma)


# ---------------------------------------------------------------- a mixture in the plane

MODES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
MODE_STD = 0.2


class KnowsMixture(Toy):
    """The exact velocity for four Gaussians in the plane; prompt_embeds [B, 1, 4] picks among them.

    A row of zeros picks all.
    """

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        points, level = noisy.flatten(1), sigma[:, None]
        variance = ((1 - level) * MODE_STD) ** 2 + level**2
        centres = (1 - level)[..., None] * MODES  # [B, 4, 2]
        offsets = points[:, None] - centres
        picked = prompt_embeds[:, 0]
        allowed = torch.where(picked.sum(1, keepdim=True) > 0, picked, 1.0)
        weights = (allowed.log() - offsets.square().sum(-1) / (2 * variance)).softmax(-1)
        gain = (1 - level) * MODE_STD**2 / variance
        denoised = (weights[..., None] * (MODES + gain[..., None] * offsets)).sum(1)
        return velocity_from_denoised(noisy, denoised.view_as(noisy), sigma)


class Learns(Toy):
    """A small network in the plane that starts at nothing."""

    def __init__(self, embeds_guidance: bool = False, width: int = 96):
        super().__init__()
        self.embeds_guidance = embeds_guidance
        self.layers = nn.Sequential(
            nn.Linear(2 + 8 + 4 + 1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        waves = sigma[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        told = prompt.guidance_scale
        scale = sigma.new_zeros(sigma.shape) if told is None else told / 4
        inputs = [noisy_latents.flatten(1), waves.sin(), waves.cos(), prompt.embeds[:, 0]]
        output: Tensor = self.layers(torch.cat([*inputs, scale[:, None]], 1))
        return output.view_as(noisy_latents)


def mixture_batch(batch_size: int, generator: torch.Generator, classes: bool = False) -> Batch:
    """Points of the mixture as latents [B, 2, 1, 1, 1], with their class as prompt or without."""
    which = torch.randint(4, (batch_size,), generator=generator)
    points = MODES[which] + MODE_STD * torch.randn(batch_size, 2, generator=generator)
    prompt_embeds = torch.eye(4)[which] if classes else torch.zeros(batch_size, 4)
    return Batch(
        latents=points.view(-1, 2, 1, 1, 1),
        prompt=Prompt(prompt_embeds[:, None]),
        negative_embeds=torch.zeros(1, 1, 4),
        latent_shape=(2, 1, 1, 1),
    )


def descend(optimizer: torch.optim.Optimizer, loss: Loss) -> None:
    """One step on a loss."""
    optimizer.zero_grad()
    loss.value.backward()
    optimizer.step()
