"""Validation while training: videos, figures, and the settings of both."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.video import read_recipe, read_video
from tests.trainers.runs import read_jsonl, student_weights
from trainers.validation import drift
from trainers.validation.samples import DrawnVideo, summary

PROMPTS = ["a red circle moving left", "a blue square"]


def test_student_and_teacher_draw_the_same_prompts_and_seeds_each_its_own_way(
    start, tmp_path: Path
) -> None:
    run = start({"every": 2, "prompts": PROMPTS, "seeds": [3, 4]}, num_steps=3)
    assert run.train()
    names = ["00-seed3.mp4", "00-seed4.mp4", "01-seed3.mp4", "01-seed4.mp4"]
    for folder in ("teacher", "step_000002", "step_000003"):
        assert sorted(p.name for p in (tmp_path / "samples" / folder).glob("*.mp4")) == names
    teacher, student = (
        read_recipe(tmp_path / "samples" / folder / names[2])
        for folder in ("teacher", "step_000002")
    )
    assert (teacher.prompt, teacher.seed) == (student.prompt, student.seed) == (PROMPTS[1], 3)
    assert (teacher.sampler.name, teacher.sampler.num_inference_steps) == ("unipc", 3)
    assert (student.sampler.name, student.sampler.num_inference_steps) == ("euler", 2)
    assert student.sampler.guidance_mode == "off"
    assert student.model == "micro"
    assert read_video(tmp_path / "samples" / "teacher" / names[0]).shape == (5, 32, 32, 3)


def test_figures_of_both_and_their_drift_are_logged(start, tmp_path: Path) -> None:
    run = start({"every": 4})
    run.train()
    (line,) = [m for m in read_jsonl(tmp_path / "metrics.jsonl") if "validation/score" in m]
    assert line["step"] == 4
    for name in drift.NAMES:
        student, teacher = line[f"validation/{name}"], line[f"validation/teacher_{name}"]
        expected = drift.drift({name: student}, {name: teacher})[name]
        assert line[f"drift/{name}"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert line["validation/score"] == -line["drift/distance"]
    assert line["validation/teacher_contrast"] > 0


def test_a_student_that_is_its_teacher_has_no_drift(start, tmp_path: Path) -> None:
    run = start({"every": 1}, num_steps=1)
    run.folder.begin()
    validator = run.validator
    validator.student_recipes = validator.teacher_recipes  # and the student has not moved
    validator.begin()
    assert validator.validate(0)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert line["drift/distance"] == pytest.approx(0, abs=1e-4)


def test_validation_leaves_no_trace_in_the_weights(start) -> None:
    validated = start({"every": 1, "export": "last"})
    validated.train()
    bare = start(None)
    bare.train()
    ours, theirs = student_weights(validated), student_weights(bare)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_teacher_is_drawn_once_and_again_where_its_recipe_changes(
    start, tmp_path: Path
) -> None:
    start({"every": 9, "seeds": [0]}).train()
    video = tmp_path / "samples" / "teacher" / "00-seed0.mp4"
    drawn = video.stat().st_mtime_ns
    again = start({"every": 9, "seeds": [0, 1]})
    again.validator.begin()
    assert video.stat().st_mtime_ns == drawn
    assert (video.parent / "00-seed1.mp4").is_file()
    other = start({"every": 9, "seeds": [0], "width": 48})
    other.validator.begin()
    assert video.stat().st_mtime_ns > drawn


def test_the_students_steps_can_be_set_and_guidance_it_cannot_take_is_refused(start) -> None:
    run = start({"num_inference_steps": 5})
    (recipe, *_) = run.validator.student_recipes.values()
    assert recipe.sampler.num_inference_steps == 5
    with pytest.raises(ValueError, match=r"^validation\.guidance_scale: .*without guidance"):
        start({"guidance_scale": 4.0})


def test_diversity_needs_several_seeds_of_a_prompt(start) -> None:
    (recipe, *_) = start({}).validator.student_recipes.values()
    samples = [
        DrawnVideo(recipe, {"motion": m}, torch.full((3, 8, 16, 16), m)) for m in (0.25, 0.75)
    ]
    assert summary(samples) == {"motion": 0.5, "diversity": pytest.approx(0.5)}
    assert summary(samples[:1]) == {"motion": 0.25}


# ---------------------------------------------------------------- settings


CAPTION = "a large red circle moving right on a navy background"


def test_the_shapes_score_adds_accuracy(start, tmp_path: Path) -> None:
    run = start({"every": 4, "prompts": [CAPTION], "score": "shapes", "seeds": [0]})
    run.train()
    (line,) = [m for m in read_jsonl(tmp_path / "metrics.jsonl") if "validation/score" in m]
    accuracy = (line["validation/prompt_accuracy"] + line["validation/slot_accuracy"]) / 2
    assert line["validation/score"] == pytest.approx(accuracy - line["drift/distance"], rel=1e-4)
    assert "drift/diversity" not in line  # one seed


def test_a_method_without_a_teacher_is_ranked_by_shapes_or_not_at_all(
    start, tmp_path: Path
) -> None:
    finetune = {"method": "finetune", "algorithm": {}, "num_steps": 1}
    with pytest.raises(ValueError, match=r"^validation\.score is drift but finetune has no teach"):
        start({}, **finetune)
    run = start({"score": None, "export": "last", "seeds": [0]}, **finetune)
    run.train()
    assert not (tmp_path / "samples" / "teacher").exists()
    assert not (tmp_path / "best.json").exists()
    assert "validation/motion" in read_jsonl(tmp_path / "metrics.jsonl")[-1]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"score": None}, "validation: export is best but there is no score"),
        ({"score": None, "export": "last", "patience": 2}, "validation: patience needs a score"),
        ({"score": "shapes"}, "validation.prompts: caption 'a red circle moving left' is not in"),
        ({"prompts": []}, "validation.prompts: "),
        ({"alarms": {"motion": 0.5}}, "validation.alarms.motion: "),
        ({"num_frames": 8}, "validation.num_frames: is 8 but must be 4n+1"),
    ],
)
def test_a_setting_that_cannot_work_names_its_field(
    validation: dict[str, Any], message: str, start
) -> None:
    with pytest.raises(ValueError) as caught:
        start(validation)
    assert str(caught.value).startswith(message)


def test_an_autoencoder_draws_no_videos(start) -> None:
    stages = [{"until_step": 5, "num_frames": 5, "crop": 32, "batch_size": 2}]
    shapes = {"source": "shapes", "size": 32, "stages": stages}
    autoencoder = {"method": "autoencoder", "algorithm": {}, "data": shapes}
    with pytest.raises(ValueError, match=r"^validation: an autoencoder draws no videos"):
        start({"score": None, "export": "last"}, **autoencoder)
