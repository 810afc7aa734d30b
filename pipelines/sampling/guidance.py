"""Guidance wraps the model; it is never a branch inside a sampler."""

import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import Denoiser, DenoiserCall, GuidedDenoiserCall, Network
from pipelines.sampling.flow import expand_sigma


def check_guidance(model: Denoiser, spec: SamplerSpec) -> None:
    """ValueError where the network was not made for the sampler's `guidance_mode`."""
    if spec.guidance_mode == "embedded" and not model.embeds_guidance:
        raise ValueError(
            "guidance_mode is embedded but this model does not take guidance as an input; "
            "use two_pass"
        )
    if spec.guidance_mode == "two_pass" and model.embeds_guidance:
        raise ValueError(
            "guidance_mode is two_pass but this model takes guidance as an input; use embedded"
        )


def guide(
    model: GuidedDenoiserCall, spec: SamplerSpec, negative_prompt_embeds: Tensor | None
) -> DenoiserCall:
    """The model as the sampler's `guidance_mode` wants it called.

    negative_prompt_embeds [1 or B, L, D] is read where `spec.reads_negative_prompt`.
    """
    if spec.guidance_mode == "embedded":

        def call(noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
            scale = torch.full_like(sigma, spec.guidance_scale)
            return model(noisy_latents, sigma, prompt_embeds, scale)

        return call
    if not spec.reads_negative_prompt:
        return model
    assert negative_prompt_embeds is not None
    return guided(model, negative_prompt_embeds, spec.guidance_scale)


def guided(
    model: DenoiserCall, negative_prompt_embeds: Tensor, guidance_scale: float
) -> DenoiserCall:
    """Classifier-free guidance in the standard form: negative + scale * (positive - negative).

    `guidance_scale <= 1` returns the model itself: one forward a step.
    negative_prompt_embeds [1 or B, L, D]. Two forwards of batch B: the peak memory of one.
    """
    if guidance_scale <= 1:
        return model

    def call(noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        positive = model(noisy_latents, sigma, prompt_embeds)
        negative = model(noisy_latents, sigma, negative_prompt_embeds.expand_as(prompt_embeds))
        return torch.lerp(negative, positive, guidance_scale)

    return call


def guided_velocity(
    model: Network,
    noisy_latents: Tensor,
    sigma: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    guidance_scale: Tensor,
) -> Tensor:
    """The velocity at guidance_scale [B]: one forward where the network embeds it, else two.

    negative_prompt_embeds [1 or B, L, D]. Where all scales are 1 the negative prompt is not run.
    """
    if model.embeds_guidance:
        return model.velocity(noisy_latents, sigma, prompt_embeds, guidance_scale)
    positive = model.velocity(noisy_latents, sigma, prompt_embeds)
    if bool((guidance_scale == 1).all()):
        return positive
    negative = model.velocity(noisy_latents, sigma, negative_prompt_embeds.expand_as(prompt_embeds))
    return torch.lerp(negative, positive, expand_sigma(guidance_scale, positive))
