"""What turns prompts, videos and images into numbers and back."""

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    UMT5EncoderModel,
)

from pipelines.geometry import WAN21, Geometry


@dataclass
class PromptEncoder:
    """What turns prompts into embeddings."""

    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    text_length: int
    text_fingerprint: str  # equal where two models encode prompts alike

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, text_length, D]; rows past the text are zero and attended to unmasked.

        Both belong to the checkpoint: Wan was trained so.
        """
        tokens = self.tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        mask = tokens.attention_mask
        embeds = self.text_encoder(tokens.input_ids, mask).last_hidden_state
        return embeds.masked_fill(mask[..., None] == 0, 0)

    def prompt_notes(self, prompt: str) -> tuple[str, ...]:
        """A sentence where the prompt is longer than the model reads."""
        num_tokens = len(self.tokenizer(prompt_clean(prompt)).input_ids)
        if num_tokens <= self.text_length:
            return ()
        return (
            f"the prompt has {num_tokens} tokens, and the model reads the first {self.text_length}",
        )


@dataclass
class VideoCodec:
    """What turns video into latents and back: (F, H, W) below are a video's, (f, h, w) latents'."""

    vae: AutoencoderKLWan  # fp32, as in Wan's own inference, or bf16
    geometry: Geometry = field(default=WAN21, kw_only=True)

    @property
    def device(self) -> torch.device:
        """Where the VAE lies."""
        return next(self.vae.parameters()).device

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, f, h, w] -> video [B, F, 3, H, W] fp32 in [0, 1]."""
        mean, std = self._latent_statistics()
        unscaled = (latents.float() * std + mean).to(self.vae.dtype)
        video = self.vae.decode(unscaled, return_dict=False)[0].float()
        return (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [B, F, 3, H, W] in [0, 1] -> normalised latents [B, C, f, h, w] fp32.

        The posterior's mean, never a sample, as in Wan's own preprocessing.
        """
        pixels = video.transpose(1, 2).to(self.device, torch.float32) * 2 - 1
        return self.normalise(self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode())

    def normalise(self, vae_latents: Tensor) -> Tensor:
        """Latents as the VAE's encoder has them [B, C, f, h, w] -> normalised ones."""
        mean, std = self._latent_statistics()
        return (vae_latents.to(self.device).float() - mean) / std

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.vae.config.latents_mean, device=self.device).view(shape)
        std = torch.tensor(self.vae.config.latents_std, device=self.device).view(shape)
        return mean, std


@dataclass
class ImageEncoder:
    """What image-to-video checkpoints with CLIP see an image through."""

    network: CLIPVisionModel
    processor: CLIPImageProcessor
