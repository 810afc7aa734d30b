"""Flow-matching arithmetic: the noise schedule and the identities between its quantities.

    noisy_latents = (1 - sigma) * latents + sigma * noise          sigma in [0, 1], 1 is pure noise
    velocity      = noise - latents                                what Wan predicts
    denoised      = noisy_latents - sigma * velocity               the model's estimate of `latents`

Schedules are computed in float64 and handed out in float32; sigma never passes through bfloat16.
Source: Lipman et al. 2023 (arXiv:2210.02747); Esser et al. 2024 (arXiv:2403.03206), eq. 23 for the
shift.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def shift_sigmas(sigma: Tensor, flow_shift: float) -> Tensor:
    """Moves noise levels toward 1: k*s / (1 + (k-1)*s). Two shifts multiply, so 1/k undoes k."""
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def sigma_schedule(
    num_inference_steps: int, flow_shift: float, sigmas: Sequence[float] | None = None
) -> Tensor:
    """Shifted noise levels from high to low, ending in 0. [N+1] fp32.

    `sigmas` are the levels *before* the shift; without them the grid is even, 1, 1-1/N, ..., 1/N.
    The shift is applied exactly once (diffusers' default flow-match grids apply it twice).
    """
    if sigmas is None:
        unshifted = (
            torch.arange(num_inference_steps, 0, -1, dtype=torch.float64) / num_inference_steps
        )
    else:
        unshifted = torch.tensor(sigmas, dtype=torch.float64)
    shifted = shift_sigmas(unshifted, flow_shift)
    return torch.cat([shifted, shifted.new_zeros(1)]).float()


def expand_sigma(sigma: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...] with as many axes as `like`."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The mixture at noise level sigma [B]. Shapes as latents."""
    level = expand_sigma(sigma, latents)
    return (1 - level) * latents + level * noise


def velocity_from_denoised(noisy_latents: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """(noisy - denoised) / sigma; undefined at sigma 0. Shapes as latents, sigma [B]."""
    return (noisy_latents - denoised) / expand_sigma(sigma, noisy_latents)


def denoised_from_velocity(noisy_latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """noisy - sigma * velocity. Shapes as latents, sigma [B]."""
    return noisy_latents - expand_sigma(sigma, noisy_latents) * velocity


def euler_step(noisy_latents: Tensor, velocity: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """One step of the ODE dx / d sigma = velocity, from noise level sigma [B] to target [B]."""
    return noisy_latents + expand_sigma(target - sigma, noisy_latents) * velocity
