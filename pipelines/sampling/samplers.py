"""Samplers as plain generators: the latents after every step, so that callers can stop between.

Each takes the model as one call, `denoised = model(latents, sigma, prompt)`; guidance is inside
that call. A new solver is a name in `recipe.SamplerName` and a branch here.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from pipelines.recipe import SamplerName, SamplerSpec
from pipelines.sampling.denoiser import DenoiserCall
from pipelines.sampling.flow import (
    NUM_TRAIN_TIMESTEPS,
    add_noise,
    euler_step,
    sigma_schedule,
    velocity_from_denoised,
)
from pipelines.sampling.prompt import Prompt


def sample(
    spec: SamplerSpec,
    model: DenoiserCall,
    noise: Tensor,
    prompt: Prompt,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Runs the solver that `spec` names; guidance is in `model` (`guidance.guide`).

    noise [B, C, F, H, W] fp32; `generator` gives LCM its new noise. Yields latents like noise.
    """
    if spec.name == "unipc":
        return sample_unipc(spec, model, noise, prompt)
    return sample_stepwise(spec, model, noise, prompt, generator)


def noise_levels(spec: SamplerSpec) -> Tensor:
    """The shifted levels that a sampler visits, ending in 0. [N+1] fp32."""
    return sigma_schedule(spec.num_inference_steps, spec.flow_shift, spec.sigmas)


def sample_stepwise(
    spec: SamplerSpec,
    model: DenoiserCall,
    noise: Tensor,
    prompt: Prompt,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """A solver without a memory of earlier steps: Euler or LCM.

    All clips of a batch get the same new noise, that of the seed, so that a clip does not depend on
    its batch.
    """

    def draw() -> Tensor:
        return draw_noise((1, *noise.shape[1:]), generator).to(noise.device)

    latents = noise
    for sigma, next_sigma in pairwise(noise_levels(spec)):
        level = per_sample(sigma, latents)
        denoised = model(latents, level, prompt)
        if next_sigma > 0:
            latents = solver_step(
                spec.name, latents, denoised, level, per_sample(next_sigma, latents), draw
            )
        else:  # both solvers land on `denoised` itself, free of rounding
            latents = denoised
        yield latents


def solver_step(
    name: SamplerName,
    noisy_latents: Tensor,
    denoised: Tensor,
    sigma: Tensor,
    next_sigma: Tensor,
    draw: Callable[[], Tensor],
) -> Tensor:
    """From level sigma [B] to next_sigma [B] above 0, given the model's answer; shapes as latents.

    Euler follows the flow's ODE, which is also DDIM for flow matching. LCM adds new noise to the
    answer (Luo et al. 2023, arXiv:2310.04378), which `draw` gives.
    """
    if name == "lcm":
        return add_noise(denoised, draw(), next_sigma)
    velocity = velocity_from_denoised(noisy_latents, denoised, sigma)
    return euler_step(noisy_latents, velocity, sigma, next_sigma)


def sample_unipc(
    spec: SamplerSpec, model: DenoiserCall, noise: Tensor, prompt: Prompt
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
        sigma = per_sample(timestep / NUM_TRAIN_TIMESTEPS, latents)
        denoised = model(latents, sigma, prompt)
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


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal fp32 on the CPU, so that a seed means the same video on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def per_sample(sigma: Tensor, latents: Tensor) -> Tensor:
    """One noise level for every sample of latents. Scalar -> [B] fp32."""
    return sigma.to(latents.device).float().expand(latents.shape[0])
