"""Samplers as plain generators: the latents after every step, so that callers can stop between.

Each takes the model as one call, `denoised = model(latents, sigma, prompt_embeds)`; guidance is
inside that call.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import DenoiserCall
from pipelines.sampling.flow import (
    NUM_TRAIN_TIMESTEPS,
    add_noise,
    sigma_schedule,
    velocity_from_denoised,
)


def sample(
    spec: SamplerSpec,
    model: DenoiserCall,
    noise: Tensor,
    prompt_embeds: Tensor,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Runs the solver that `spec` names; guidance is in `model` (`denoiser.guided`).

    noise [B, C, F, H, W] fp32, prompt_embeds [B, L, D]; `generator` gives LCM its new noise. Yields
    latents like noise.
    """
    if spec.name == "unipc":
        return sample_unipc(spec, model, noise, prompt_embeds)
    sigmas = sigma_schedule(spec.num_inference_steps, spec.flow_shift, spec.sigmas)
    if spec.name == "euler":
        return sample_euler(model, noise, prompt_embeds, sigmas)
    return sample_lcm(model, noise, prompt_embeds, sigmas, generator)


def sample_unipc(
    spec: SamplerSpec, model: DenoiserCall, noise: Tensor, prompt_embeds: Tensor
) -> Iterator[Tensor]:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867), Wan's own solver; equals `WanPipeline`.

    diffusers shows the model whole timesteps, floor(1000 * sigma), while it steps with the exact
    sigma. So the model is asked at timestep / 1000, and its answer is handed over as the velocity,
    which does not depend on which sigma is used.
    """
    scheduler = unipc_scheduler(spec)
    if scheduler.timesteps[-1] == 0:
        raise ValueError(
            f"flow_shift {spec.flow_shift:g} leaves UniPC a last noise level below 0.001; "
            "raise flow_shift, lower num_inference_steps, or use euler"
        )
    latents = noise
    for timestep in scheduler.timesteps:
        sigma = _expand(timestep / NUM_TRAIN_TIMESTEPS, latents)
        denoised = model(latents, sigma, prompt_embeds)
        velocity = velocity_from_denoised(latents, denoised, sigma)
        (latents,) = scheduler.step(velocity, timestep, latents, return_dict=False)
        yield latents


def unipc_scheduler(spec: SamplerSpec) -> UniPCMultistepScheduler:
    """The scheduler with its timesteps set; `.sigmas` [N+1], `.timesteps` [N] whole numbers."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=spec.flow_shift
    )
    # diffusers shifts explicit levels exactly once, and writes into the array it is given.
    sigmas = None if spec.sigmas is None else np.array(spec.sigmas, dtype=np.float64)
    scheduler.set_timesteps(spec.num_inference_steps, sigmas=sigmas)
    scheduler.set_begin_index(0)  # neighbouring steps may share a whole timestep; never look it up
    return scheduler


def sample_euler(
    model: DenoiserCall, noise: Tensor, prompt_embeds: Tensor, sigmas: Tensor
) -> Iterator[Tensor]:
    """The straight step x + (s' - s) * velocity, also DDIM for flow matching. sigmas [N+1]."""
    latents = noise
    for sigma, next_sigma in pairwise(sigmas):
        level = _expand(sigma, latents)
        denoised = model(latents, level, prompt_embeds)
        velocity = velocity_from_denoised(latents, denoised, level)
        # The last step lands on `denoised` itself, free of rounding.
        latents = latents + (next_sigma - sigma) * velocity if next_sigma > 0 else denoised
        yield latents


def sample_lcm(
    model: DenoiserCall,
    noise: Tensor,
    prompt_embeds: Tensor,
    sigmas: Tensor,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Consistency sampling (Luo et al. 2023, arXiv:2310.04378). sigmas [N+1].

    Each step denoises fully, then adds new noise at the next level. All clips of a batch get the
    same noise, that of the seed, so that a clip does not depend on its batch.
    """
    latents = noise
    for sigma, next_sigma in pairwise(sigmas):
        latents = model(latents, _expand(sigma, latents), prompt_embeds)
        if next_sigma > 0:
            new_noise = draw_noise((1, *latents.shape[1:]), generator).to(latents.device)
            latents = add_noise(latents, new_noise, _expand(next_sigma, latents))
        yield latents


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal fp32 on the CPU, so that a seed means the same video on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _expand(sigma: Tensor, latents: Tensor) -> Tensor:
    return sigma.to(latents.device).float().expand(latents.shape[0])
