"""Guidance distillation: its target, its start, and what the student is told."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.catalog.registry import Registry
from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.flow import velocity_from_denoised
from pipelines.sampling.prompt import Prompt
from tests.trainers.toys import KnowsGaussian, Toy, rng, toy_batch
from trainers.algorithms import cfg_distill
from trainers.networks.build import build_roles
from trainers.networks.models import load_models
from trainers.networks.role import BuiltRole
from trainers.settings.roles import Guidance


class TwoPass(Toy):
    """negative + scale * (positive - negative), term by term, times `slip`."""

    embeds_guidance = True

    def __init__(self, teacher: KnowsGaussian, slip: float = 1.0):
        super().__init__()
        self.teacher, self.slip = teacher, slip

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        assert scale is not None
        positive, negative = (
            velocity_from_denoised(noisy, self.teacher.posterior_mean(noisy, sigma, prompt), sigma)
            for prompt in (prompt_embeds, torch.zeros_like(prompt_embeds))
        )
        return negative + self.slip * scale.view(-1, 1, 1, 1, 1) * (positive - negative)


def guidance_loss(student: Toy, teacher: Toy, **settings: Any) -> float:
    config = cfg_distill.Config(**settings)
    method = cfg_distill.Method(config, {"student": student, "teacher": teacher})
    return method.guidance_loss(toy_batch(64), rng()).value.item()


def test_the_target_is_the_two_pass_velocity() -> None:
    teacher = KnowsGaussian(0.5)
    assert guidance_loss(TwoPass(teacher), teacher) == pytest.approx(0, abs=1e-5)
    assert guidance_loss(TwoPass(teacher, slip=1.1), teacher) > 0.1
    assert teacher.with_grad == [False] * 4


def test_at_scale_1_the_target_is_the_teachers_own_velocity_at_one_forward() -> None:
    class Unguided(KnowsGaussian):
        def answer(self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, *_: Any) -> Tensor:
            return super().answer(noisy, sigma, prompt_embeds, None)

    teacher, student = KnowsGaussian(0.5), Unguided(0.5, embeds_guidance=True)
    assert guidance_loss(student, teacher, guidance=Guidance(min_scale=1, max_scale=1)) == 0
    assert teacher.num_forwards == 1
    assert guidance_loss(student, teacher, guidance=Guidance(min_scale=2, max_scale=2)) > 0.1


def test_a_teacher_that_embeds_guidance_is_asked_once_for_the_same_target() -> None:
    teacher = KnowsGaussian(0.5, embeds_guidance=True)
    assert guidance_loss(TwoPass(KnowsGaussian(0.5)), teacher) == pytest.approx(0, abs=1e-5)
    assert teacher.num_forwards == 1


def test_each_sample_has_a_guidance_scale_of_its_own_from_the_whole_range() -> None:
    student = TwoPass(KnowsGaussian(0.5))
    guidance_loss(student, KnowsGaussian(0.5), guidance=Guidance(min_scale=2, max_scale=6))
    (scale,) = student.scales
    assert scale is not None
    assert scale.unique().numel() == 64
    assert 2 <= scale.min() < 2.5 < 5.5 < scale.max() <= 6


def built(config, lora: dict[str, int] | None) -> dict[str, BuiltRole]:
    run = config("cfg_distill", algorithm={"student": {"lora": lora}, "ema": {"decay": 0.5}})
    torch.manual_seed(0)
    return build_roles(run.algorithm, load_models(run, Registry()))


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["own weights", "lora"])
@torch.no_grad()
def test_the_student_starts_as_the_unguided_teacher_at_any_scale(
    lora: dict[str, int] | None, config
) -> None:
    roles = built(config, lora)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 16, 2, 4, 4, generator=generator)
    sigma, prompt = torch.tensor([0.3, 0.9]), Prompt(torch.randn(2, 12, 16, generator=generator))
    teacher, student, ema = (roles[name].call for name in ("teacher", "student", "ema"))
    assert isinstance(teacher, Denoiser)
    assert isinstance(student, Denoiser)
    assert isinstance(ema, Denoiser)
    assert not teacher.embeds_guidance
    expected = teacher.velocity(noisy, sigma, prompt)
    for scale in (1.0, 7.5):
        told = prompt.with_guidance(torch.full((2,), scale))
        assert torch.equal(student.velocity(noisy, sigma, told), expected)
        assert torch.equal(ema.velocity(noisy, sigma, told), expected)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["own weights", "lora"])
def test_the_guidance_embedder_is_trained(lora: dict[str, int] | None, config) -> None:
    student = built(config, lora)["student"]
    names = [name for name in student.trained if "guidance_embedder" in name]
    assert len(names) == 4


@pytest.mark.parametrize(("own", "expected"), [(3.0, 3.0), (0.0, 1.0), (12.0, 8.0)])
def test_the_student_keeps_its_models_solver_and_is_asked_within_the_range_it_learned(
    own: float, expected: float
) -> None:
    roles = {"student": TwoPass(KnowsGaussian(0.0)), "teacher": KnowsGaussian(0.0)}
    method = cfg_distill.Method(cfg_distill.Config(), roles)
    spec = method.sampler(SamplerSpec(num_inference_steps=48, flow_shift=3, guidance_scale=own))
    assert (spec.name, spec.num_inference_steps, spec.flow_shift) == ("unipc", 48, 3)
    assert (spec.guidance_mode, spec.guidance_scale) == ("embedded", expected)
    assert spec.forwards_per_step == 1
