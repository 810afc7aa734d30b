"""A run's figures in other programs."""

import json
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import HANG_SEC, wait_for
from trainers import mirror
from trainers.run.log import Tracker

Seen = list[tuple[int, dict[str, float]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setattr(mirror, "LOOK_SEC", 0.01)
    tracker = Tracker(tmp_path)
    tracker.metrics(1, {"student/loss": 0.5, "step_sec": 2.0})
    return tracker


def followed(run: Tracker) -> tuple[threading.Thread, Seen]:
    seen: Seen = []
    thread = threading.Thread(
        target=mirror.mirror, args=(run.run_dir, lambda *line: seen.append(line)), daemon=True
    )
    thread.start()
    wait_for(lambda: seen)
    return thread, seen


def test_a_run_is_followed_to_its_end(run: Tracker) -> None:
    run.event("saved", step=1)
    thread, seen = followed(run)
    text = json.dumps({"step": 2, "time": 0.0, "student/loss": 0.25}) + "\n"
    for part in (text[:9], text[9:]):  # a line may be seen when half of it is written
        with run.metrics_path.open("a") as file:
            file.write(part)
        time.sleep(0.05)
    run.metrics(3, {"student/loss": 0.125})
    run.event("finished", step=3)
    thread.join(HANG_SEC)
    assert not thread.is_alive()
    losses = {step: figures["student/loss"] for step, figures in seen}
    assert losses == {1: 0.5, 2: 0.25, 3: 0.125}
    assert seen[0][1].keys() == {"student/loss", "step_sec"}


def test_figures_that_a_resumed_run_writes_again_are_read_again(run: Tracker) -> None:
    run.metrics(2, {"student/loss": 9.0})
    thread, seen = followed(run)
    wait_for(lambda: len(seen) == 2)
    run.forget_after(1)
    run.metrics(2, {"student/loss": 0.25})
    run.event("stopped", step=2)
    thread.join(HANG_SEC)
    assert not thread.is_alive()
    assert seen[-1] == (2, {"student/loss": 0.25})


def test_what_is_not_installed_and_what_is_no_run_is_said(
    run: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "installed", lambda: ["tensorboard"])
    assert mirror.main([str(run.run_dir), "--to", "trackio"]) == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert mirror.main([str(run.run_dir / "nothing"), "--to", "tensorboard"]) == 2
    assert "has no metrics.jsonl" in capsys.readouterr().err
