"""A fixed feature space for short clips, and the Frechet distance in it.

Nothing is learned or downloaded. 54 numbers a clip: mean and standard deviation of each colour
channel, and, at three scales, the logarithm of the root mean square response of eight random 3x3
filters to the frames (edges, sharpness) and of eight more to the differences between neighbouring
frames (motion, flicker, standing still). The filters come from a fixed seed; random features serve
as well as learned ones far from photographs (Naeem et al. 2020, arXiv:2002.09797). All is averaged
over space and time, so where things happen is not seen; `diversity_ratios` measures that.

For the test captions, 256 clips of 17x64x64 against 512 rendered ones: other rendered clips 0.03,
the autoencoder's copies of them 1.7, TinyWan 2.0; TinyWan's clips with stripes of 5 % 3.6, with
half the contrast 5.4, blurred 3x3 5.9, half as saturated again 14, every fourth frame repeated 15,
3 % noise 19, frames shuffled 97, no motion 369.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

FILTER_SEED = 0
NUM_FILTERS = 8
NUM_SCALES = 3
FLOOR = 0.003  # about one of 255 levels: differences below it are not seen
BATCH_SIZE = 32  # clips
MIN_DEVIATION = 1e-6  # of a feature that the reference never varies


def clip_features(videos: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 videos [N, F, H, W, 3], at least 2 frames of 16x16 -> features [N, 54]."""
    batches = torch.from_numpy(videos).split(BATCH_SIZE)
    features: NDArray[np.float64] = torch.cat([_batch_features(b) for b in batches]).numpy()
    return features


def frechet_distance(features: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. 2017 (arXiv:1706.08500).

    features [N, D] and reference [M, D], both first scaled by the reference's standard deviations
    so that no feature counts for its unit. The trace of the root comes from the eigenvalues of the
    symmetric C2^(1/2) C1 C2^(1/2), which has no imaginary part to throw away.
    """
    scale = reference.std(0) + MIN_DEVIATION
    features, reference = features / scale, reference / scale
    shift = features.mean(0) - reference.mean(0)
    covariance, target = np.cov(features.T), np.cov(reference.T)
    eigenvalues, vectors = np.linalg.eigh(target)
    root = vectors * np.sqrt(eigenvalues.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root).clip(0)).sum()
    return float(shift @ shift + np.trace(covariance) + np.trace(target) - 2 * shared)


def _batch_features(videos: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> fp64 [B, 54]."""
    generator = torch.Generator().manual_seed(FILTER_SEED)
    pixels = videos.float().permute(0, 4, 1, 2, 3) / 255
    features = [pixels.mean((2, 3, 4)), pixels.std((2, 3, 4))]
    for _ in range(NUM_SCALES):
        edges, motion = _random_filters(generator), _random_filters(generator)
        # Without their mean the first are blind to flat colour; of differences that is motion too.
        edges = edges - edges.mean((1, 2, 3, 4), keepdim=True)
        features.append(_responses(pixels, edges))
        features.append(_responses(pixels.diff(dim=2), motion))
        pixels = functional.avg_pool3d(pixels, (1, 2, 2))
    return torch.cat(features, dim=1).double()


def _random_filters(generator: torch.Generator) -> Tensor:
    """Of unit length. [NUM_FILTERS, 3, 1, 3, 3]."""
    filters = torch.randn(NUM_FILTERS, 3, 1, 3, 3, generator=generator)
    return functional.normalize(filters.flatten(1)).view_as(filters)


def _responses(pixels: Tensor, filters: Tensor) -> Tensor:
    """log of the root mean square response. [B, 3, F, H, W] -> [B, NUM_FILTERS]."""
    mean_square = functional.conv3d(pixels, filters).square().mean((2, 3, 4))
    return (mean_square.sqrt() + FLOOR).log()
