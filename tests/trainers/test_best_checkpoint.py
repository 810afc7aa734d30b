"""What a run does with its validations' scores: alarms, the best checkpoint, the early end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.runs import read_jsonl, student_weights
from trainers.engine import Trainer
from trainers.run.checkpoint import best_checkpoint, checkpoint_folders
from trainers.validation.samples import DrawnVideo

EXPORTED = "export/transformer/diffusion_pytorch_model.safetensors"


def scored(run: Trainer, monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Lets the run's validations come out with these scores by step."""
    validator: Any = run.validator
    drawn = validator.sampler.draw

    def draw(recipe: Any, role: Any, name: str) -> DrawnVideo:
        sample: DrawnVideo = drawn(recipe, role, name)
        score = 0.0 if name.startswith("teacher") else scores[run.step]
        figures = dict.fromkeys(sample.figures, 0.0) | {"clipped_share": -score}
        return DrawnVideo(recipe, figures, torch.zeros_like(sample.thumbnail))

    monkeypatch.setattr(validator.sampler, "draw", draw)


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
    monkeypatch.setattr(
        run, "_save", lambda: (by_step.setdefault(run.step, student_weights(run)), save())
    )
    assert run.train()
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"step": 2, "score": pytest.approx(-0.1)}
    names = [folder.name for folder in checkpoint_folders(tmp_path)]
    assert names == ["step_000002", "step_000004"]
    assert best_checkpoint(tmp_path) == checkpoint_folders(tmp_path)[0]
    exported = load_file(tmp_path / EXPORTED)
    assert all(torch.equal(exported[name], by_step[2][name].half()) for name in exported)
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["exported_step"] == 2
    resumed = start({}, num_steps=5)
    assert resumed.folder.resume() == 4
    assert all(torch.equal(w, by_step[4][name]) for name, w in student_weights(resumed).items())


def test_export_last_takes_the_last(start, tmp_path: Path, monkeypatch: Any) -> None:
    run = start({"export": "last"})
    scored(run, monkeypatch, {1: -0.1, 2: -0.2, 3: -0.3, 4: -0.4})
    run.train()
    exported, last = load_file(tmp_path / EXPORTED), student_weights(run)
    assert all(torch.equal(exported[name], last[name].half()) for name in exported)
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
    resumed.folder.resume()
    resumed.validator.begin()
    assert [step for step, _ in resumed.validator.scores] == [1, 2]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1
