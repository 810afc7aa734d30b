"""The model is one call: `denoised = model(noisy_latents, sigma, prompt_embeds)`.

Samplers and losses are written against this call. Guidance wraps it; it is never a branch inside a
sampler.
"""

from typing import Protocol

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipelines.flow import NUM_TRAIN_TIMESTEPS, denoised_from_velocity


class DenoiserCall(Protocol):
    """noisy_latents [B, C, F, H, W], sigma [B] fp32, prompt_embeds [B, L, D] -> denoised, fp32."""

    def __call__(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor: ...


class Denoiser(nn.Module):
    """Turns diffusers' `WanTransformer3DModel`, which predicts velocity, into a denoiser.

    `num_forwards` counts the transformer's forwards: the honest cost of a video.
    """

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        self.num_forwards = 0

    def forward(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """noisy_latents [B, C, F, H, W], sigma [B], prompt_embeds [B, L, D] -> denoised, fp32."""
        velocity = self.velocity(noisy_latents, sigma, prompt_embeds)
        return denoised_from_velocity(noisy_latents.float(), velocity, sigma.float())

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """What the network itself predicts: noise - latents, fp32. Shapes as `forward`."""
        dtype = self.transformer.patch_embedding.weight.dtype
        (velocity,) = self.transformer(
            hidden_states=noisy_latents.to(dtype),
            timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=prompt_embeds.to(dtype),
            return_dict=False,
        )
        self.num_forwards += 1
        return velocity.float()


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
