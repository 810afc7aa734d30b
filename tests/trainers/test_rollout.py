"""The student's own way through the noise: which steps, which gradients, which noise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import add_noise
from tests.trainers.test_dmd2 import made, method
from tests.trainers.toys import KnowsGaussian, Makes, rng, toy_batch
from trainers.algorithm import Rng
from trainers.algorithms import dmd2
from trainers.rollout import exit_step


def sampler(**settings: Any) -> SamplerSpec:
    return dmd2.FOUR_STEPS.model_copy(update=settings)


def rollout_from(seed: int, **settings: Any) -> tuple[Makes, Tensor]:
    student = made()
    built = method(student, KnowsGaussian(0.0), KnowsGaussian(0.0), **settings)
    latents = built._rollout(toy_batch(3, 4), rng(seed))
    return student, latents


def test_the_rollout_stops_at_the_exit_step_and_only_that_step_has_a_gradient() -> None:
    lengths = set()
    for seed in range(20):
        student, latents = rollout_from(seed)
        last_step = exit_step(dmd2.FOUR_STEPS, rng(seed))
        assert student.num_forwards == last_step + 1
        assert student.with_grad == [False] * last_step + [True]
        assert latents.requires_grad
        lengths.add(student.num_forwards)
    assert lengths == {1, 2, 3, 4}


def test_all_ranks_draw_the_same_exit_step_from_different_noise() -> None:
    ranks = [
        Rng(torch.Generator().manual_seed(rank), torch.Generator().manual_seed(5))
        for rank in range(2)
    ]
    steps = {exit_step(dmd2.FOUR_STEPS, each) for each in ranks}
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("sigmas", "flow_shift", "expected"),
    [
        ((1.0, 0.75, 0.5, 0.25), 5.0, (1.0, 0.9375, 0.833333, 0.625)),
        ((1.0, 0.75, 0.5, 0.25), 8.0, (1.0, 0.96, 0.888889, 0.727273)),
        ((1.0, 0.757, 0.522), 1.0, (1.0, 0.757, 0.522)),
    ],
    ids=["Self-Forcing, warped", "warped by 8", "FastVideo, literal"],
)
def test_warped_and_literal_step_lists_are_those_of_the_published_students(
    sigmas: tuple[float, ...], flow_shift: float, expected: tuple[float, ...]
) -> None:
    spec = {
        "name": "lcm",
        "sigmas": sigmas,
        "flow_shift": flow_shift,
        "num_inference_steps": len(sigmas),
        "guidance_mode": "off",
        "guidance_scale": 1,
    }
    runs = (rollout_from(seed, sampler=spec)[0].sigmas for seed in range(20))
    levels = next(run for run in runs if len(run) == len(sigmas))
    assert [level[0].item() for level in levels] == pytest.approx(expected, abs=1e-5)


def whole_rollout(**settings: Any) -> Makes:
    runs = (rollout_from(seed, **settings)[0] for seed in range(40))
    return next(run for run in runs if run.num_forwards == 4)


def test_renoising_forgets_the_first_noise_and_the_ode_keeps_it() -> None:
    euler = sampler(name="euler").model_dump()
    for settings, keeps in (({}, False), ({"sampler": euler}, True)):
        student = whole_rollout(**settings)
        noises = [
            (noisy - (1 - sigma[0]) * student.latents.detach()) / sigma[0]
            for noisy, sigma in zip(student.seen, student.sigmas, strict=True)
        ]
        same = [torch.allclose(noises[0], noise, atol=1e-4) for noise in noises[1:]]
        assert same == [keeps] * 3


def test_data_mode_noises_videos_to_every_step_of_the_list_with_one_forward() -> None:
    seen = set()
    for seed in range(30):
        student, _ = rollout_from(seed, rollout="data")
        assert student.num_forwards == 1
        seen.add(round(student.sigmas[0][0].item(), 3))
    assert seen == {1.0, 0.938, 0.833, 0.625}  # the last step too, which DMD2_wanx leaves out


def test_data_mode_starts_from_the_batch_and_data_free_mode_reads_none_of_it() -> None:
    batch = toy_batch(3, 4)
    assert batch.latents is not None
    student = whole_rollout()
    assert student.seen[0].shape == batch.latents.shape
    for seed in range(30):
        student, _ = rollout_from(seed, rollout="data")
        sigma = student.sigmas[0]
        if sigma[0] < 0.7:
            noise = rng(seed).randn_like(batch.latents)
            torch.testing.assert_close(student.seen[0], add_noise(batch.latents, noise, sigma))
            return
    raise AssertionError("no rollout reached the last step")


def test_an_embedded_student_is_told_its_guidance_at_every_step() -> None:
    student = Makes(made().latents.detach(), embeds_guidance=True)
    spec = sampler(guidance_mode="embedded", guidance_scale=4.0).model_dump()
    built = method(student, KnowsGaussian(0.0), KnowsGaussian(0.0), sampler=spec)
    built._rollout(toy_batch(3, 4), rng(1))
    assert all(scale is not None and (scale == 4).all() for scale in student.scales)
