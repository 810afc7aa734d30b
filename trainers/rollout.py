"""The student's own way through the noise: what it is trained on is what it will be run on.

Data-free training (DMD2's backward simulation, with the random exit of Self-Forcing,
arXiv:2506.08009): start at noise, run the sampler's own steps, stop at a random one. Only that step
carries a gradient; the later ones never run. A causal rollout replaces `simulate` and nothing else.
"""

from typing import Protocol

import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise, sigma_schedule
from pipelines.sampling.samplers import sample_unipc
from trainers.algorithm import Rng
from trainers.losses import euler_step


class DenoiseCall(Protocol):
    """noisy_latents [B, C, F, H, W], sigma [B] -> denoised latents; prompt and guidance inside."""

    def __call__(self, noisy_latents: Tensor, sigma: Tensor) -> Tensor: ...


def exit_step(sampler: SamplerSpec, rng: Rng) -> int:
    """The step at which this rollout stops; the same on all ranks, so that forwards stay equal."""
    return int(torch.randint(sampler.num_inference_steps, (), generator=rng.shared))


def simulate(
    denoise: DenoiseCall,
    sampler: SamplerSpec,
    noise: Tensor,
    last_step: int,
    rng: Rng,
    num_gradient_steps: int = 1,
) -> Tensor:
    """From noise through steps 0 .. last_step; returns the denoised latents of the last one.

    `lcm` adds new noise between steps, `euler` follows the ODE. The last `num_gradient_steps` carry
    a gradient, and no step before them keeps anything for backward.
    """
    wanted = torch.is_grad_enabled()
    sigmas = sigma_schedule(
        sampler.num_inference_steps, sampler.flow_shift, sampler.sigmas
    ).tolist()
    batch_size = noise.shape[0]
    noisy_latents = noise
    for step in range(last_step):
        sigma = noise.new_full((batch_size,), sigmas[step])
        next_sigma = noise.new_full((batch_size,), sigmas[step + 1])
        with torch.set_grad_enabled(wanted and step > last_step - num_gradient_steps):
            denoised = denoise(noisy_latents, sigma)
            if sampler.name == "lcm":
                noisy_latents = add_noise(denoised, rng.randn_like(denoised), next_sigma)
            else:
                velocity = (noisy_latents - denoised) / sigmas[step]
                noisy_latents = euler_step(noisy_latents, velocity, sigma, next_sigma)
    return denoise(noisy_latents, noise.new_full((batch_size,), sigmas[last_step]))


def sample_whole(
    denoise: DenoiseCall,
    sampler: SamplerSpec,
    noise: Tensor,
    rng: Rng,
    num_gradient_steps: int = 0,
) -> Tensor:
    """The latents that any sampler makes of noise, with a gradient through its last steps.

    UniPC's history of earlier steps carries none, as it is made without.
    """
    num_steps = sampler.num_inference_steps
    wanted = torch.is_grad_enabled() and num_gradient_steps > 0
    if sampler.name != "unipc":
        with torch.set_grad_enabled(wanted):
            return simulate(denoise, sampler, noise, num_steps - 1, rng, num_gradient_steps)
    steps = sample_unipc(
        sampler, lambda noisy, sigma, _: denoise(noisy, sigma), noise, noise.new_empty(0)
    )
    latents = noise
    for step in range(num_steps):
        with torch.set_grad_enabled(wanted and step >= num_steps - num_gradient_steps):
            latents = next(steps)
    return latents


def from_data(
    denoise: DenoiseCall, sampler: SamplerSpec, latents: Tensor, last_step: int, rng: Rng
) -> Tensor:
    """From encoded videos noised to step `last_step`: one forward, but not what sampling sees.

    DMD2_wanx's way. Level 1 is pure noise, so nothing of the video is left in it.
    """
    sigmas = sigma_schedule(sampler.num_inference_steps, sampler.flow_shift, sampler.sigmas)
    sigma = sigmas[last_step].to(latents).expand(latents.shape[0])
    return denoise(add_noise(latents, rng.randn_like(latents), sigma), sigma)
