"""DiffusionNFT and Flash-GRPO: groups, ratios, contrasts, and the way that rewards point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.sampling.flow import sigma_schedule, velocity_from_denoised
from tests.trainers.runs import read_jsonl, trainer
from tests.trainers.test_draft import Mean, spec
from tests.trainers.toys import Toy, rng, toy_batch
from trainers.algorithm import Algorithm
from trainers.algorithms import flash_grpo, nft
from trainers.losses import group_advantages


class Shifts(Toy):
    """denoised = 0.8 * noisy latents + shift: noise matters, and one number moves all."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        return velocity_from_denoised(noisy, 0.8 * noisy + self.shift, sigma)


SAMPLERS = {nft: spec("lcm", 2), flash_grpo: spec("euler", 4)}


def method(
    module: Any, old: float = 0.0, score: Any = None, student: Toy | None = None, **settings: Any
) -> Algorithm[Any]:
    config = module.Config.model_validate({"group_size": 4} | settings)
    roles = {"student": student or Shifts(), "old": Shifts(old), "teacher": Shifts()}
    return module.Method(config, roles, score or Mean(), SAMPLERS[module])


def loss_of(built: Any, seed: int = 0, batch_size: int = 8) -> Any:
    (update,) = built.updates(0)
    return update.loss(toy_batch(batch_size), rng(seed))


# ---------------------------------------------------------------- groups


def test_the_advantages_of_a_group_sum_to_zero_and_have_one_spread() -> None:
    rewards = torch.randn(24, generator=torch.Generator().manual_seed(0))
    rewards = rewards + torch.arange(4).repeat_interleave(6) * 100  # harder and easier prompts
    found = group_advantages(rewards, 6)
    torch.testing.assert_close(found.view(4, 6).sum(1), torch.zeros(4), atol=1e-4, rtol=0)
    assert found.square().mean().sqrt().item() == pytest.approx(1, rel=1e-3)
    assert torch.equal(group_advantages(torch.full((8,), 3.0), 4), torch.zeros(8))


@pytest.mark.parametrize("module", [nft, flash_grpo], ids=["nft", "flash_grpo"])
def test_the_videos_of_a_group_are_of_one_prompt_and_lie_together(module: Any) -> None:
    seen: list[tuple[str, ...]] = []

    def note(latents: Tensor) -> Tensor:
        return latents

    class Notes(Mean):
        def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
            seen.append(prompts)
            return super().__call__(latents, prompts)

    loss_of(method(module, score=Notes(note)), batch_size=2)
    assert seen == [("prompt 0",) * 4 + ("prompt 1",) * 4]


@pytest.mark.parametrize("module", [nft, flash_grpo], ids=["nft", "flash_grpo"])
@pytest.mark.parametrize("direction", [1, -1])
def test_descent_moves_the_student_toward_the_reward(module: Any, direction: int) -> None:
    student = Shifts()
    score = Mean(lambda latents: direction * latents)
    loss_of(method(module, student=student, score=score), batch_size=64).value.backward()
    assert student.shift.grad is not None
    assert student.shift.grad.item() * direction < 0


@pytest.mark.parametrize("module", [nft, flash_grpo], ids=["nft", "flash_grpo"])
def test_equal_rewards_teach_nothing_before_the_first_update(module: Any) -> None:
    student = Shifts()
    score = Mean(torch.zeros_like)
    loss_of(method(module, student=student, score=score)).value.backward()
    assert student.shift.grad is not None
    assert student.shift.grad.item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- NFT


def test_the_two_implicit_policies_differ_as_soon_as_the_student_leaves_the_old_one() -> None:
    assert loss_of(method(nft)).metrics["contrast"].item() == 0
    level_one_half = loss_of(method(nft, student=Shifts(0.1)))
    # v+ - v- is 2 beta (v_S - v_old), and v differs by -0.1 / sigma at level sigma, 1 or 0.75.
    assert 0.2 < level_one_half.metrics["contrast"].item() < 0.2 / 0.75 + 1e-6


def test_an_old_student_that_lags_behind_leaves_a_contrast_in_a_run(config, tmp_path: Path) -> None:
    algorithm = {
        "student": {"learning_rate": 1e-2, "lora": {"rank": 2}},
        "old": {"decay": 0.5},
        "group_size": 2,
    }
    assert trainer(config("nft", num_steps=3, algorithm=algorithm), tmp_path).train()
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert lines[0]["student/contrast"] == 0
    assert lines[1]["student/contrast"] > 0
    assert lines[-1]["student/lora_norm"] > 0
    assert {"student/reward", "student/kl"} <= lines[-1].keys()


def test_optimality_is_one_half_for_the_mean_and_ends_at_the_clip() -> None:
    built: Any = method(nft, clip_range=1.0)
    found = built._optimality(torch.tensor([0.0, 0.0, 0.0, 4.0, 1.0, 1.0, 1.0, 1.0]))
    assert found[3].item() == 1
    assert found[4:].tolist() == pytest.approx([0.5] * 4)


def test_videos_are_made_and_learned_at_the_levels_of_the_rollouts_own_sampler() -> None:
    sampler = spec("euler", 3)
    built: Any = method(nft, sampler=sampler.model_dump())
    loss_of(built)
    assert built.roles["old"].num_forwards == 3 + built.config.num_levels
    levels = built._levels(torch.zeros(60), rng())
    shown = sigma_schedule(3, sampler.flow_shift, None)[:-1]
    assert sorted(set(levels.tolist())) == sorted(shown.tolist())


# ---------------------------------------------------------------- Flash-GRPO


def test_every_ratio_is_one_before_the_first_update_and_none_after() -> None:
    assert loss_of(method(flash_grpo)).metrics["ratio_distance"].item() == 0
    assert loss_of(method(flash_grpo, student=Shifts(0.1))).metrics["ratio_distance"].item() > 0


def test_one_step_of_each_video_is_stochastic_and_the_same_for_all() -> None:
    built: Any = method(flash_grpo)
    batch = toy_batch(2).repeated(4)
    steps = set()
    for seed in range(12):
        decision, latents = built._rollout(batch, rng(seed))
        steps.add(round(decision.sigma, 4))
        assert decision.before.shape == decision.after.shape == latents.shape
        old = built.roles["old"]
        assert old.num_forwards == 4
        old.seen.clear()
    assert steps == {1.0}  # of 4 steps only the first lies in the first half of all but the last


def test_the_weight_is_one_over_the_size_of_the_derivative_of_the_log_density() -> None:
    built: Any = method(flash_grpo)
    batch, sigma, next_sigma = toy_batch(1).repeated(4), 0.9, 0.75
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(4, *batch.latent_shape, generator=generator)
    noise = torch.randn(before.shape, generator=generator)
    velocity = built._velocity("old", batch, before, sigma).detach().requires_grad_()
    mean, deviation = built._transition(before, velocity, sigma, next_sigma)
    after = (mean + deviation * noise).detach()
    log_density = -(after - mean).square().sum() / (2 * deviation**2)
    (derivative,) = torch.autograd.grad(log_density, velocity)
    size = (derivative / noise).abs()
    torch.testing.assert_close(size, torch.full_like(size, 1 / built.weight(sigma, next_sigma)))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (spec("lcm", 4), "algorithm.sampler.name is lcm .* set it to euler"),
        (spec("euler", 1), "algorithm.sampler.num_inference_steps is 1"),
    ],
)
def test_a_sampler_without_a_step_to_decide_is_refused(sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(flash_grpo, sampler=sampler.model_dump())
