"""Validation while training: videos, figures, alarms, the best checkpoint, the early end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.video import read_recipe, read_video
from trainers import drift
from trainers.checkpoint import best_checkpoint, checkpoint_folders
from trainers.data import write_prepared
from trainers.distributed import World
from trainers.engine import Trainer
from trainers.models import load_models
from trainers.registry import build_config
from trainers.samples import Sample, summary

ONE = World(0, 1, torch.device("cpu"))
PROMPTS = ["a red circle moving left", "a blue square"]
EXPORTED = "export/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(1)
    samples = [
        (f"caption {i}", *(torch.randn(s, generator=generator) for s in ((16, 2, 4, 4), (3, 16))))
        for i in range(4)
    ]
    write_prepared(folder, samples, torch.randn(1, 16, generator=generator), text_length=12)
    return folder


@pytest.fixture
def start(whole_model: Path, data: Path, tmp_path: Path):
    """Settings of the validation (None: there is none), and of the run -> a trainer in tmp_path."""

    def build(validation: dict[str, Any] | None, **settings: Any) -> Trainer:
        student = {"learning_rate": 3e-3}
        always = {"every": 1, "prompts": PROMPTS[:1]}
        config = build_config(
            {
                "name": "mini",
                "method": "step_distill",
                "model": str(whole_model),
                "data": {"source": "prepared", "folder": str(data), "batch_size": 2},
                "num_steps": 4,
                "save_every": 1,
                "keep_checkpoints": 1,
                "precision": "fp32",
                "device": "cpu",
                "algorithm": {"student": student, "num_student_steps": 2},
                "validation": None if validation is None else always | validation,
            }
            | settings
        )
        run_dir = tmp_path if validation is not None else tmp_path / "bare"
        return Trainer(config, load_models(config), run_dir, ONE)

    return build


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(run: Trainer, monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Lets the run's validations come out with these scores by step."""
    validator: Any = run.validator
    drawn = validator.sampler.draw

    def draw(recipe: Any, role: Any, name: str) -> Sample:
        sample: Sample = drawn(recipe, role, name)
        score = 0.0 if name.startswith("teacher") else scores[run.step]
        figures = dict.fromkeys(sample.figures, 0.0) | {"clipped_share": -score}
        return Sample(recipe, figures, torch.zeros_like(sample.thumbnail))

    monkeypatch.setattr(validator.sampler, "draw", draw)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    network = run.roles["student"].network
    return {name: p.detach().clone() for name, p in network.named_parameters()}


# ---------------------------------------------------------------- videos and figures


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
    assert student.model == "mini"
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
    run._prepare_run_dir()
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
    ours, theirs = weights(validated), weights(bare)
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
    samples = [Sample(recipe, {"motion": m}, torch.full((3, 8, 16, 16), m)) for m in (0.25, 0.75)]
    assert summary(samples) == {"motion": 0.5, "diversity": pytest.approx(0.5)}
    assert summary(samples[:1]) == {"motion": 0.25}


# ---------------------------------------------------------------- alarms, the best, the end


def test_an_alarm_names_the_figure_its_value_and_the_threshold(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start({"every": 2, "alarms": {"clipped_share": 0.25}}, num_steps=4)
    scored(run, monkeypatch, {2: -0.2, 4: -0.3})
    run.train()
    alarms = [e for e in read_jsonl(tmp_path / "events.jsonl") if e["event"] == "alarm"]
    assert [(a["step"], a["figure"], a["threshold"]) for a in alarms] == [
        (4, "clipped_share", 0.25)
    ]
    assert alarms[0]["value"] == pytest.approx(0.3)


def test_the_best_checkpoint_is_kept_and_exported_and_the_last_stays_resumable(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start({})
    scored(run, monkeypatch, {1: -0.5, 2: -0.1, 3: -0.2, 4: -0.3})
    by_step: dict[int, dict[str, torch.Tensor]] = {}
    save = run._save
    monkeypatch.setattr(run, "_save", lambda: (by_step.setdefault(run.step, weights(run)), save()))
    assert run.train()
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 2, "score": pytest.approx(-0.1)}
    names = [folder.name for folder in checkpoint_folders(tmp_path)]
    assert names == ["step_000002", "step_000004"]
    assert best_checkpoint(tmp_path) == checkpoint_folders(tmp_path)[0]
    exported = load_file(tmp_path / EXPORTED)
    assert all(torch.equal(exported[name], by_step[2][name]) for name in exported)
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["exported_step"] == 2
    resumed = start({}, num_steps=5)
    resumed._resume()
    assert resumed.step == 4
    assert all(torch.equal(w, by_step[4][name]) for name, w in weights(resumed).items())


def test_export_last_takes_the_last(start, tmp_path: Path, monkeypatch: Any) -> None:
    run = start({"export": "last"})
    scored(run, monkeypatch, {1: -0.1, 2: -0.2, 3: -0.3, 4: -0.4})
    run.train()
    exported, last = load_file(tmp_path / EXPORTED), weights(run)
    assert all(torch.equal(exported[name], last[name]) for name in exported)
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["exported_step"] == 4


def test_a_run_ends_when_patience_does_and_stays_ended(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start({"patience": 2}, num_steps=9)
    nan = float("nan")
    scored(run, monkeypatch, {1: nan, 2: -0.1, 3: -0.2, 4: nan})
    assert run.train()
    assert run.step == 4
    events = read_jsonl(tmp_path / "events.jsonl")
    assert [e["event"] for e in events[-2:]] == ["stopped_early", "finished"]
    assert (tmp_path / EXPORTED).is_file()
    again = start({"patience": 2}, num_steps=9)
    assert again.train()
    assert again.step == 4


def test_a_resumed_run_knows_the_scores_up_to_its_checkpoint_only(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start({}, num_steps=2)
    scored(run, monkeypatch, {1: -0.3, 2: -0.4})
    run.train()
    with (tmp_path / "metrics.jsonl").open("a") as file:  # killed before its checkpoint was there
        file.write(json.dumps({"step": 3, "validation/score": -0.1}) + "\n")
    resumed = start({}, num_steps=3)
    resumed._resume()
    resumed.validator.begin()
    assert [step for step, _ in resumed.validator.scores] == [1, 2]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1


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
