"""DRaFT: gradients against full backpropagation and by hand, memory, the KL term, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.recipe import SamplerSpec
from pipelines.sampling.flow import velocity_from_denoised
from pipelines.sampling.samplers import sample
from tests.trainers.toys import KnowsLatents, Toy, rng, toy_batch
from trainers.algorithm import Batch
from trainers.algorithms import draft


class Mean:
    """The mean of the latents, or any function of them, as a reward."""

    differentiable = True

    def __init__(self, function: Any = lambda latents: latents):
        self.function = function

    def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        assert len(latents) == len(prompts)
        found: Tensor = self.function(latents).flatten(1).mean(1)
        return found


class Scales(Toy):
    """denoised = gain * noisy latents."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def answer(
        self, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor, scale: Tensor | None
    ) -> Tensor:
        return velocity_from_denoised(noisy, self.gain * noisy, sigma)


def spec(name: str = "lcm", num_steps: int = 2, **settings: Any) -> SamplerSpec:
    plain = {"guidance_mode": "off", "guidance_scale": 1.0, "flow_shift": 3.0}
    return SamplerSpec.model_validate(
        plain | {"name": name, "num_inference_steps": num_steps} | settings
    )


def method(
    student: Toy,
    own_sampler: SamplerSpec,
    score: Any = None,
    teacher: Toy | None = None,
    **settings: Any,
) -> draft.Method:
    config = draft.Config.model_validate(settings)
    roles = {"student": student, "teacher": teacher or Scales(0.5)}
    return draft.Method(config, roles, score or Mean(), own_sampler)


def gradient(student: Scales, sampler: SamplerSpec, batch: Batch, **settings: Any) -> Tensor:
    """d loss / d gain."""
    student.gain.grad = None
    seed = settings.pop("seed", 0)
    method(student, sampler, **settings).reward_loss(batch, rng(seed)).value.backward()
    assert student.gain.grad is not None
    return student.gain.grad


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_k_equal_to_all_steps_is_full_backpropagation(name: str) -> None:
    sampler, student, batch = spec(name, 4), Scales(0.7), toy_batch(3)
    found = gradient(student, sampler, batch, num_gradient_steps=4)
    student.gain.grad = None
    noise = torch.randn(3, *batch.latent_shape, generator=rng().local)
    *_, latents = sample(sampler, student, noise, batch.require("prompt"), rng().local)
    (-latents.mean()).backward()
    torch.testing.assert_close(found, student.gain.grad)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_gradient_of_two_lcm_steps_is_the_one_by_hand(num_steps: int) -> None:
    gain, student, batch = 0.7, Scales(0.7), toy_batch(3)
    found = gradient(student, spec(), batch, num_gradient_steps=num_steps)
    noises = rng()
    first, second = (torch.randn(3, *batch.latent_shape, generator=noises.local) for _ in range(2))
    level = 0.75  # 1/2, shifted by 3
    # x = gain ((1 - s) gain first + s second): the inner gain counts where its step does.
    by_hand = num_steps * (1 - level) * gain * first + level * second
    torch.testing.assert_close(found, -by_hand.mean())


def test_low_variance_draws_are_unbiased_against_draft_1_and_vary_less() -> None:
    # Two steps at levels 1 and s. With gain^2 = (1 + s) / (1 - s) noisy latents have variance 1 at
    # every level, so the expected gradient of -mean(x^2) is the same for both: -2 gain.
    level = 0.75
    student = Scales(((1 + level) / (1 - level)) ** 0.5)
    score = Mean(lambda latents: -latents.square())
    found: dict[str, list[float]] = {"draft": [], "low variance": []}
    for seed in range(40):
        few = toy_batch(300, seed=seed)
        draws = {"draft": {}, "low variance": {"num_draws": 8}}
        for name, settings in draws.items():
            each = gradient(student, spec(), few, score=score, seed=seed, **settings)
            found[name].append(each.item())
    expected = 2 * student.gain.item()  # of the loss, 1 - r
    spreads = {}
    for name, values in found.items():
        assert sum(values) / len(values) == pytest.approx(expected, rel=0.02), name
        spreads[name] = torch.tensor(values).std()
    assert spreads["low variance"] < 0.8 * spreads["draft"]


