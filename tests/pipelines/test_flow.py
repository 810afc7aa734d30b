import pytest
import torch

from pipelines.sampling.flow import (
    add_noise,
    denoised_from_velocity,
    shift_sigmas,
    sigma_schedule,
    velocity_from_denoised,
)

LEVELS = torch.linspace(0.001, 1, 50, dtype=torch.float64)


@pytest.mark.parametrize("flow_shift", [0.5, 1.0, 3.0, 15.0])
def test_the_shift_by_one_over_k_undoes_that_by_k(flow_shift: float) -> None:
    there_and_back = shift_sigmas(shift_sigmas(LEVELS, flow_shift), 1 / flow_shift)
    torch.testing.assert_close(there_and_back, LEVELS, atol=1e-14, rtol=0)


def test_two_shifts_are_one_by_their_product() -> None:
    twice = shift_sigmas(shift_sigmas(LEVELS, 3.0), 5.0)
    torch.testing.assert_close(twice, shift_sigmas(LEVELS, 15.0), atol=1e-14, rtol=0)


def test_velocity_and_denoised_are_two_views_of_one_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 16, 2, 4, 4)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    noisy = add_noise(latents, noise, sigma)
    torch.testing.assert_close(noisy[2], noise[2])
    velocity = noise - latents
    torch.testing.assert_close(denoised_from_velocity(noisy, velocity, sigma), latents)
    torch.testing.assert_close(velocity_from_denoised(noisy, latents, sigma), velocity)


def test_a_schedule_takes_explicit_levels_before_the_shift_and_ends_in_zero() -> None:
    even = sigma_schedule(4, 5.0)
    listed = sigma_schedule(4, 5.0, sigmas=(1.0, 0.75, 0.5, 0.25))
    assert torch.equal(even, listed)
    assert even.dtype == torch.float32
    assert (even[0], even[-1]) == (1, 0)
