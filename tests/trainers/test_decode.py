"""Latents to pixels with a gradient: equal to the codec's own, with and without the clip."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pipelines.models.codecs import VideoCodec
from trainers.scoring.reward import decode_clip, decode_first_frame


@pytest.fixture(scope="module", params=["whole", "tiny-wan"])
def vae(request: pytest.FixtureRequest, whole_model: Path) -> AutoencoderKLWan:
    """A VAE without patches and TinyWan's, which has them."""
    folder = whole_model if request.param == "whole" else Path("assets/tiny-wan")
    loaded = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
    return loaded.requires_grad_(False).eval()


def latents_for(vae: AutoencoderKLWan, num_frames: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, vae.config.z_dim, num_frames, 4, 4, generator=generator)


def test_the_clip_is_the_codecs_own(vae: AutoencoderKLWan) -> None:
    latents = latents_for(vae)
    assert torch.equal(decode_clip(vae, latents), VideoCodec(vae).decode(latents))


def test_the_first_frame_alone_is_the_first_of_the_clip(vae: AutoencoderKLWan) -> None:
    latents = latents_for(vae)
    alone, whole = decode_first_frame(vae, latents), decode_clip(vae, latents)
    assert alone.shape == (2, 1, *whole.shape[2:])
    torch.testing.assert_close(alone, whole[:, :1], atol=1e-6, rtol=1e-5)


def test_running_the_decoder_again_in_backward_gives_the_same_gradient(
    vae: AutoencoderKLWan,
) -> None:
    gradients = []
    for decode in (decode_first_frame, decode_clip):
        latents = latents_for(vae).requires_grad_()
        decode(vae, latents)[:, 0].square().sum().backward()
        assert latents.grad is not None
        gradients.append(latents.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert gradients[0][:, :, 1:].abs().max() == 0  # later latent frames play no part
