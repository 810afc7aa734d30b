"""Guards against a reward that grows at the cost of another: held out, best checkpoint, stop."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.runs import read_jsonl, trainer
from trainers.engine import Trainer
from trainers.registry import build_config
from trainers.validation.samples import DrawnVideo

LORA = {"student": {"learning_rate": 1e-2, "lora": {"rank": 2}}}


@pytest.fixture
def start(config_tree, tmp_path: Path):
    """Settings of the validation -> a DRaFT run on motion that holds exposure out."""

    def build(num_steps: int = 6, **validation: Any) -> Trainer:
        always = {"every": 1, "prompts": ["a red circle"], "seeds": [0], "held_out": "exposure"}
        settings = {"num_steps": num_steps, "save_every": 1, "keep_checkpoints": 1}
        tree = config_tree("draft", algorithm=LORA, validation=always | validation, **settings)
        return trainer(build_config(tree), tmp_path)

    return build


def answered(run: Trainer, monkeypatch: Any, trained: list[float], held_out: list[float]) -> None:
    """Lets the two rewards come out so at steps 1, 2, ..."""
    validator: Any = run.validator
    drawn = validator.sampler.draw

    def draw(recipe: Any, role: Any, name: str) -> DrawnVideo:
        sample: DrawnVideo = drawn(recipe, role, name)
        step = max(run.step, 1) - 1
        scores = {"reward": trained[step], "held_out_reward": held_out[step]}
        return DrawnVideo(recipe, sample.figures | scores, sample.thumbnail)

    monkeypatch.setattr(validator.sampler, "draw", draw)


def test_a_run_ends_when_the_trained_reward_rises_and_the_held_out_one_falls(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(hacking_patience=2)
    answered(run, monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert run.train()
    assert run.step == 4  # falls from step 2 to 3 and from 3 to 4
    events = read_jsonl(tmp_path / "events.jsonl")
    (hacking,) = [event for event in events if event["event"] == "hacking"]
    assert hacking["step"] == 4
    assert hacking["reason"] == (
        "the trained reward rose from 0.2 to 0.4 while the held-out one fell from 0.6 to 0.4, "
        "2 validations in a row"
    )
    assert [event["event"] for event in events[-2:]] == ["stopped_early", "finished"]
    again = start(hacking_patience=2)
    assert again.train()
    assert again.step == 4


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ([0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]),
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.35, 0.2]),
    ],
    ids=["both rise", "both fall", "never twice in a row"],
)
def test_a_run_goes_on_otherwise(
    trained: list[float], held_out: list[float], start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(num_steps=4, hacking_patience=2)
    answered(run, monkeypatch, trained, held_out)
    assert run.train()
    assert run.step == 4


def test_the_best_checkpoint_is_the_one_with_the_most_of_the_held_out_reward(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(num_steps=3, score="held_out")
    answered(run, monkeypatch, [0.1, 0.2, 0.3], [0.5, 0.7, 0.6])
    assert run.train()
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "score": 0.7}
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["exported_step"] == 2


def test_both_rewards_and_the_drift_are_curves_and_the_held_out_one_is_never_trained_on(
    start, tmp_path: Path
) -> None:
    run = start(num_steps=1)
    asked: list[int] = []
    held_out: Any = run.validator.sampler.rewards["held_out_reward"]
    score = held_out.reward.score
    held_out.reward.score = lambda *given: asked.append(run.step) or score(*given)
    assert run.train()
    assert asked == [0, 1]  # for the teacher's video, and for the student's
    (line,) = [e for e in read_jsonl(tmp_path / "metrics.jsonl") if "validation/reward" in e]
    assert {"validation/held_out_reward", "validation/teacher_reward", "drift/distance"} <= set(
        line
    )
    assert 0 <= line["validation/held_out_reward"] <= 1


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"held_out": "motion"}, "validation.held_out: the run trains on motion"),
        (
            {"held_out": None, "hacking_patience": 2},
            "validation: hacking_patience needs a held-out reward",
        ),
        ({"held_out": None, "score": "held_out"}, "validation: score is held_out but"),
        (
            {"held_out": {"kind": "exposure", "settings": {"lwo": 0.1}}},
            "validation.held_out.settings.lwo: is not a known setting",
        ),
    ],
)
def test_what_cannot_be_held_out_names_the_field(
    validation: dict[str, Any], message: str, start
) -> None:
    with pytest.raises(ValueError) as caught:
        start(**validation)
    assert str(caught.value).startswith(message)


def test_a_reward_inside_a_sum_cannot_be_held_out_either(config_tree) -> None:
    reward = {"kind": "weighted", "settings": {"rewards": [{"kind": "exposure", "weight": 1}]}}
    validation = {"every": 1, "prompts": ["a"], "held_out": "exposure"}
    tree = config_tree("draft", algorithm=LORA, reward=reward, validation=validation)
    with pytest.raises(ValueError, match=r"^validation\.held_out: the run trains on exposure"):
        build_config(tree)
