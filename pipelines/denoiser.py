"""The model is one call: `denoised = model(noisy_latents, sigma, prompt_embeds)`.

Samplers and losses are written against this call. Guidance wraps it; it is never a branch inside a
sampler.
"""

from typing import Protocol

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipelines.flow import NUM_TRAIN_TIMESTEPS, denoised_from_velocity, expand_sigma
from pipelines.guidance import guidance_input, time_embedding
from pipelines.recipe import SamplerSpec


class DenoiserCall(Protocol):
    """noisy_latents [B, C, F, H, W], sigma [B] fp32, prompt_embeds [B, L, D] -> denoised, fp32."""

    def __call__(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor: ...


class GuidedDenoiserCall(Protocol):
    """A `DenoiserCall` that may also be given guidance_scale [B]."""

    def __call__(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor: ...


class Denoiser(nn.Module):
    """Turns diffusers' `WanTransformer3DModel`, which predicts velocity, into a denoiser.

    `num_forwards` counts the transformer's forwards: the honest cost of a video.
    """

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        self.num_forwards = 0

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network, so that one forward is enough."""
        embedding = time_embedding(self.transformer)
        return embedding is not None and embedding.active is not None

    def forward(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """noisy_latents [B, C, F, H, W], sigma [B], prompt_embeds [B, L, D] -> denoised, fp32."""
        velocity = self.velocity(noisy_latents, sigma, prompt_embeds, guidance_scale)
        return denoised_from_velocity(noisy_latents.float(), velocity, sigma.float())

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """What the network itself predicts: noise - latents, fp32. Shapes as `forward`.

        guidance_scale [B] is for networks that embed it; None is the network without it.
        """
        dtype = self.transformer.patch_embedding.weight.dtype
        with guidance_input(self.transformer, guidance_scale):
            (velocity,) = self.transformer(
                hidden_states=noisy_latents.to(dtype),
                timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=prompt_embeds.to(dtype),
                return_dict=False,
            )
        self.num_forwards += 1
        return velocity.float()

    def features(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The last block's tokens, fp32 [B, L, D]: what a discriminator's head reads."""
        kept: list[Tensor] = []
        handle = self.transformer.blocks[-1].register_forward_hook(
            lambda block, inputs, tokens: kept.append(tokens)
        )
        try:
            self.velocity(noisy_latents, sigma, prompt_embeds)
        finally:
            handle.remove()
        return kept[0].float()


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
    model: Denoiser,
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
