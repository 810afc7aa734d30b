"""Consistency distillation against a straight ODE and a Gaussian one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.sampling.flow import expand_sigma, sigma_schedule
from pipelines.sampling.prompt import Prompt
from tests.trainers.toys import KnowsGaussian, KnowsLatents, Makes, Toy, rng, toy_batch
from trainers.algorithms import consistency
from trainers.settings.roles import Guidance

UNGUIDED = Guidance(min_scale=1, max_scale=1)


def consistency_loss(student: Toy, teacher: Toy, target: Toy, **settings: Any) -> float:
    config = consistency.Config(**{"guidance": UNGUIDED, "num_teacher_steps": 8} | settings)
    roles = {"student": student, "teacher": teacher, "target": target}
    return consistency.Method(config, roles).consistency_loss(toy_batch(64), rng()).value.item()


def straight(offset: float = 0.0) -> KnowsLatents:
    latents = toy_batch(64).latents
    assert latents is not None
    return KnowsLatents(latents, offset)


class Nonsense(Toy):
    """A target that spoils the loss where it is read, at level 0 too: 0 * inf is no number."""

    def answer(self, noisy: Tensor, *rest: Any) -> Tensor:
        return torch.full_like(noisy, torch.inf)


class WholePath(Toy):
    """Follows the Euler path of a teacher to its end: the consistency function itself."""

    def __init__(self, teacher: Toy, num_steps: int = 8):
        super().__init__()
        self.teacher, self.grid = teacher, sigma_schedule(num_steps, 5.0)

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        place = (self.grid[None] - sigma[:, None]).abs().argmin(1)
        end = noisy
        for here in range(len(self.grid) - 1):
            level, ahead = self.grid[here], self.grid[here + 1]
            levels = level.expand(noisy.shape[0])
            moved = end + (ahead - level) * self.teacher.velocity(
                end, levels, Prompt(prompt_embeds)
            )
            end = torch.where(expand_sigma(place <= here, noisy), moved, end)
        return (noisy - end) / expand_sigma(sigma, noisy).clamp_min(1e-9)


@pytest.mark.parametrize("num_skipped_steps", [1, 3])
def test_on_a_straight_ode_every_point_already_leads_to_the_latents(num_skipped_steps: int) -> None:
    skipped = {"num_skipped_steps": num_skipped_steps}
    assert consistency_loss(straight(), straight(), straight(), **skipped) < 1e-5
    assert consistency_loss(straight(0.5), straight(), straight(), **skipped) > 0.1


def test_the_end_of_the_teachers_path_is_the_one_function_without_loss() -> None:
    teacher = KnowsGaussian(1.0)
    right = WholePath(KnowsGaussian(1.0))
    assert consistency_loss(right, teacher, WholePath(KnowsGaussian(1.0))) < 1e-5
    own = KnowsGaussian(1.0)
    assert consistency_loss(own, teacher, KnowsGaussian(1.0)) > 1e-3  # a mean is not the path's end


def test_at_the_last_level_the_anchor_is_the_clean_end_and_the_target_is_not_read() -> None:
    whole = {"num_skipped_steps": 8}  # every pair ends at level 0
    assert consistency_loss(straight(), straight(), Nonsense(), **whole) < 1e-5
    assert consistency_loss(straight(), straight(), Nonsense(), num_skipped_steps=7) == torch.inf


def test_every_level_is_trained_and_the_target_stands_the_skipped_steps_further_on() -> None:
    student, teacher, target = KnowsGaussian(0.0), KnowsGaussian(0.0), KnowsGaussian(0.0)
    consistency_loss(student, teacher, target, num_skipped_steps=2)
    grid = sigma_schedule(8, 5.0)
    place = (grid[None] - student.sigmas[0][:, None]).abs().argmin(1)
    assert set(place.tolist()) == set(range(7))
    assert torch.equal(target.sigmas[0], grid[place + 2])
    assert teacher.num_forwards == 2
    assert (student.with_grad, target.with_grad) == ([True], [False])
    assert teacher.with_grad == [False, False]


def test_the_path_is_the_guided_teachers_at_one_forward_where_it_embeds_guidance() -> None:
    guided = {"guidance": Guidance(min_scale=4, max_scale=4)}
    right = WholePath(KnowsGaussian(3.0)), WholePath(KnowsGaussian(3.0))
    for embeds_guidance, num_forwards in ((False, 2), (True, 1)):
        teacher = KnowsGaussian(0.0, embeds_guidance=embeds_guidance)
        assert consistency_loss(right[0], teacher, right[1], **guided) < 1e-5
        assert teacher.num_forwards == num_forwards


def test_a_student_that_embeds_guidance_and_its_target_are_told_the_same_scale() -> None:
    student, teacher, target = (KnowsGaussian(0.0, embeds_guidance=True) for _ in range(3))
    wide = {"guidance": Guidance(min_scale=2, max_scale=6)}
    consistency_loss(student, teacher, target, **wide)
    assert torch.equal(student.scales[0], target.scales[0])  # type: ignore[arg-type]
    assert torch.equal(student.scales[0], teacher.scales[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^algorithm\.guidance: .* must be equal"):
        consistency_loss(Makes(torch.zeros(64, 2, 1, 2, 2)), teacher, target, **wide)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": None}, "target"),
        ({"num_teacher_steps": 4, "num_skipped_steps": 5}, "num_skipped_steps is 5 but the grid"),
    ],
)
def test_what_would_be_no_consistency_model_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        consistency.Config.model_validate(settings)
