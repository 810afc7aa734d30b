"""The model is one call: `denoised = model(noisy_latents, sigma, prompt_embeds)`.

Samplers and losses are written against this call. Guidance wraps it; it is never a branch inside a
sampler.
"""

from typing import Protocol

from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.flow import NUM_TRAIN_TIMESTEPS, denoised_from_velocity
from pipelines.sampling.guidance_embedder import guidance_input, time_embedding

WAN_TEXT_LENGTH = 512  # a constant in diffusers' WanAttnProcessor


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


class Network(GuidedDenoiserCall, Protocol):
    """What methods see of a denoiser, whether it is given images or not."""

    @property
    def embeds_guidance(self) -> bool: ...

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor: ...

    def features(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor: ...


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

    @property
    def takes_image(self) -> bool:
        """Whether the network continues an image, which then is an input of every forward."""
        config = self.transformer.config
        return bool(config.in_channels > config.out_channels)

    def forward(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
        condition: ImageCondition | None = None,
    ) -> Tensor:
        """noisy_latents [B, C, F, H, W], sigma [B], prompt_embeds [B, L, D] -> denoised, fp32."""
        velocity = self.velocity(noisy_latents, sigma, prompt_embeds, guidance_scale, condition)
        return denoised_from_velocity(noisy_latents.float(), velocity, sigma.float())

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
        condition: ImageCondition | None = None,
    ) -> Tensor:
        """What the network itself predicts: noise - latents, fp32. Shapes as `forward`.

        guidance_scale [B] is for networks that embed it; None is the network without it. ValueError
        where a network that continues an image has no `condition`, or another has one.
        """
        self._require_fitting(condition, prompt_embeds.shape[1])
        dtype = self.transformer.patch_embedding.weight.dtype
        image_embeds = None
        if condition is not None:
            noisy_latents = condition.beside(noisy_latents)
            if condition.image_embeds is not None:
                batch_size = noisy_latents.shape[0]
                image_embeds = condition.image_embeds.to(dtype).expand(batch_size, -1, -1)
        with guidance_input(self.transformer, guidance_scale):
            (velocity,) = self.transformer(
                hidden_states=noisy_latents.to(dtype),
                timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=prompt_embeds.to(dtype),
                encoder_hidden_states_image=image_embeds,
                return_dict=False,
            )
        self.num_forwards += 1
        return velocity.float()

    def features(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        condition: ImageCondition | None = None,
    ) -> Tensor:
        """The last block's tokens, fp32 [B, L, D]: what a discriminator's head reads."""
        kept: list[Tensor] = []
        handle = self.transformer.blocks[-1].register_forward_hook(
            lambda block, inputs, tokens: kept.append(tokens)
        )
        try:
            self.velocity(noisy_latents, sigma, prompt_embeds, None, condition)
        finally:
            handle.remove()
        return kept[0].float()

    def _require_fitting(self, condition: ImageCondition | None, text_length: int) -> None:
        if self.takes_image and condition is None:
            raise ValueError("image is missing: this model continues an image; give it one")
        if condition is None:
            return
        if not self.takes_image:
            raise ValueError("image is given but this model makes videos from the prompt alone")
        reads_embeds = self.transformer.config.image_dim is not None
        if reads_embeds != (condition.image_embeds is not None):
            reads = "reads" if reads_embeds else "does not read"
            raise ValueError(
                f"image_embeds: this model {reads} them; prepare the data with this very model"
            )
        if reads_embeds and text_length != WAN_TEXT_LENGTH:
            raise ValueError(
                f"text_length is {text_length} but models that read image_embeds need "
                f"{WAN_TEXT_LENGTH}, at which diffusers tells text and image apart"
            )


class ConditionedDenoiser:
    """A denoiser that has been given its images: called as if there were none."""

    def __init__(self, model: Denoiser, condition: ImageCondition):
        self.model, self.condition = model, condition

    @property
    def embeds_guidance(self) -> bool:
        """As the model's."""
        return self.model.embeds_guidance

    def __call__(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.forward`."""
        denoised: Tensor = self.model(
            noisy_latents, sigma, prompt_embeds, guidance_scale, self.condition
        )
        return denoised

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        prompt_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        """As `Denoiser.velocity`."""
        return self.model.velocity(
            noisy_latents, sigma, prompt_embeds, guidance_scale, self.condition
        )

    def features(self, noisy_latents: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """As `Denoiser.features`."""
        return self.model.features(noisy_latents, sigma, prompt_embeds, self.condition)


def conditioned(model: Denoiser, condition: ImageCondition | None) -> Network:
    """The model given its images, or as it is where there are none."""
    return model if condition is None else ConditionedDenoiser(model, condition)
