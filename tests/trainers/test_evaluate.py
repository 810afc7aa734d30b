"""Measuring students: batches, the feature space, diversity, adherence, the tables."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.catalog.overrides import Overrides
from pipelines.catalog.registry import Registry
from pipelines.generate import denoise
from pipelines.model_cache import ModelCache
from pipelines.sampling.denoiser import Denoiser
from trainers.evaluation.__main__ import main
from trainers.evaluation.adherence import adherence
from trainers.evaluation.clips import cached_clips, sample_clips
from trainers.evaluation.features import clip_features, frechet_distance
from trainers.evaluation.measure import (
    diversity_ratios,
    measure,
    reference_features,
    rendered_clips,
)
from trainers.evaluation.plot import write_curves
from trainers.evaluation.tables import clip_recipes, student_rows
from trainers.worlds.checker import Observation
from trainers.worlds.shapes import SLOTS, Caption

SMALL: Overrides = {"width": 32, "height": 32, "num_frames": 5}
SHAPE = (9, 48, 48)


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache(Registry(), "cpu")


@pytest.fixture(scope="module")
def captions() -> list[Caption]:
    return [Caption.parse(prompt) for prompt in Registry().prompts("shapes_test")]


@pytest.mark.parametrize(
    ("sampler", "guidance_scale", "num_forwards"), [("unipc", 3.0, 6), ("lcm", 1.0, 3)]
)
def test_a_clip_of_a_batch_is_the_clip_that_generate_makes(
    sampler: str, guidance_scale: float, num_forwards: int, models: ModelCache
) -> None:
    own: Overrides = {
        "sampler": {"name": sampler, "guidance_scale": guidance_scale, "num_inference_steps": 3}
    }
    prompts = models.registry.prompts("shapes_test")[:3]
    recipes = clip_recipes(models.registry, "tiny-wan", prompts, [4, 5], own | SMALL)
    clips = sample_clips(recipes, models)
    entry = models.registry.entry(recipes[0].model)
    components = models.components(recipes[0], entry)
    for recipe, latents, video in zip(recipes, clips.latents, clips.videos, strict=True):
        model = Denoiser(components.transformer)
        *_, single = denoise(recipe, model, models.inputs(recipe, entry, components))
        assert model.num_forwards == clips.num_forwards == num_forwards
        torch.testing.assert_close(latents[None], single, atol=1e-4, rtol=1e-4)
        frames = components.decode(single)[0].permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(video / 255, frames, atol=0.6 / 255)


def test_the_frechet_distance_between_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4000, 2)) * [1.0, 5.0]
    reference = (reference - reference.mean(0)) / reference.std(0) * [1.0, 5.0]
    turn = np.array([[0.0, 5.0], [-0.2, 0.0]])  # turns by 90 degrees once both units are equal
    moved = reference * 2 + [3.0, 0.0]
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-9)
    # Each axis is twice as wide, which costs (2 - 1)^2, and one mean is 3 away.
    assert frechet_distance(moved, reference) == pytest.approx(9 + 1 + 1, rel=1e-3)
    assert frechet_distance(reference @ turn, reference) < 0.01


def test_the_feature_space_ranks_corruptions_behind_other_rendered_clips(
    captions: list[Caption],
) -> None:
    reference = reference_features(captions, SHAPE)
    videos = rendered_clips(captions, SHAPE, seed=9).videos

    def distance(corrupted: NDArray[np.floating]) -> float:
        pixels = np.rint(np.clip(corrupted, 0, 255)).astype(np.uint8)
        return frechet_distance(clip_features(pixels), reference)

    clean = videos.astype(np.float32)
    blurred = sum(np.roll(clean, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    grey = clean.mean(-1, keepdims=True)
    noise = np.random.default_rng(0).standard_normal(clean.shape) * 8
    corruptions = {
        "blurred": blurred,
        "saturated": grey + 1.5 * (clean - grey),
        "noisy": clean + noise,
        "stuttering": clean[:, np.arange(9) // 3 * 3],
        "static": np.repeat(clean[:, 4:5], 9, 1),
        "of one caption": np.repeat(clean[:1], 64, 0) + noise / 8,
    }
    floor = distance(clean)
    for name, corrupted in corruptions.items():
        assert distance(corrupted) > 10 * floor, name


def observed(caption: Caption, place: float, **slots: str) -> Observation:
    """A clip that shows the caption, with unstated attributes that depend on `place`."""
    stated = {slot: getattr(caption, slot) for slot in SLOTS} | slots
    unstated = {"start": (place, 0.5), "path_length": place / 2, "radius": place / 10}
    return Observation(**stated, **unstated)  # type: ignore[arg-type]


def test_diversity_is_the_spread_within_captions_relative_to_the_teacher() -> None:
    first = Caption.parse("a small red circle moving left on a black background")
    second = Caption.parse("a large blue square growing on a navy background")
    asked = [first, second, first, second]
    teacher = [observed(c, p) for c, p in zip(asked, (0.2, 0.8, 0.4, 0.6), strict=True)]
    student = [observed(c, p) for c, p in zip(asked, (0.2, 0.8, 0.3, 0.7), strict=True)]
    halved = diversity_ratios(asked, student, teacher)
    assert halved == pytest.approx({"position": 0.5, "path_length": 0.5, "radius": 0.5})
    # A clip that either got wrong counts for neither: only `second` is left, which goes nowhere.
    student[0] = observed(first, 0.9, colour="green")
    without = diversity_ratios(asked, student, teacher)
    assert without["position"] == pytest.approx(0.5)
    assert np.isnan(without["path_length"])


def test_a_collapsed_model_has_no_diversity_and_the_teacher_is_its_own_measure(
    captions: list[Caption],
) -> None:
    twice = [*captions[:16], *captions[:16]]
    teacher = rendered_clips(twice, SHAPE, seed=1)
    collapsed = replace(teacher, videos=np.concatenate([teacher.videos[:16]] * 2))
    figures = measure(teacher, teacher)
    assert figures["prompt_accuracy"] == figures["slot_accuracy"] == 1
    assert figures["accuracy_difference"] == 0
    assert figures["frechet_ratio"] == figures["diversity"] == 1
    assert measure(collapsed, teacher)["diversity"] == 0


def test_clips_that_follow_their_prompts_score_higher_than_those_that_follow_others(
    captions: list[Caption], models: ModelCache
) -> None:
    teacher = models.registry.recipe("tiny-wan", "")
    clips = rendered_clips(captions[:16], (17, 64, 64), seed=2)
    video = torch.from_numpy(clips.videos).permute(0, 1, 4, 2, 3) / 255
    components = models.components(teacher, models.registry.entry("tiny-wan"))
    clips = replace(clips, latents=components.encode(video))
    swapped = replace(clips, captions=clips.captions[1:] + clips.captions[:1])
    assert adherence(clips, teacher, models) > 0.01
    assert adherence(swapped, teacher, models) < 0


def test_the_teacher_is_sampled_once_and_again_when_its_recipe_changes(
    tmp_path: Path, models: ModelCache
) -> None:
    prompts = models.registry.prompts("shapes_test")[:2]

    def teacher(steps: int) -> list:
        own: Overrides = {"sampler": {"num_inference_steps": steps}}
        return clip_recipes(models.registry, "tiny-wan", prompts, [0], own | SMALL)

    sampled = cached_clips(teacher(1), models, tmp_path)
    fresh = ModelCache(models.registry, "cpu")
    kept = cached_clips(teacher(1), fresh, tmp_path)
    assert fresh.num_loads == 0
    assert kept.captions == sampled.captions
    assert (kept.num_forwards, kept.denoise_sec) == (sampled.num_forwards, sampled.denoise_sec)
    assert torch.equal(kept.latents, sampled.latents)
    assert np.array_equal(kept.videos, sampled.videos)
    rows = student_rows(models, teacher(1), {"other": teacher(2)}, tmp_path)
    assert [row["student"] for row in rows] == ["teacher (tiny-wan)", "(rendered)", "other"]
    assert [row["num_forwards"] for row in rows] == [2, 0, 4]
    cached_clips(teacher(2), models, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_line_writes_a_table_and_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sizes.json"
    clips = ["--prompts", "shapes_demo", "--seeds", "0", "--out", str(out)]
    sizes = ["--sizes", "32x16", "16x32", "--frames", "5", "--steps", "1"]
    assert main(["sizes", "tiny-wan", *sizes, *clips]) == 0
    table = capsys.readouterr().out.strip().splitlines()
    assert table[0].startswith("| size | frames | student | forwards | prompt accuracy |")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 32x16"] * 3 + ["| 16x32"] * 3
    rows = json.loads(out.read_text())
    assert [row["num_forwards"] for row in rows] == [96, 0, 2] * 2
    assert all(row["diversity"] is None for row in rows)  # one seed cannot show any


def test_the_guidance_sweep_has_a_row_a_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guidance.json"
    clips = ["--prompts", "shapes_demo", "--seeds", "0", "--out", str(out)]
    assert main(["guidance", "tiny-step6", "--scales", "1", "4", *clips]) == 0
    assert capsys.readouterr().out.startswith("| guidance | forwards | prompt accuracy |")
    one, four = json.loads(out.read_text())
    assert (one["num_forwards"], four["num_forwards"]) == (6, 6)
    assert four["adherence"] > one["adherence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["students", "tiny-dmd3000"], "model 'tiny-dmd3000' is unknown"),
        (["students", "--prompts", "none"], "prompts 'none' is unknown"),
        (["sizes", "tiny-wan", "--sizes", "96"], "sizes is '96' but must be WIDTHxHEIGHT"),
        (["sizes", "tiny-wan", "--frames", "16"], "num_frames is 16 but must be 4n+1; try 17"),
        (["guidance", "tiny-wan", "--scales", "99"], "guidance_scale"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sampled(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "x.json")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_curves_are_one_line_a_column_in_a_file_that_is_svg(tmp_path: Path) -> None:
    rows = [{"factor": f, "accuracy": f / 2, "exposure": 1.0} for f in (0.0, 0.5, 1.5)]
    columns = {"accuracy": "prompt <accuracy>", "exposure": "exposure / start"}
    write_curves(rows, "factor", columns, tmp_path / "curves.svg")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    lines = [e for e in root.iter() if e.tag.endswith("polyline") and e.get("stroke-width")]
    assert [len(line.get("points", "").split()) for line in lines] == [3, 3]
    heights = [float(point.split(",")[1]) for point in lines[0].get("points", "").split()]
    assert heights == sorted(heights, reverse=True)
    assert "prompt <accuracy>" in [e.text for e in root.iter()]