def kept_for_backward(num_steps: int, num_gradient_steps: int) -> int:
    """Bytes that autograd keeps for one loss."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        built = method(Scales(0.7), spec("lcm", num_steps), num_gradient_steps=num_gradient_steps)
        loss = built.reward_loss(toy_batch(2, 64), rng()).value
    loss.backward()
    return sum(kept.values())


def test_memory_grows_with_k_and_not_with_the_number_of_steps() -> None:
    assert kept_for_backward(16, 1) == kept_for_backward(2, 1)
    assert kept_for_backward(16, 3) > 1.5 * kept_for_backward(16, 1)


def test_steps_before_the_last_k_carry_no_gradient() -> None:
    student = Scales(0.7)
    method(student, spec("euler", 5), num_gradient_steps=2).reward_loss(toy_batch(1), rng())
    assert student.with_grad == [False] * 3 + [True] * 2


def test_both_losses_have_one_gradient() -> None:
    student, batch = Scales(0.7), toy_batch(3)
    found = {}
    for loss in ("one_minus_reward", "negative_reward"):
        built = method(student, spec(), loss=loss)
        found[loss] = built.reward_loss(batch, rng()).value.item()
    assert found["one_minus_reward"] == pytest.approx(1 + found["negative_reward"])
    assert torch.equal(
        gradient(student, spec(), batch),
        gradient(student, spec(), batch, loss="negative_reward"),
    )


def test_the_kl_term_is_the_square_of_the_distance_between_velocities() -> None:
    batch = toy_batch(2)
    assert batch.latents is not None
    student, teacher = KnowsLatents(batch.latents, offset=0.5), KnowsLatents(batch.latents)
    built = method(student, spec(), teacher=teacher, kl_weight=2.0)
    loss = built.reward_loss(batch, rng())
    assert loss.metrics["kl"].item() == pytest.approx(0.25, abs=1e-5)
    ahead = 1 - loss.metrics["reward"].item()
    assert loss.value.item() == pytest.approx(ahead + 2 * 0.25, abs=1e-5)


def test_the_low_variance_draws_start_at_the_last_level_of_the_sampler() -> None:
    student = Scales(0.7)
    method(student, spec(), num_draws=3).reward_loss(toy_batch(2), rng())
    assert student.with_grad == [False, False, True]
    assert student.sigmas[-1].tolist() == pytest.approx([0.75] * 6)
    assert student.seen[-1].shape[0] == 6


def test_a_rollout_at_other_steps_leaves_the_export_its_own() -> None:
    own = spec("lcm", 5)
    built = method(Scales(0.7), own, sampler=spec("lcm", 3).model_dump())
    assert built.rollout_sampler.num_inference_steps == 3
    assert built.sampler(own) == own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_gradient_steps": 3}, "algorithm.num_gradient_steps is 3 but the sampler has 2"),
        ({"num_draws": 2, "num_gradient_steps": 2}, "num_draws goes with one gradient step"),
    ],
)
def test_settings_that_do_not_fit_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(Scales(0.7), spec(), **settings)


def test_the_teacher_can_only_be_the_runs_own_model() -> None:
    with pytest.raises(ValueError, match=r"teacher\.model: the teacher is the run's own model"):
        draft.Config.model_validate({"teacher": {"model": "other"}})


def test_a_black_box_is_refused_in_a_sentence_that_names_the_way_out() -> None:
    class BlackBox(Mean):
        differentiable = False

    with pytest.raises(ValueError, match=r"^reward: draft needs a gradient.*use nft$"):
        method(Scales(0.7), spec(), score=BlackBox())


def test_the_noise_between_steps_differs_between_samples() -> None:
    student, batch = Scales(0.0), toy_batch(2)  # forgets the noise that it starts at
    method(student, spec()).reward_loss(batch, rng())
    assert not torch.equal(student.seen[1][0], student.seen[1][1])
