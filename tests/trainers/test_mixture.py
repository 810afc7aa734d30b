"""Each method on a mixture of four Gaussians in the plane: every mode must come back, in seconds.

The teacher is the exact velocity, so that what the student owes is known: the teacher's own points
on the same grid. Before distillation the few steps miss the modes.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipelines.recipe import SamplerSpec
from pipelines.sampling.guidance import guide
from pipelines.sampling.prompt import Prompt
from tests.trainers.toys import MODE_STD, MODES, KnowsMixture, Learns, descend, mixture_batch, rng
from trainers.algorithm import Algorithm
from trainers.algorithms import cfg_distill, consistency, dmd2, finetune, step_distill
from trainers.networks.optimizer import adamw, learning_rate
from trainers.rollout import simulate
from trainers.settings.roles import Ema, Guidance, GuidedTrainable, Trainable

BATCH_SIZE = 256
NUM_POINTS = 2000
NEAR = 3.5 * MODE_STD  # of the mixture's own points 0.2 % lie farther out
UNGUIDED = Guidance(min_scale=1, max_scale=1)
FALLING = {"learning_rate": 1e-2, "final_learning_rate": 0.0}
TEACHER = SamplerSpec(name="euler", num_inference_steps=16, flow_shift=2.0, guidance_scale=1.0)


def learn(method: Algorithm, num_steps: int, classes: bool = False) -> None:
    """What the engine does with a method, without its files."""
    roles = method.config.roles()
    optimizers = {
        name: adamw(settings, method.roles[name].parameters())
        for name, settings in roles.items()
        if isinstance(settings, Trainable)
    }
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        batch = mixture_batch(BATCH_SIZE, generator, classes)
        for number, update in enumerate(method.updates(step)):
            optimizer, settings = optimizers[update.role], roles[update.role]
            assert isinstance(settings, Trainable)
            optimizer.param_groups[0]["lr"] = learning_rate(settings, step, num_steps)
            descend(optimizer, update.loss(batch, rng(2 * step + number)))
        for name, settings in roles.items():
            if isinstance(settings, Ema):
                follow(method.roles[name], method.roles[settings.of], settings.decay)


@torch.no_grad()
def follow(average: nn.Module, of: nn.Module, decay: float) -> None:
    for mine, theirs in zip(average.parameters(), of.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)


@pytest.fixture(scope="module")
def taught() -> Learns:
    """A network that has learned the mixture by flow matching. Copy it."""
    torch.manual_seed(0)
    student = Learns()
    config = finetune.Config(student=Trainable(**FALLING), flow_shift=1.0)
    learn(finetune.Method(config, {"student": student}), 800)
    return student


@torch.no_grad()
def points(network: KnowsMixture | Learns, spec: SamplerSpec, classes: bool = False) -> Tensor:
    """What a network makes of the same noise at every call. [NUM_POINTS, 2]."""
    draws = rng(5)
    noise = draws.randn((NUM_POINTS, 2, 1, 1, 1), torch.device("cpu"))
    every = torch.eye(4).repeat(NUM_POINTS // 4, 1) if classes else torch.zeros(NUM_POINTS, 4)
    call, prompt = guide(network, spec, torch.zeros(1, 1, 4)), Prompt(every[:, None])
    return simulate(call, prompt, spec, noise, spec.num_inference_steps - 1, draws).flatten(1)


def shares(found: Tensor) -> Tensor:
    """The share of the points at each mode and, last, of those at none. [5]."""
    distance, mode = torch.cdist(found, MODES).min(1)
    return torch.bincount(torch.where(distance < NEAR, mode, 4), minlength=5) / len(found)


def apart(found: Tensor, expected: Tensor) -> float:
    """The median distance between points of equal noise, in widths of a mode."""
    return (found - expected).norm(dim=1).median().item() / MODE_STD


def test_progressive_distillation_makes_the_teachers_eight_steps_in_four(taught: Learns) -> None:
    config = step_distill.Config(
        student=Trainable(**FALLING), num_student_steps=4, flow_shift=2.0, guidance=UNGUIDED
    )
    student = copy.deepcopy(taught)
    method = step_distill.Method(config, {"student": student, "teacher": KnowsMixture()})
    spec = method.sampler(TEACHER)
    eight = TEACHER.model_copy(update={"num_inference_steps": 8})
    expected = points(KnowsMixture(), eight)
    assert shares(points(KnowsMixture(), spec))[4] > 3 * shares(expected)[4]
    learn(method, 800)
    found = points(student, spec)
    assert apart(found, expected) < 0.1
    assert (shares(found) - shares(expected)).abs().max() < 0.04


def test_consistency_distillation_jumps_to_the_end_of_the_teachers_path(taught: Learns) -> None:
    config = consistency.Config(
        student=Trainable(**FALLING | {"learning_rate": 5e-3}),
        target=Ema(decay=0.9),
        num_teacher_steps=16,
        num_skipped_steps=2,
        flow_shift=2.0,
        guidance=UNGUIDED,
    )
    student = copy.deepcopy(taught)
    target = copy.deepcopy(taught).requires_grad_(False)
    roles = {"student": student, "teacher": KnowsMixture(), "target": target}
    method = consistency.Method(config, roles)
    four = method.sampler(TEACHER)
    one = four.model_copy(update={"num_inference_steps": 1})
    expected = points(KnowsMixture(), TEACHER)
    assert shares(points(KnowsMixture(), four))[4] > 0.2
    assert apart(points(KnowsMixture(), one), expected) > 5
    learn(method, 1000)
    assert apart(points(student, one), expected) < 0.25
    assert (shares(points(student, four)) - shares(expected)).abs().max() < 0.06


def test_distribution_matching_finds_every_mode_in_two_steps(taught: Learns) -> None:
    two = {"num_inference_steps": 2, "sigmas": (1.0, 0.5), "flow_shift": 1.0}
    betas = (0.0, 0.99)
    config = dmd2.Config(
        student=Trainable(
            learning_rate=2e-3, final_learning_rate=0.0, warmup_steps=100, betas=betas
        ),
        critic=Trainable(learning_rate=5e-3, final_learning_rate=0.0, betas=betas),
        sampler=dmd2.FOUR_STEPS.model_copy(update=two),
        guidance_scale=1,
        score_shift=0.5,
    )
    student, critic = copy.deepcopy(taught), copy.deepcopy(taught)
    roles = {"student": student, "teacher": KnowsMixture(), "critic": critic}
    before = shares(points(KnowsMixture(), config.sampler))
    assert before[4] > 0.3
    learn(dmd2.Method(config, roles), 1200)
    after = shares(points(student, config.sampler))
    assert after[4] < before[4] / 3
    assert after[:4].min() > 0.125  # half of the teacher's


def test_guidance_distillation_follows_the_guided_teacher_at_every_scale() -> None:
    torch.manual_seed(0)
    config = cfg_distill.Config(
        student=GuidedTrainable(**FALLING),
        guidance=Guidance(min_scale=1, max_scale=4),
        flow_shift=1.0,
    )
    student = Learns(embeds_guidance=True)
    method = cfg_distill.Method(config, {"student": student, "teacher": KnowsMixture()})
    learn(method, 1000, classes=True)
    centres = MODES.repeat(NUM_POINTS // 4, 1)
    outward = []
    for scale in (1.0, 2.0, 4.0):
        asked = TEACHER.model_copy(update={"guidance_scale": scale})
        expected = points(KnowsMixture(), asked, classes=True)
        found = points(student, method.sampler(asked), classes=True)
        nearest = MODES[torch.cdist(found, MODES).argmin(1)]
        assert (nearest == centres).float().mean() > 0.98
        assert apart(found, expected) < 0.3
        outward.append(((found - centres) * centres.sign()).mean().item() / MODE_STD)
    # At scale 1 the points lie around their mode; guidance pushes them out.
    assert abs(outward[0]) < 0.1
    assert outward[2] > outward[1] + 0.3 > outward[0] + 0.6
