"""A small decoder for quick looks: rough frames in a fraction of the VAE's time and memory.

The decoder of TAEHV for Wan2.1 (taew2_1, github.com/madebyollin/taehv): 2-D convolutions on single
frames, and blocks that also see the frame before. It takes normalised latents as the transformer
has them and gives pixels in [0, 1]. Left out: its encoder, and decoding all frames at once, which
is faster and takes memory by the length of the video.
"""

import inspect
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from pipelines.files.preview_decoder import (
    GROWTH,
    NUM_BLOCKS,
    NUM_LATENT_CHANNELS,
    WIDTHS,
    check_preview_decoder,
    preview_shapes,
)
from pipelines.formats.weights import open_weights
from pipelines.models.codecs import VideoCodec

BOUND = 3.0  # latents are squashed to within it
NUM_WARM_UP = 3  # frames that the first latent gives too many: it stands for one frame


class Squash(nn.Module):
    """Keeps latents within the range that the decoder was trained on."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / BOUND) * BOUND


class MemoryBlock(nn.Module):
    """A residual block that also sees the frame before, in the same layer."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width),
            nn.ReLU(),
            _conv(width, width),
            nn.ReLU(),
            _conv(width, width),
        )

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """frames [F, C, H, W] after the frame `before` [1, C, H, W]."""
        earlier = torch.cat([before, frames[:-1]])
        return torch.relu(self.conv(torch.cat([frames, earlier], dim=1)) + frames)


class TimeGrowth(nn.Module):
    """Makes `growth` frames of each."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.growth = growth
        self.conv = nn.Conv2d(width, growth * width, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        grown = self.conv(frames)
        return grown.unflatten(1, (self.growth, -1)).flatten(0, 1)


class PreviewDecoder(nn.Module):
    """The layers by their numbers in the file; `note` tells a user what a clip was decoded by."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Squash(), _conv(NUM_LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
        for (width, next_width), growth in zip(pairwise(WIDTHS), GROWTH, strict=True):
            layers += [MemoryBlock(width) for _ in range(NUM_BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), TimeGrowth(width, growth)]
            layers += [_conv(width, next_width, bias=False)]
        layers += [nn.ReLU(), _conv(WIDTHS[-1], 3)]
        self.decoder = nn.Sequential(*layers)
        self.note = "Decoded by a preview decoder: rougher than what the VAE makes of it."

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [1, C, F, H, W] -> video [1, 4F-3, 3, 8H, 8W] fp32 in [0, 1].

        One latent frame after the other, so that memory does not grow with the length.
        """
        weight = next(self.parameters())
        memory: dict[int, Tensor] = {}
        frames = [
            self._decode_frame(frame[None], memory)
            for frame in latents[0].to(weight.device, weight.dtype).unbind(1)
        ]
        return torch.cat(frames)[NUM_WARM_UP:].float().clamp(0, 1)[None]

    def _decode_frame(self, frames: Tensor, memory: dict[int, Tensor]) -> Tensor:
        """One latent frame [1, C, H, W] -> 4 frames; `memory` is what each block saw last."""
        for index, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                before = memory.get(index, torch.zeros_like(frames[-1:]))
                memory[index] = frames[-1:]
                frames = layer(frames, before)
            else:
                frames = layer(frames)
        return frames


def _conv(before: int, after: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)


def load_preview_decoder(file: Path, device: str, dtype: torch.dtype) -> PreviewDecoder:
    """The decoder of a TAEHV file, frozen. ValueError in one sentence for any other file."""
    check_preview_decoder(file)
    stored = open_weights([file]).tensors
    decoder = PreviewDecoder()
    decoder.load_state_dict({name: stored[name].read() for name in preview_shapes()})
    return decoder.requires_grad_(False).eval().to(device, dtype)


def has_wan_latents(codec: VideoCodec) -> bool:
    """Whether a model's latents are those of Wan2.1's own VAE, which preview decoders read."""
    published = inspect.signature(AutoencoderKLWan.__init__).parameters
    return all(
        list(codec.vae.config[name]) == list(published[name].default)
        for name in ("latents_mean", "latents_std")
    )


def require_wan_latents(codec: VideoCodec, model: str) -> None:
    """ValueError where a preview decoder cannot read the model's latents."""
    if not has_wan_latents(codec):
        raise ValueError(
            f"preview_decoder: it reads latents of Wan2.1's own VAE, and {model} has another VAE; "
            "leave it out"
        )
