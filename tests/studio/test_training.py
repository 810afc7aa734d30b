"""What Train and Runs show, from real files: plans, advice, curves, logs, differences."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.catalog.registry import Registry
from studio.page.markup import render
from studio.run_page import view
from studio.runs.supervisor import Supervisor
from studio.train.estimate import advice, make_plan, spread
from studio.train.schemas import Checked, Methods
from studio.train.training import Training
from trainers.registry import build_config

DMD = "presets/train/tiny_dmd4.yaml"


def whole(path: str = DMD, **changes: Any) -> dict[str, Any]:
    tree = yaml.safe_load(Path(path).read_text()) | changes
    return build_config(tree).model_dump(mode="json")


@pytest.fixture
def training(tmp_path: Path) -> Training:
    (tmp_path / "cache").mkdir()
    return Training(Registry(), Methods(tmp_path), Supervisor(tmp_path / "runs"))


def test_the_plan_is_the_trainers_own_estimate() -> None:
    made = make_plan(whole(num_steps=100), 1)
    groups = {title.partition(",")[0]: dict(rows) for title, rows in made["groups"]}
    assert groups["parameters"]["student"].startswith("0.32 M, 0.32 M trained")
    assert "total" in groups["memory a rank"]
    (here, slow), (there, fast) = made["speeds"].items()
    assert "measured" in here
    assert "H100" in there
    assert 0 < slow < fast
    table = render("plan", plan=made, num_steps=100)
    assert "for 100 steps" in table
    assert "0.32 M, 0.32 M trained" in table


def test_a_plan_that_the_trainer_refuses_says_why() -> None:
    with pytest.raises(ValueError, match="model 'nothing' is unknown"):
        make_plan(whole(model="nothing"), 1)


def test_the_plan_counts_the_chosen_devices_as_ranks() -> None:
    assert spread(whole(), 4)["parallel"]["shard"] == 4
    assert spread(whole(parallel={"replicate": 2}), 4)["parallel"]["shard"] == 2
    assert spread(whole(parallel={"shard": 3}), 4)["parallel"]["shard"] == 3


def test_a_plan_without_times_is_shown_as_well() -> None:
    groups = [["parameters", [["student", "1.0 M"]]], ["memory and time: none", []]]
    shown = render("plan", plan={"groups": groups, "flops": 0.0, "speeds": {}}, num_steps=1)
    assert "<td>student</td><td>1.0 M</td>" in shown
    assert "Memory and time: none" in shown
    assert "a step" not in shown


def test_advice_names_the_reason() -> None:
    own = whole()
    assert advice(own, 1, width=64) == [next(each for each in advice(own, 1, 64))]
    full = json.loads(json.dumps(own))
    full["algorithm"]["student"] |= {"lora": None, "learning_rate": 5e-5}
    assert any("5e-05" in each and "because" in each for each in advice(full, 1, width=832))
    assert not any("5e-05" in each for each in advice(full, 1, width=64))
    few = json.loads(json.dumps(own))
    few["data"]["batch_size"] = 1
    assert any("LoRA critic" in each for each in advice(few, 1, width=64))
    assert not any("LoRA critic" in each for each in advice(few, 8, width=64))
    unguided = json.loads(json.dumps(own))
    unguided["algorithm"]["guidance_scale"] = 1.0
    assert any("w + 1" in each for each in advice(unguided, 1, width=64))


def test_the_presets_of_a_method_are_listed_and_the_first_can_run_here(training: Training) -> None:
    assert "tiny_dmd4" in training.presets("dmd2")
    assert "tiny_dmd4" not in training.presets("finetune")
    assert training.first_preset("cfg_distill") == "tiny_cfg"
    with pytest.raises(ValueError, match="preset"):
        training.preset("dmd2", "../../etc/passwd")


def test_prompts_are_previewed_and_nothing_else_is_read(training: Training) -> None:
    data = {"source": "prompts", "file": "presets/prompts/shapes_train.txt"}
    count, first = training.preview(data)
    assert count > 500
    assert first[0] == "a small red circle moving left on a black background"
    for file in ("/etc/passwd", "../../etc/passwd", "nowhere.txt", "pyproject.toml"):
        with pytest.raises(ValueError, match=r"data\.file"):
            training.preview({"source": "prompts", "file": file})


def test_a_reward_may_be_asked_on_this_machine_and_where_the_studio_was_told(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.methods, "check", lambda tree: Checked(tree=tree))
    training.reward_hosts = ("scorer.example",)

    def problem(url: str, weighted: bool = False, held_out: bool = False) -> str:
        reward: Any = {"kind": "remote", "settings": {"url": url}}
        if weighted:
            parts = [{"kind": "motion", "weight": 1}, reward | {"weight": 1}]
            reward = {"kind": "weighted", "settings": {"rewards": parts}}
        validation = {"every": 1, "prompts": ["p"], "held_out": reward} if held_out else None
        nft = {"reward": "shapes" if held_out else reward, "validation": validation}
        return training.check(whole("presets/train/tiny_nft.yaml", **nft)).problem

    for url in (
        "http://127.0.0.1:8500/score",
        "http://localhost/score",
        "https://[::1]:8500/score",
        "http://Scorer.example:8500/score",
    ):
        assert problem(url) == ""
    for url in (
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.5:8500/score",
        "http://127.0.0.1@elsewhere.example/score",
        "http://localhost.elsewhere.example/score",
        "http://0.0.0.0/score",
        "http://[::1",
    ):
        refused = f"reward.settings: {url} is not on this machine; have the studio started with"
        assert problem(url).startswith(refused)
        assert problem(url, weighted=True).startswith(refused)
        assert problem(url, held_out=True).startswith(f"validation.held_out.settings: {url} is")


def write_metrics(folder: Path, num_steps: int) -> None:
    lines = [
        json.dumps({"step": step, "time": step, "student/loss": 1 / step, "step_sec": 0.1})
        for step in range(1, num_steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "stu')


def test_a_curve_is_thinned_out_and_smoothed(tmp_path: Path) -> None:
    write_metrics(tmp_path, 5000)
    assert view.figures(tmp_path) == ["student/loss", "step_sec"]
    curve = view.curve(tmp_path, "student/loss")
    assert (curve.steps[0], curve.steps[-1]) == (1, 5000)
    assert len(curve.steps) <= view.MAX_POINTS + 1
    smooth = view.curve(tmp_path, "student/loss", smoothing=0.9)
    assert smooth.values[1] > curve.values[1]


def test_a_look_at_a_log_of_200_mb_takes_less_than_200_ms(tmp_path: Path) -> None:
    line = b"step 1/1000  student/loss 0.5  critic/loss 0.25  0.10 s  3 min left\n"
    with (tmp_path / "log.txt").open("wb") as file:
        file.truncate(200 * 2**20)
        file.seek(0, 2)
        file.write(b"\n" + line * 5000)
        file.write(b"a bar 1%\ra bar 100%\nneedle in the end\nhalf a li")
    began = time.process_time()  # other processes do not count
    first = view.read_log(tmp_path, -1)
    again = view.read_log(tmp_path, first["offset"])
    assert time.process_time() - began < 0.2
    assert first["skipped"]
    assert first["text"].endswith("\na bar 100%\nneedle in the end\n")
    assert again == {"text": "", "offset": first["offset"], "skipped": False}
    assert view.find_in_log(tmp_path, "needle") == ["needle in the end"]
    assert len(view.find_in_log(tmp_path, "student/loss")) == view.MAX_FOUND
    assert view.find_in_log(tmp_path, "") == []


def test_a_log_that_grew_is_followed_from_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert view.read_log(tmp_path, -1)["text"] == ""
    log.write_text("one\ntwo")
    first = view.read_log(tmp_path, -1)
    assert first["text"] == "one\n"
    log.write_text("one\ntwo\nthree\n")
    assert view.read_log(tmp_path, first["offset"])["text"] == "two\nthree\n"
    log.write_text("new\n")  # it was replaced by a shorter one
    assert view.read_log(tmp_path, 14)["text"] == "new\n"


def test_settings_that_differ_are_listed_by_their_dotted_names() -> None:
    here, there = whole(), whole(num_steps=5, validation=None)
    assert view.difference(here, there) == [("num_steps", here["num_steps"], 5)]


def test_samples_and_checkpoints_are_found_newest_first(tmp_path: Path) -> None:
    for name in ("teacher", "step_000002", "step_000010", "other"):
        (tmp_path / "samples" / name).mkdir(parents=True)
        (tmp_path / "samples" / name / "00-seed0.mp4").touch()
    assert [row.step for row in view.samples(tmp_path)] == [None, 10, 2]
    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * step)
    (tmp_path / "checkpoints" / "step_000012.partial").mkdir()
    (tmp_path / "best.json").write_text('{"step": 2, "score": 1}')
    saved = [(each.step, each.num_bytes, each.best) for each in view.checkpoints(tmp_path)]
    assert saved == [(10, 10, False), (2, 2, True)]
