"""Rollouts: the student's own way through the noise, which it is trained on as it will be run.

Data-free training (DMD2's backward simulation, section 4.5 of arXiv:2405.14867, with the random
exit of Self-Forcing, arXiv:2506.08009, algorithm 1): start at noise, run the sampler's own steps,
stop at a random one. Only that step carries a gradient; the later ones never run. A causal rollout
replaces `simulate` and nothing else.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import DenoiserCall
from pipelines.sampling.flow import add_noise
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import noise_levels, per_sample, sample_unipc, solver_step
from trainers.algorithm import Rng


def exit_step(sampler: SamplerSpec, rng: Rng) -> int:
    """The step at which this rollout stops; the same on all ranks, so that forwards stay equal."""
    return int(torch.randint(sampler.num_inference_steps, (), generator=rng.shared))


def simulate(
    model: DenoiserCall,
    prompt: Prompt,
    sampler: SamplerSpec,
    noise: Tensor,
    last_step: int,
    rng: Rng,
) -> Tensor:
    """From noise through steps 0 .. last_step; returns the denoised latents of the last one.

    noise [B, C, F, H, W]. Only the last step carries a gradient, and no step before it keeps
    anything for backward.
    """
    steps = _stepwise(model, prompt, sampler, noise, rng)
    with torch.no_grad():
        for _ in range(last_step):
            next(steps)
    return next(steps)


def sample_whole(
    model: DenoiserCall,
    prompt: Prompt,
    sampler: SamplerSpec,
    noise: Tensor,
    rng: Rng,
    num_gradient_steps: int = 0,
) -> Tensor:
    """The latents that any sampler makes of noise, with a gradient through its last steps.

    UniPC's history of earlier steps carries none, as it is made without.
    """
    num_steps = sampler.num_inference_steps
    wanted = torch.is_grad_enabled()
    if sampler.name == "unipc":
        steps = sample_unipc(sampler, model, noise, prompt)
    else:
        steps = _stepwise(model, prompt, sampler, noise, rng)
    latents = noise
    for step in range(num_steps):
        with torch.set_grad_enabled(wanted and step >= num_steps - num_gradient_steps):
            latents = next(steps)
    return latents


def _stepwise(
    model: DenoiserCall, prompt: Prompt, sampler: SamplerSpec, noise: Tensor, rng: Rng
) -> Iterator[Tensor]:
    """The denoised latents of every step of Euler or LCM.

    A step runs when it is asked for, with a gradient or without as the caller is then. Unlike in
    sampling, every sample gets new noise of its own.
    """
    noisy_latents = noise
    for sigma, next_sigma in pairwise(noise_levels(sampler)):
        level, next_level = per_sample(sigma, noise), per_sample(next_sigma, noise)
        denoised = model(noisy_latents, level, prompt)
        yield denoised
        noisy_latents = solver_step(
            sampler.name,
            noisy_latents,
            denoised,
            level,
            next_level,
            lambda: rng.randn_like(noise),
        )


def from_data(
    model: DenoiserCall,
    prompt: Prompt,
    sampler: SamplerSpec,
    latents: Tensor,
    last_step: int,
    rng: Rng,
) -> Tensor:
    """From encoded videos noised to step `last_step`: one forward, but not what sampling sees.

    DMD2_wanx's way. Level 1 is pure noise, so nothing of the video is left in it.
    """
    sigma = per_sample(noise_levels(sampler)[last_step], latents)
    return model(add_noise(latents, rng.randn_like(latents), sigma), sigma, prompt)
