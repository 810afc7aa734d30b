"""Each method on a mixture of four Gaussians in the plane: every mode must come back, in seconds.

The teacher is the exact velocity; the student is a small network that starts at the teacher's.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipelines.denoiser import guide
from pipelines.flow import add_noise
from pipelines.recipe import SamplerSpec
from pipelines.sampling import sample
from tests.trainers.toys import (
    MODES,
    KnowsMixture,
    Learns,
    descend,
    mixture_batch,
    rng,
)
from trainers.algorithm import Algorithm
from trainers.algorithms import cfg_distill, consistency, dmd2, step_distill
from trainers.config import Ema, Guidance
from trainers.losses import pseudo_huber

BATCH_SIZE = 256
NEAR = 0.5  # more than three standard deviations of a mode
UNGUIDED = Guidance(min_scale=1, max_scale=1)


def learn(
    student: Learns, batches: Callable[[], object], loss: Callable, num_steps: int, rate: float
) -> None:
    """Adam with a rate that falls to nothing."""
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        batch = batches()
        descend(optimizer, lambda batch=batch, step=step: loss(batch, rng(step)))
        fall.step()


@pytest.fixture(scope="module")
def taught() -> Learns:
    """A network that has learned the teacher's velocity by regression. Copy it."""
    torch.manual_seed(0)
    student, teacher = Learns(), KnowsMixture()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        batch = mixture_batch(BATCH_SIZE, generator)
        assert batch.latents is not None
        assert batch.prompt_embeds is not None
        sigma = 0.01 + 0.99 * torch.rand(BATCH_SIZE, generator=generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        inputs = add_noise(batch.latents, noise, sigma), sigma, batch.prompt_embeds
        loss = pseudo_huber(student.velocity(*inputs), teacher.velocity(*inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


@torch.no_grad()
def points(student: Learns, spec: SamplerSpec, prompt_embeds: Tensor) -> Tensor:
    """What a sampler makes of a network. [B, 2]."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(len(prompt_embeds), 2, 1, 1, 1, generator=generator)
    latents = noise
    if spec.name == "lcm":  # all clips of a batch share their new noise; here each is its own
        parts = [
            list(sample(spec, guide(student, spec, None), n[None], p[None], generator))[-1]
            for n, p in zip(noise, prompt_embeds, strict=True)
        ]
        return torch.cat(parts).flatten(1)
    for latents in sample(spec, guide(student, spec, None), noise, prompt_embeds, generator):
        pass
    return latents.flatten(1)


def shares(found: Tensor) -> tuple[list[float], float]:
    """The share of the points at each mode, and of those at none."""
    distance = torch.cdist(found, MODES)
    near = distance.min(1).values < NEAR
    at = [(near & (distance.argmin(1) == mode)).float().mean().item() for mode in range(4)]
    return at, 1 - near.float().mean().item()


def require_all_modes(found: Tensor, stray: float) -> None:
    at, nowhere = shares(found)
    assert nowhere <= stray, (at, nowhere)
    assert min(at) > 0.15, (at, nowhere)


def no_prompt(num_points: int = 400) -> Tensor:
    return torch.zeros(num_points, 1, 4)


def follow(average: Learns, student: Learns, decay: float) -> None:
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)


def test_progressive_distillation_keeps_all_modes_in_four_steps(taught: Learns) -> None:
    config = step_distill.Config(num_student_steps=4, flow_shift=2.0, guidance=UNGUIDED)
    student, generator = copy.deepcopy(taught), torch.Generator().manual_seed(1)
    method = step_distill.Method(config, {"student": student, "teacher": KnowsMixture()})
    learn(student, lambda: mixture_batch(BATCH_SIZE, generator), method.step_loss, 500, 2e-3)
    require_all_modes(points(student, method.sampler(SamplerSpec()), no_prompt()), stray=0.08)


def test_consistency_distillation_keeps_all_modes_in_four_steps(taught: Learns) -> None:
    config = consistency.Config(
        num_teacher_steps=16, flow_shift=2.0, guidance=UNGUIDED, target=Ema(decay=0.9)
    )
    student, generator = copy.deepcopy(taught), torch.Generator().manual_seed(1)
    target = copy.deepcopy(student).requires_grad_(False)
    roles = {"student": student, "teacher": KnowsMixture(), "target": target}
    method = consistency.Method(config, roles)

    def batches() -> object:
        follow(target, student, config.target.decay)
        return mixture_batch(BATCH_SIZE, generator)

    learn(student, batches, method.consistency_loss, 800, 3e-3)
    require_all_modes(points(student, method.sampler(SamplerSpec()), no_prompt()), stray=0.08)


def distil_by_matching(taught: Learns, num_steps: int) -> tuple[Learns, Algorithm]:
    spec = SamplerSpec(
        name="lcm",
        num_inference_steps=2,
        sigmas=(1.0, 0.5),
        flow_shift=1.0,
        guidance_mode="off",
        guidance_scale=1,
    )
    config = dmd2.Config(sampler=spec, guidance_scale=1, score_shift=1.0)
    student, critic = copy.deepcopy(taught), copy.deepcopy(taught)
    roles = {"student": student, "teacher": KnowsMixture(), "critic": critic}
    method = dmd2.Method(config, roles)
    rates = {"student": 5e-4, "critic": 2e-3}
    optimizers = {
        name: torch.optim.Adam(roles[name].parameters(), lr=rate, betas=(0, 0.99))
        for name, rate in rates.items()
    }
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        batch = mixture_batch(BATCH_SIZE, generator)
        for number, update in enumerate(method.updates(step)):
            draws = rng(2 * step + number)
            descend(
                optimizers[update.role],
                lambda update=update, batch=batch, draws=draws: update.loss(batch, draws),
            )
    return student, method


def test_distribution_matching_keeps_all_modes_in_two_steps(taught: Learns) -> None:
    before = points(taught, distil_by_matching(taught, 0)[1].sampler(SamplerSpec()), no_prompt())
    assert shares(before)[1] > 0.3  # the teacher's own velocity does not do in two steps
    student, method = distil_by_matching(taught, 1000)
    require_all_modes(points(student, method.sampler(SamplerSpec()), no_prompt()), stray=0.1)


def test_guidance_distillation_picks_the_class_the_harder_the_larger_the_scale() -> None:
    torch.manual_seed(0)
    config = cfg_distill.Config(guidance=Guidance(min_scale=1, max_scale=4), flow_shift=1.0)
    student, generator = Learns(embeds_guidance=True), torch.Generator().manual_seed(1)
    teacher = KnowsMixture()
    method = cfg_distill.Method(config, {"student": student, "teacher": teacher})
    learn(
        student,
        lambda: mixture_batch(BATCH_SIZE, generator, classes=True),
        method.guidance_loss,
        800,
        3e-3,
    )
    classes = torch.eye(4).repeat(50, 1)
    spec = method.sampler(SamplerSpec(name="euler", num_inference_steps=16, flow_shift=1.0))
    guided = {}
    for scale in (1.0, 4.0):
        asked = spec.model_copy(update={"guidance_scale": scale})
        found = points(student, asked, classes[:, None])
        assert (torch.cdist(found, MODES).argmin(1) == classes.argmax(1)).float().mean() > 0.98
        guided[scale] = (found - classes @ MODES).norm(dim=1).mean().item()
    # At scale 1 the points lie in their mode; guidance pushes them out, as it does the teacher's.
    assert guided[1.0] < 0.3
    assert guided[4.0] > 2 * guided[1.0]
