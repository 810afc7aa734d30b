"""DMD2 against cases solved by hand: Gaussian data, analytic teacher and critic."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.sampling.prompt import Prompt
from tests.trainers.toys import KnowsGaussian, Makes, Toy, rng, toy_batch
from trainers.algorithms import dmd2, dmd2_wanx
from trainers.networks.role import DiscriminatorHead

STD = 0.5
HALF_NOISE = {"min_sigma": 0.5, "max_sigma": 0.5}  # one noise level, so that it is known
COLUMNS = {"module": dmd2_wanx, "normaliser": "column", "shared_noise": True}
OWN_NOISE = {"module": dmd2_wanx, "normaliser": "sample", "shared_noise": False}
SHRINK = 0.5**2 / (0.25 * STD**2 + 0.5**2)  # what is left of a shift of the mean at that level


def method(student: Toy, teacher: Toy, critic: Toy, score: Any = None, **settings: Any):
    module = settings.pop("module", dmd2)
    config = module.Config.model_validate({"guidance_scale": 1} | HALF_NOISE | settings)
    roles = {"student": student, "teacher": teacher, "critic": critic}
    if config.discriminator is not None:
        roles["discriminator"] = DiscriminatorHead(2)
    return module.Method(config, roles, score)


def student_gradient(student: Makes, *networks: Toy, seed: int = 0, **settings: Any) -> Tensor:
    """d loss / d latents times their number: delta / scale where everything is right."""
    batch_size, _, _, _, width = student.latents.shape
    student.latents.grad = None
    built = method(student, *networks, **settings)
    built.student_loss(toy_batch(batch_size, width), rng(seed)).value.backward()
    assert student.latents.grad is not None
    return student.latents.grad * student.latents.numel()


def made(batch_size: int = 3, width: int = 4) -> Makes:
    batch = toy_batch(batch_size, width, seed=3)
    assert batch.latents is not None
    return Makes(batch.latents)


def test_the_gradient_is_the_closed_form_for_gaussian_data() -> None:
    student, teacher, critic = made(), KnowsGaussian(1.0), KnowsGaussian(0.25)
    found = student_gradient(student, teacher, critic)
    # Equal spread: the difference of the posterior means is (0.25 - 1.0) * SHRINK everywhere.
    denoised = teacher.posterior_mean(teacher.seen[0], teacher.sigmas[0], torch.ones(3, 3, 4))
    scale = (student.latents - denoised).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(found, ((0.25 - 1.0) * SHRINK / scale).expand_as(found))


def test_the_gradient_is_the_difference_of_the_scores_where_spreads_differ_too() -> None:
    student = made(batch_size=500)
    teacher, critic = KnowsGaussian(1.0, std=0.3), KnowsGaussian(0.25, std=0.8)
    found = student_gradient(student, teacher, critic)
    noisy = teacher.seen[0]
    assert (2 * noisy - student.latents).std().item() == pytest.approx(1, abs=0.04)  # the noise

    def score(mean: float, std: float) -> Tensor:  # of N(mean, std^2) at level 1/2
        return (0.5 * mean - noisy) / (0.25 * std**2 + 0.25)

    # Tweedie: (1 - s) * denoised = noisy + s^2 * score; the prompt adds 1 to the mean.
    teacher_denoised = (noisy + 0.25 * score(2.0, 0.3)) / 0.5
    delta = 0.25 / 0.5 * (score(1.25, 0.8) - score(2.0, 0.3))
    scale = (student.latents - teacher_denoised).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(found, delta / scale, rtol=1e-4, atol=1e-5)


def test_the_gradient_leads_from_the_students_distribution_to_the_teachers() -> None:
    student = made()
    found = student_gradient(student, KnowsGaussian(1.0), KnowsGaussian(0.25))
    assert (found < 0).all()  # descent makes the latents larger, toward the teacher's mean


def spread(values: Tensor) -> float:
    return (values.max() - values.min()).item()


@pytest.mark.parametrize("flaw", [{}, COLUMNS])
def test_critic_and_teacher_that_agree_give_exactly_zero(flaw: dict[str, Any]) -> None:
    found = student_gradient(made(), KnowsGaussian(0.3), KnowsGaussian(0.3), **flaw)
    assert torch.equal(found, torch.zeros_like(found))


def test_the_normaliser_is_one_number_a_sample_and_column_is_one_a_column() -> None:
    per_sample = student_gradient(made(), KnowsGaussian(1.0), KnowsGaussian(0.25))
    assert all(spread(sample) < 1e-5 for sample in per_sample)
    assert spread(per_sample[:, 0, 0, 0, 0]) > 1e-2
    columns = student_gradient(made(), KnowsGaussian(1.0), KnowsGaussian(0.25), **COLUMNS)
    assert all(spread(column) < 1e-5 for column in columns[0].unbind(-1))
    assert all(spread(sample[0, 0, 0]) > 1e-2 for sample in columns)


def test_teacher_and_critic_see_the_same_noise_unless_told_otherwise() -> None:
    teacher, critic = KnowsGaussian(0.3), KnowsGaussian(0.3)
    student_gradient(made(), teacher, critic)
    assert torch.equal(teacher.seen[0], critic.seen[0])
    teacher, critic = KnowsGaussian(0.3), KnowsGaussian(0.3)
    found = student_gradient(made(), teacher, critic, **OWN_NOISE)
    assert not torch.equal(teacher.seen[0], critic.seen[0])
    assert found.abs().mean() > 0.1  # the flaw: noise where there is nothing to learn


def test_shared_noise_makes_the_difference_the_same_for_every_draw() -> None:
    def differences(**settings: Any) -> list[Tensor]:
        found = []
        for seed in range(2):
            student, teacher, critic = made(), KnowsGaussian(1.0), KnowsGaussian(0.25)
            gradient = student_gradient(student, teacher, critic, seed=seed, **settings)
            denoised = teacher(teacher.seen[0], teacher.sigmas[0], Prompt(torch.ones(3, 3, 4)))
            scale = (student.latents - denoised).abs().mean((1, 2, 3, 4), keepdim=True)
            found.append((gradient * scale).detach())
        return found

    torch.testing.assert_close(*differences())
    apart = differences(**OWN_NOISE)
    assert (apart[0] - apart[1]).abs().mean() > 0.1


def test_the_teacher_is_guided_in_the_standard_form() -> None:
    student, teacher, critic = made(), KnowsGaussian(0.0), KnowsGaussian(0.0)
    found = student_gradient(student, teacher, critic, guidance_scale=3.0)
    assert teacher.num_forwards == 2
    # The prompt moves the mean by 1, guidance 3 by 3; the critic is not guided.
    prompt = torch.ones(3, 3, 4)
    guided = KnowsGaussian(2.0).posterior_mean(teacher.seen[0], teacher.sigmas[0], prompt)
    scale = (student.latents - guided).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(found, (-2.0 * SHRINK / scale).expand_as(found))


def test_a_teacher_that_embeds_guidance_needs_one_forward_for_the_same_gradient() -> None:
    embedding = KnowsGaussian(0.0, embeds_guidance=True)
    found = student_gradient(made(), embedding, KnowsGaussian(0.0), guidance_scale=3.0)
    assert embedding.num_forwards == 1
    two_pass = student_gradient(made(), KnowsGaussian(0.0), KnowsGaussian(0.0), guidance_scale=3.0)
    torch.testing.assert_close(found, two_pass)


@pytest.mark.parametrize("embeds_guidance", [False, True])
def test_decoupled_guidance_is_the_coupled_gradient_where_both_use_one_noise_level(
    embeds_guidance: bool,
) -> None:
    def difference(**settings: Any) -> Tensor:
        student, critic = made(), KnowsGaussian(0.5)
        teacher = KnowsGaussian(0.0, embeds_guidance=embeds_guidance)
        found = student_gradient(student, teacher, critic, guidance_scale=3.0, **settings)
        guidance = 1.0 if settings else 3.0
        denoised = KnowsGaussian(guidance - 1).posterior_mean(
            teacher.seen[0], teacher.sigmas[0], torch.ones(3, 3, 4)
        )
        return found * (student.latents - denoised).abs().mean((1, 2, 3, 4), keepdim=True)

    # For Gaussians guidance adds the same at every noise, so the draws may differ.
    torch.testing.assert_close(difference(), difference(decoupled_guidance=HALF_NOISE))
    elsewhere = difference(decoupled_guidance={"min_sigma": 0.9, "max_sigma": 0.9})
    assert (difference() - elsewhere).abs().mean() > 0.1


def test_the_critic_learns_by_flow_matching_and_sends_nothing_to_the_student() -> None:
    student = made(batch_size=4000, width=1)
    with torch.no_grad():
        student.latents.copy_(STD * torch.randn(student.latents.shape))
    losses = {
        mean: method(student, KnowsGaussian(0.0), KnowsGaussian(mean - 1.0))
        .critic_loss(toy_batch(4000, 1), rng())
        .value.item()
        for mean in (-0.5, 0.0, 0.5)
    }  # the prompt adds 1 to the mean
    assert min(losses, key=losses.__getitem__) == 0.0
    # At the optimum what is left is Var(noise - latents | noisy) = std^2 / (0.25 std^2 + 0.25).
    assert losses[0.0] == pytest.approx(STD**2 / (0.25 * STD**2 + 0.25), rel=0.05)
    assert student.with_grad == [False] * len(student.with_grad)


def test_the_reward_weighs_samples_by_its_exponential() -> None:
    rewards = torch.tensor([0.0, 1.0, -2.0])
    seen: list[tuple[str, ...]] = []

    def score(latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        assert not latents.requires_grad
        seen.append(prompts)
        return rewards

    networks = KnowsGaussian(1.0), KnowsGaussian(0.25)
    plain = student_gradient(made(), *networks)
    weighed = student_gradient(made(), *networks, score=score, reward={"beta": 0.5})
    torch.testing.assert_close(weighed, plain * torch.exp(0.5 * rewards).view(3, 1, 1, 1, 1))
    assert seen == [("prompt 0", "prompt 1", "prompt 2")]


# ---------------------------------------------------------------- the GAN term

WITH_GAN = {"discriminator": {}, "rollout": "data", "discriminator_weight": 1.0}


def test_the_gan_term_reaches_the_student_through_the_teachers_features() -> None:
    teacher = KnowsGaussian(0.3)
    plain = student_gradient(made(), teacher, KnowsGaussian(0.3), rollout="data")
    fooled = student_gradient(made(), teacher, KnowsGaussian(0.3), **WITH_GAN)
    assert torch.equal(plain, torch.zeros_like(plain))
    assert fooled.abs().max() > 0


def test_the_discriminator_compares_data_and_student_at_the_same_noise_level() -> None:
    class Keeps(KnowsGaussian):
        def features(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
            levels.append(sigma)
            return super().features(noisy_latents, sigma, prompt)

    levels: list[Tensor] = []
    wide = {"min_sigma": 0.02, "max_sigma": 0.98}
    built = method(made(), Keeps(0.0), KnowsGaussian(0.0), **WITH_GAN, **wide)
    loss = built.discriminator_loss(toy_batch(3, 4), rng())
    assert torch.equal(levels[0], levels[1])
    loss.value.backward()
    student = built.roles["student"]
    assert isinstance(student, Makes)
    assert student.latents.grad is None
    assert all(p.grad is not None for p in built.roles["discriminator"].parameters())


def test_a_discriminator_learns_to_tell_data_from_the_student() -> None:
    student = Makes(torch.tensor([3.0, -3.0]).view(1, 2, 1, 1, 1).repeat(64, 1, 1, 2, 1))
    torch.manual_seed(0)  # the head starts from random weights
    settings = {**WITH_GAN, "score_shift": 0.2}  # little noise: the two can be told apart
    built = method(student, KnowsGaussian(0.0), KnowsGaussian(0.0), **settings)
    optimizer = torch.optim.Adam(built.roles["discriminator"].parameters(), lr=1e-2)
    losses = []
    for seed in range(300):
        optimizer.zero_grad()
        loss = built.discriminator_loss(toy_batch(64, 1, seed=seed), rng(seed)).value
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(("mode", "embeds"), [("off", True), ("embedded", False)])
def test_a_sampler_that_does_not_fit_the_students_guidance_is_refused(
    mode: str, embeds: bool
) -> None:
    spec = dmd2.FOUR_STEPS.model_dump() | {"guidance_mode": mode}
    student = Makes(made().latents.detach(), embeds_guidance=embeds)
    with pytest.raises(ValueError, match=rf"^algorithm\.sampler\.guidance_mode is {mode} but"):
        method(student, KnowsGaussian(0.0), KnowsGaussian(0.0), sampler=spec)


def test_the_student_moves_every_few_steps_and_its_followers_every_step() -> None:
    built = method(made(), KnowsGaussian(0.0), KnowsGaussian(0.0), student_every=3, **WITH_GAN)
    moves = [[update.role for update in built.updates(step)] for step in range(4)]
    assert moves[0] == moves[3] == ["student", "critic", "discriminator"]
    assert moves[1] == moves[2] == ["critic", "discriminator"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator": {}}, "discriminator needs encoded videos; set rollout to data"),
        ({"discriminator": {"lora": {}}, "rollout": "data"}, "lora: a discriminator is no copy"),
        ({"min_sigma": 0.9, "max_sigma": 0.1}, "min_sigma 0.9 is above max_sigma 0.1"),
        (
            {"decoupled_guidance": {"min_sigma": 0.9, "max_sigma": 0.1}},
            "min_sigma 0.9 is above max_sigma 0.1",
        ),
        ({"sampler": {"name": "unipc", "guidance_mode": "off"}}, "sampler.name is unipc"),
        ({"sampler": {"name": "lcm"}}, "sampler.guidance_mode: a student runs without"),
        (
            {"sampler": {"name": "lcm", "sigmas": [0.5, 0.75], "num_inference_steps": 2}},
            "sigmas must descend",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dmd2.Config.model_validate(settings)
