"""Figures of a video that need no reference: what people otherwise look for by eye."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
NEAR_BLACK, NEAR_WHITE = 0.02, 0.98
STILL = 0.0005  # an eighth of a grey level: of TinyWan's frame pairs 1.5 % change less
THUMBNAIL = (8, 16, 16)  # frames, height, width
Figures = dict[str, float]


def luminance(video: Tensor) -> Tensor:
    """[B, F, C, H, W] -> [B, F, H, W]."""
    weights = torch.tensor(LUMA, device=video.device).view(1, 1, 3, 1, 1)
    return (video.float() * weights).sum(2)


def clipped_share(video: Tensor) -> Tensor:
    """Share of the pixels that are black or white, where exposure has cut detail off. [B]."""
    luma = luminance(video)
    return ((luma <= NEAR_BLACK) | (luma >= NEAR_WHITE)).float().mean((1, 2, 3))


def saturation(video: Tensor) -> Tensor:
    """Mean of max(R, G, B) - min(R, G, B), which, unlike HSV's, is stable in the dark. [B]."""
    return (video.amax(2) - video.amin(2)).float().mean((1, 2, 3))


def contrast(video: Tensor) -> Tensor:
    """Standard deviation of a frame's luminance (RMS contrast), mean over frames. [B]."""
    return luminance(video).flatten(2).std(2, correction=0).mean(1)


def static_share(video: Tensor) -> Tensor:
    """Share of neighbouring frames that are the same picture. [B]; 1 for a single frame."""
    return _changes(video).lt(STILL).float().mean(1)


def motion(video: Tensor) -> Tensor:
    """Mean change of luminance from frame to frame. [B]; 0 for a single frame."""
    return _changes(video).mean(1)


def diversity(thumbnails: Tensor) -> Tensor:
    """Mean distance between the clips of one prompt. [S, ...], S seeds of at least 2 -> scalar."""
    distances = torch.pdist(thumbnails.float().flatten(1), p=1)
    return distances.mean() / thumbnails[0].numel()


def thumbnail(video: Tensor) -> Tensor:
    """What `diversity` compares: layout and colours, no grain. [B, 3, 8, 16, 16]."""
    return functional.adaptive_avg_pool3d(video.float().transpose(1, 2), THUMBNAIL)


FIGURES: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped_share": clipped_share,
    "static_share": static_share,
    "saturation": saturation,
    "contrast": contrast,
    "motion": motion,
}


def _changes(video: Tensor) -> Tensor:
    """Mean absolute change of luminance between neighbouring frames. [B, F - 1], at least one."""
    luma = luminance(video)
    if luma.shape[1] == 1:
        luma = luma.expand(-1, 2, -1, -1)
    return luma.diff(dim=1).abs().mean((2, 3))
