"""The model is one call: `denoised = model(noisy_latents, sigma, prompt)`.

Samplers and losses are written against this call. Guidance wraps it (guidance.py); it is never a
branch inside a sampler.
"""

from collections.abc import Callable

from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from pipelines.sampling.flow import NUM_TRAIN_TIMESTEPS, denoised_from_velocity
from pipelines.sampling.guidance_embedder import guidance_input, time_embedding
from pipelines.sampling.prompt import Prompt

WAN_TEXT_LENGTH = 512  # a constant in diffusers' WanAttnProcessor

# noisy_latents [B, C, F, H, W], sigma [B] fp32, prompt -> denoised latents, fp32
DenoiserCall = Callable[[Tensor, Tensor, Prompt], Tensor]


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

    def activate(self) -> None:
        """Switches on what a forward reads beside its arguments; here nothing.

        The one place for such state, an adapter or keys and values of earlier frames: it is called
        before a forward, and again when a gradient comes back, before any block is recomputed.
        """

    def forward(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        """noisy_latents [B, C, F, H, W], sigma [B] -> denoised, fp32."""
        velocity = self.velocity(noisy_latents, sigma, prompt)
        return denoised_from_velocity(noisy_latents.float(), velocity, sigma.float())

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        """What the network itself predicts: noise - latents, fp32. Shapes as `forward`.

        ValueError where the prompt's image is missing, unread, or made for another network.
        """
        self._require_fitting(prompt)
        self.activate()
        dtype = self.transformer.patch_embedding.weight.dtype
        image_embeds = None
        if prompt.image is not None:
            noisy_latents = prompt.image.beside(noisy_latents)
            if prompt.image.image_embeds is not None:
                batch_size = noisy_latents.shape[0]
                image_embeds = prompt.image.image_embeds.to(dtype).expand(batch_size, -1, -1)
        with guidance_input(self.transformer, prompt.guidance_scale):
            (velocity,) = self.transformer(
                hidden_states=noisy_latents.to(dtype),
                timestep=sigma.float() * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=prompt.embeds.to(dtype),
                encoder_hidden_states_image=image_embeds,
                return_dict=False,
            )
        self.num_forwards += 1
        return self._active_in_backward(velocity.float())

    def features(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        """The last block's tokens, fp32 [B, L, D]: what a discriminator's head reads."""
        kept: list[Tensor] = []
        handle = self.transformer.blocks[-1].register_forward_hook(
            lambda block, inputs, tokens: kept.append(tokens)
        )
        try:
            self.velocity(noisy_latents, sigma, prompt)
        finally:
            handle.remove()
        return self._active_in_backward(kept[0].float())

    def _active_in_backward(self, output: Tensor) -> Tensor:
        """Autograd needs in backward what forward had: checkpointing runs the blocks again."""
        if output.requires_grad:
            output.register_hook(lambda gradient: self.activate())
        return output

    def _require_fitting(self, prompt: Prompt) -> None:
        if self.takes_image and prompt.image is None:
            raise ValueError("image is missing: this model continues an image; give it one")
        if prompt.image is None:
            return
        if not self.takes_image:
            raise ValueError("image is given but this model makes videos from the prompt alone")
        reads_embeds = self.transformer.config.image_dim is not None
        if reads_embeds != (prompt.image.image_embeds is not None):
            reads = "reads" if reads_embeds else "does not read"
            raise ValueError(
                f"image_embeds: this model {reads} them; prepare the data with this very model"
            )
        if reads_embeds and (text_length := prompt.embeds.shape[1]) != WAN_TEXT_LENGTH:
            raise ValueError(
                f"text_length is {text_length} but models that read image_embeds need "
                f"{WAN_TEXT_LENGTH}, at which diffusers tells text and image apart"
            )
