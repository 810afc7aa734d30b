"""Classifier-free guidance and its embedded form, as wrappers around the model call."""

import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import Denoiser, DenoiserCall
from pipelines.sampling.flow import expand_sigma
from pipelines.sampling.prompt import Prompt


def guidance_problem(model: Denoiser, spec: SamplerSpec) -> str | None:
    """Why the network cannot be sampled in the sampler's `guidance_mode`, or None."""
    if spec.guidance_mode == "embedded" and not model.embeds_guidance:
        return (
            "guidance_mode is embedded but this model does not take guidance as an input; "
            "use two_pass"
        )
    if spec.guidance_mode == "two_pass" and model.embeds_guidance:
        return "guidance_mode is two_pass but this model takes guidance as an input; use embedded"
    return None


def require_guidance_fits(model: Denoiser, spec: SamplerSpec) -> None:
    """ValueError with the `guidance_problem`, where there is one."""
    if problem := guidance_problem(model, spec):
        raise ValueError(problem)


def guide(model: DenoiserCall, spec: SamplerSpec, negative_embeds: Tensor | None) -> DenoiserCall:
    """The model as the sampler's `guidance_mode` wants it called.

    negative_embeds [1 or B, L, D] is read where `spec.reads_negative_prompt`.
    """
    if spec.guidance_mode == "embedded":

        def call(noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
            scale = torch.full_like(sigma, spec.guidance_scale)
            return model(noisy_latents, sigma, prompt.with_guidance(scale))

        return call
    if not spec.reads_negative_prompt:
        return model
    assert negative_embeds is not None
    return guided(model, negative_embeds, spec.guidance_scale)


def guided(model: DenoiserCall, negative_embeds: Tensor, guidance_scale: float) -> DenoiserCall:
    """Classifier-free guidance in the standard form (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    `guidance_scale <= 1` returns the model itself: one forward a step.
    negative_embeds [1 or B, L, D]. Two forwards of batch B: the peak memory of one.
    """
    if guidance_scale <= 1:
        return model

    def call(noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        positive = model(noisy_latents, sigma, prompt)
        negative = model(noisy_latents, sigma, prompt.with_text(negative_embeds))
        # negative + scale * (positive - negative); the paper's w is scale - 1
        return torch.lerp(negative, positive, guidance_scale)

    return call


def guided_velocity(
    model: Denoiser,
    noisy_latents: Tensor,
    sigma: Tensor,
    prompt: Prompt,
    negative_embeds: Tensor,
    guidance_scale: Tensor,
) -> Tensor:
    """The velocity at guidance_scale [B]: one forward where the network embeds it, else two.

    negative_embeds [1 or B, L, D]. Where all scales are 1 the negative prompt is not run.
    """
    if model.embeds_guidance:
        return model.velocity(noisy_latents, sigma, prompt.with_guidance(guidance_scale))
    positive = model.velocity(noisy_latents, sigma, prompt)
    if bool((guidance_scale == 1).all()):
        return positive
    negative = model.velocity(noisy_latents, sigma, prompt.with_text(negative_embeds))
    return torch.lerp(negative, positive, expand_sigma(guidance_scale, positive))
