"""Progressive distillation against a straight ODE and a Gaussian one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import expand_sigma, sigma_schedule
from pipelines.sampling.prompt import Prompt
from tests.trainers.toys import KnowsGaussian, KnowsLatents, Makes, Toy, rng, toy_batch
from trainers.algorithms import step_distill, step_distill_half
from trainers.settings.roles import Guidance

UNGUIDED = Guidance(min_scale=1, max_scale=1)


def step_loss(student: Toy, teacher: Toy, batch_size: int = 64, **settings: Any) -> float:
    module = step_distill_half if "variant" in settings else step_distill
    config = module.Config(**{"guidance": UNGUIDED, "num_student_steps": 4} | settings)
    method = module.Method(config, {"student": student, "teacher": teacher})
    loss = method.step_loss(toy_batch(batch_size), rng()).value
    return loss.item()


class TwoSteps(Toy):
    """Makes two Euler steps of a teacher in one, on the grid of 2 * num_steps levels."""

    def __init__(self, teacher: Toy, num_steps: int = 4, flow_shift: float = 5.0):
        super().__init__()
        self.teacher = teacher
        self.grid = sigma_schedule(2 * num_steps, flow_shift)

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        first = (self.grid[None] - sigma[:, None]).abs().argmin(1)
        a, b, c = (expand_sigma(self.grid[first + step], noisy) for step in range(3))
        halfway = noisy + (b - a) * self.teacher.velocity(noisy, sigma, Prompt(prompt_embeds))
        second = self.teacher.velocity(halfway, self.grid[first + 1], Prompt(prompt_embeds))
        return (halfway + (c - b) * second - noisy) / (c - a)


def test_on_a_straight_ode_the_target_is_the_teachers_own_velocity() -> None:
    latents = toy_batch(64).latents
    assert latents is not None
    teacher = KnowsLatents(latents)
    assert step_loss(KnowsLatents(latents), teacher) == pytest.approx(0, abs=1e-5)
    assert step_loss(KnowsLatents(latents, 0.5), teacher) == pytest.approx(0.499, abs=1e-3)


def test_on_a_curved_ode_the_target_is_two_steps_of_the_teacher() -> None:
    teacher = KnowsGaussian(1.0)
    assert step_loss(TwoSteps(KnowsGaussian(1.0)), teacher) == pytest.approx(0, abs=1e-6)
    assert step_loss(KnowsGaussian(1.0), teacher) > 1e-2  # one step of the teacher is not enough


def test_the_teachers_grid_has_twice_the_steps_and_its_last_one_ends_in_clean_latents() -> None:
    teacher = KnowsGaussian(0.0)
    step_loss(KnowsGaussian(0.0), teacher, batch_size=200)
    firsts, seconds = (set(sigmas.tolist()) for sigmas in teacher.sigmas)
    grid = sigma_schedule(8, 5.0).tolist()
    assert firsts == set(grid[0:8:2])
    assert seconds == set(grid[1:8:2])  # from the last of them the step goes to grid[8] == 0


def test_the_half_variant_asks_a_right_student_for_about_twice_the_velocity() -> None:
    latents = toy_batch(64).latents
    assert latents is not None

    class Hurries(KnowsLatents):
        def answer(self, *inputs: Any) -> Tensor:
            return self.haste * super().answer(*inputs)

    losses = {}
    for haste in (0.8, 1.0, 1.2):
        student = Hurries(latents)
        student.haste = haste
        losses[haste] = step_loss(student, KnowsLatents(latents), variant="half")
    assert losses[1.0] > 0.1  # a student that is right on the straight ODE is not left alone
    assert losses[1.2] < losses[0.8]  # and is told to hurry
    assert step_loss(KnowsLatents(latents), KnowsLatents(latents), variant="half2") < 1e-5


def test_the_half2_variant_leaves_a_student_that_makes_two_steps_in_one_wrong() -> None:
    teacher = KnowsGaussian(1.0)
    two, one = TwoSteps(KnowsGaussian(1.0)), KnowsGaussian(1.0)
    assert step_loss(two, teacher, variant="half2") > 1e-3

    class OneStepAhead(TwoSteps):
        """What half2 asks for: the teacher's denoised latents one of its steps on."""

        def answer(self, noisy: Tensor, sigma: Tensor, *rest: Any) -> Tensor:
            first = (self.grid[None] - sigma[:, None]).abs().argmin(1)
            a, b = (expand_sigma(self.grid[first + step], noisy) for step in range(2))
            halfway = noisy + (b - a) * self.teacher.velocity(noisy, sigma, Prompt(rest[0]))
            return (noisy - self.teacher(halfway, self.grid[first + 1], Prompt(rest[0]))) / a

    ahead = OneStepAhead(one)
    assert step_loss(ahead, teacher, variant="half2") == pytest.approx(0, abs=1e-6)
    assert step_loss(OneStepAhead(one), teacher) > 1e-3


def test_the_guided_teacher_costs_two_forwards_a_step_or_one_where_guidance_is_embedded() -> None:
    guided = {"guidance": Guidance(min_scale=4, max_scale=4)}
    two_pass, embedding = KnowsGaussian(0.0), KnowsGaussian(0.0, embeds_guidance=True)
    losses = [step_loss(TwoSteps(KnowsGaussian(3.0)), t, **guided) for t in (two_pass, embedding)]
    assert losses == pytest.approx([0, 0], abs=1e-6)  # the prompt moves the mean by 1, so by 4
    assert (two_pass.num_forwards, embedding.num_forwards) == (4, 2)


def test_a_student_that_takes_guidance_learns_a_range_and_another_one_is_refused() -> None:
    wide = {"guidance": Guidance(min_scale=2, max_scale=6)}
    teacher = KnowsGaussian(0.0, embeds_guidance=True)
    student = KnowsGaussian(0.0, embeds_guidance=True)
    step_loss(student, teacher, **wide)
    (scale,) = student.scales
    assert scale is not None
    assert torch.equal(scale, teacher.scales[0])  # type: ignore[arg-type]
    assert 2 <= scale.min() < 3 < 5 < scale.max() <= 6
    with pytest.raises(ValueError, match=r"^algorithm\.guidance: .* must be equal"):
        step_loss(KnowsGaussian(0.0), teacher, **wide)


@pytest.mark.parametrize(
    ("embeds_guidance", "mode", "scale"), [(False, "off", 1), (True, "embedded", 6)]
)
def test_the_student_is_sampled_on_the_grid_it_was_trained_on(
    embeds_guidance: bool, mode: str, scale: float
) -> None:
    latents = torch.zeros(1, 2, 1, 2, 2)
    roles = {"student": Makes(latents, embeds_guidance), "teacher": KnowsGaussian(0.0)}
    guidance = Guidance(min_scale=6, max_scale=6)
    config = step_distill.Config(num_student_steps=4, flow_shift=3.0, guidance=guidance)
    spec = step_distill.Method(config, roles).sampler(SamplerSpec(guidance_scale=3))
    assert (spec.name, spec.num_inference_steps, spec.flow_shift) == ("euler", 4, 3.0)
    assert (spec.guidance_mode, spec.guidance_scale) == (mode, scale)
    assert spec.problem() is None
    trained = sigma_schedule(8, 3.0)[::2]
    assert torch.equal(sigma_schedule(4, spec.flow_shift, spec.sigmas), trained)
