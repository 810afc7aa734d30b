"""Latents to pixels with a gradient: `VideoCodec.decode` for losses.

The first frame of a causal VAE depends on the first latent frame alone. So it needs no feature
cache, one decoder call makes it, and that call may be run again in backward instead of being kept.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Normalised latents [B, C, F, H, W] -> video [B, 4F-3, 3, 8H, 8W] fp32 in [0, 1]."""
    decoded = vae.decode(_denormalised(vae, latents), return_dict=False)[0]
    return _pixels(decoded)


def decode_first_frame(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The first frame of `decode_clip` alone. [B, C, F, H, W] -> [B, 1, 3, 8H, 8W]."""
    first = _denormalised(vae, latents[:, :, :1])
    decoded: Tensor = checkpoint(_decode_alone, vae, first, use_reentrant=False)
    return _pixels(decoded.clamp(-1, 1))


def _decode_alone(vae: AutoencoderKLWan, first: Tensor) -> Tensor:
    frame: Tensor = vae.decoder(vae.post_quant_conv(first), first_chunk=True)
    patch_size = vae.config.patch_size
    return frame if patch_size is None else unpatchify(frame, patch_size=patch_size)


def _denormalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    return latents.float() * std + mean


def _pixels(decoded: Tensor) -> Tensor:
    return (decoded / 2 + 0.5).transpose(1, 2)
