import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import sigma_schedule
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import draw_noise, sample, unipc_scheduler

SHAPE = (1, 16, 2, 4, 4)
EMBEDS = torch.zeros(1, 3, 8)


class PointMass:
    """The exact denoiser of data that is one point. Remembers the noise levels it was asked at."""

    def __init__(self, point: Tensor):
        self.point = point
        self.sigmas: list[float] = []

    def __call__(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        self.sigmas.append(float(sigma[0]))
        return self.point


@pytest.fixture
def point() -> Tensor:
    return draw_noise(SHAPE, torch.Generator().manual_seed(7))


@pytest.fixture
def noise() -> Tensor:
    return draw_noise(SHAPE, torch.Generator().manual_seed(8))


def spec(name: str, steps: int = 4, shift: float = 5.0, **more: object) -> SamplerSpec:
    fields = {"name": name, "num_inference_steps": steps, "flow_shift": shift, **more}
    return SamplerSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("steps", "shift", "sigmas", "timesteps"),
    [
        (4, 5.0, [0.999999, 0.937578, 0.833611, 0.625936, 0], [999, 937, 833, 625]),
        (
            5,
            7.0,
            [0.999999, 0.965559, 0.913176, 0.823892, 0.637518, 0],
            [999, 965, 913, 823, 637],
        ),
        (3, 15.0, [0.999999, 0.967789, 0.882664, 0], [999, 967, 882]),
    ],
)
def test_unipc_has_the_grid_that_diffusers_publishes(
    steps: int, shift: float, sigmas: list[float], timesteps: list[int]
) -> None:
    scheduler = unipc_scheduler(spec("unipc", steps, shift))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(sigmas), atol=2e-6, rtol=0)
    assert scheduler.timesteps.tolist() == timesteps


def test_unipc_shifts_explicit_sigmas_once() -> None:
    levels = (1.0, 0.75, 0.5, 0.25)
    scheduler = unipc_scheduler(spec("unipc", sigmas=levels))
    expected = torch.tensor([0.999999, 0.9375, 0.833333, 0.625, 0])
    torch.testing.assert_close(scheduler.sigmas, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(5.0, [1, 0.9375, 0.833333, 0.625, 0]), (8.0, [1, 0.96, 0.888889, 0.727273, 0])],
)
def test_the_even_grid_is_shifted_once_and_diffusers_default_is_not_it(
    shift: float, expected: list[float]
) -> None:
    ours = sigma_schedule(4, shift)
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-6, rtol=0)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(4)  # shifts a table that is shifted already
    assert (theirs.sigmas - ours).abs().max() > 0.02
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(theirs.sigmas, ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["unipc", "euler", "lcm"])
@pytest.mark.parametrize("sigmas", [None, (1.0, 0.6, 0.3, 0.1)])
def test_every_sampler_ends_at_what_the_model_predicts(
    name: str, sigmas: tuple[float, ...] | None, point: Tensor, noise: Tensor
) -> None:
    model = PointMass(point)
    steps = list(sample(spec(name, sigmas=sigmas), model, noise, EMBEDS, torch.Generator()))
    assert len(steps) == len(model.sigmas) == 4
    # UniPC shows the model its timestep cut to a whole number, so its velocity is 0.15 % off.
    tolerance = 1e-2 if name == "unipc" else 1e-5
    torch.testing.assert_close(steps[-1], point, atol=tolerance, rtol=0)


def test_unipc_shows_the_model_whole_timesteps(point: Tensor, noise: Tensor) -> None:
    model = PointMass(point)
    list(sample(spec("unipc"), model, noise, EMBEDS, torch.Generator()))
    assert [sigma * 1000 for sigma in model.sigmas] == pytest.approx([999, 937, 833, 625])


def test_unipc_refuses_a_shift_that_leaves_no_noise_to_the_last_step(
    point: Tensor, noise: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"flow_shift 0.01 .* use euler"):
        next(sample(spec("unipc", 50, 0.01), PointMass(point), noise, EMBEDS, torch.Generator()))


def test_euler_follows_the_straight_path_to_a_point(point: Tensor, noise: Tensor) -> None:
    steps = sample(spec("euler"), PointMass(point), noise, EMBEDS, torch.Generator())
    for latents, sigma in zip(steps, sigma_schedule(4, 5.0)[1:], strict=True):
        expected = (1 - sigma) * point + sigma * noise
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_lcm_adds_new_noise_from_its_generator_after_every_step_but_the_last(
    point: Tensor, noise: Tensor
) -> None:
    steps = list(
        sample(spec("lcm"), PointMass(point), noise, EMBEDS, torch.Generator().manual_seed(3))
    )
    generator = torch.Generator().manual_seed(3)
    for latents, sigma in zip(steps[:-1], sigma_schedule(4, 5.0)[1:-1], strict=True):
        expected = (1 - sigma) * point + sigma * draw_noise(SHAPE, generator)
        torch.testing.assert_close(latents, expected)
    assert torch.equal(steps[-1], point)
