"""What the supervisor says and does after anything was killed: studio, wrapper, run, power."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studio.runs.control import OVERDUE_SEC
from studio.runs.files import (
    CONFIG,
    EVENTS,
    EXIT,
    PID,
    ROOT,
    STOPPING,
    read_json,
    read_jsonl,
    write_json,
)
from studio.runs.processes import find
from studio.runs.supervisor import Supervisor
from tests.conftest import HANG_SEC, wait_for
from tests.studio.runs import QUICK, SLEEP, TRAINS, WATCH, make_run, processes, queue, states, until
from tests.trainers.test_engine import trainer
from trainers.registry import build_config, read_tree
from trainers.run.checkpoint import checkpoint_folders


def test_a_killed_wrapper_is_noticed_and_its_training_does_not_outlive_it(
    supervisor: Supervisor,
) -> None:
    folder = queue(supervisor, "run", TRAINS)
    until(supervisor, "run", "running")
    training = processes(folder)
    wrapper = find(read_json(folder / PID))
    wrapper.kill()
    wrapper.wait()
    supervisor.poll()
    assert supervisor.run("run").state == "lost"
    assert "resume" in supervisor.run("run").reason
    assert training
    assert not any(process.is_running() and process.status() != "zombie" for process in training)
    queue(supervisor, "next", QUICK)
    until(supervisor, "next", "finished")


def test_a_killed_studio_leaves_its_run_running_and_the_next_one_can_stop_it(
    supervisor: Supervisor,
) -> None:
    folder = make_run(supervisor.runs_dir, "run", TRAINS)
    supervisor._enqueue(folder, first=False)
    studio = subprocess.Popen([sys.executable, "-c", WATCH, supervisor.runs_dir], cwd=ROOT)
    wait_for(lambda: supervisor.run("run").state == "running")
    os.kill(studio.pid, signal.SIGKILL)
    studio.wait()
    before = processes(folder)
    supervisor.poll()
    assert supervisor.run("run").state == "running"
    assert processes(folder) == before
    supervisor.stop("run")
    assert until(supervisor, "run", "stopped").reason == ""


def test_after_power_loss_nothing_runs_or_stops_for_ever_and_the_queue_goes_on(
    supervisor: Supervisor,
) -> None:
    training = queue(supervisor, "training", TRAINS, devices=("cuda:0",))
    stopping = queue(supervisor, "stopping", SLEEP, devices=("cuda:1",))
    until(supervisor, "training", "running")
    supervisor.stop("stopping")
    queue(supervisor, "next", QUICK, devices=("cuda:0", "cuda:1"))
    # a resumed run whose start the studio did not live to see, and one that it saw only half of
    queue(supervisor, "half", QUICK, devices=("cuda:2",))
    (supervisor.runs_dir / ".queue.json.123.456").write_text("[")
    for folder in (training, stopping):
        wrapper = find(read_json(folder / PID))
        for process in (wrapper, *processes(folder)):
            process.kill()
    (training / EVENTS).open("a").write('{"time": 1, "ev')
    (training / "metrics.jsonl").write_text('{"step": 3, "time": 5}\n{"st\0\0')
    later = Supervisor(supervisor.runs_dir)
    assert until(later, "next", "finished")
    until(later, "half", "finished")
    assert states(later) == {
        "training": "lost",
        "stopping": "stopped",
        "next": "finished",
        "half": "finished",
    }
    assert later.run("training").step == 3


def test_a_process_of_another_boot_or_with_a_recycled_id_is_not_the_run(
    supervisor: Supervisor,
) -> None:
    for name, change in (("boot", {"boot_id": "another"}), ("recycled", {"create_time": 1.0})):
        folder = queue(supervisor, name, SLEEP, devices=(f"cuda:{len(name)}",))
        supervisor.poll()
        record = read_json(folder / PID)
        wrapper = find(record)
        (folder / PID).write_text(json.dumps(record | change | {"mark": "none"}))
        supervisor.poll()
        assert supervisor.run(name).state == "lost"
        assert wrapper.is_running()
        (folder / PID).write_text(json.dumps(record))
        (folder / EXIT).unlink()


def test_a_stop_that_its_wrapper_does_not_carry_out_ends_all_the_same(
    supervisor: Supervisor,
) -> None:
    folder = queue(supervisor, "run", SLEEP)
    until(supervisor, "run", "starting")
    wait_for(lambda: processes(folder))
    wrapper = find(read_json(folder / PID))
    wrapper.suspend()
    supervisor.stop("run", grace_sec=0)
    assert supervisor.run("run").state == "stopping"
    write_json(folder / STOPPING, {"time": time.time() - OVERDUE_SEC - 1, "grace_sec": 0})
    write_json(folder / PID, read_json(folder / PID) | {"time": 0})
    supervisor.poll()
    assert supervisor.run("run").state == "stopped"
    assert processes(folder) == []
    assert not wrapper.is_running() or wrapper.status() == "zombie"


def test_runs_from_a_shell_appear_can_be_stopped_and_are_lost_when_killed(
    supervisor: Supervisor,
) -> None:
    for name in ("calm", "killed"):
        folder = make_run(supervisor.runs_dir, name, TRAINS)
        command = json.loads((folder / "launch.json").read_text())["command"]
        (folder / "launch.json").unlink()
        process = subprocess.Popen(command)
        until(supervisor, name, "running")
        if name == "calm":
            supervisor.stop(name)
        else:
            process.kill()
        process.wait(HANG_SEC)
    assert states(supervisor) == {"calm": "stopped", "killed": "lost"}
    with pytest.raises(ValueError, match="devices: killed was started from a shell"):
        supervisor.resume("killed")


def test_a_real_run_that_was_saved_and_killed_resumes_and_equals_one_that_was_not(
    supervisor: Supervisor, config_tree, tmp_path: Path
) -> None:
    tree = build_config(config_tree("finetune", num_steps=150)).model_dump(mode="json")
    folder = supervisor.runs_dir / supervisor.submit(tree, ["cpu"])
    until(supervisor, "micro", "running")
    supervisor.save_now("micro")
    wait_for(lambda: checkpoint_folders(folder))
    assert wait_for(lambda: supervisor.run("micro").eta_sec)
    for process in (find(read_json(folder / PID)), *processes(folder)):
        process.kill()
    assert until(supervisor, "micro", "lost").step < 150
    supervisor.resume("micro")
    until(supervisor, "micro", "finished")
    assert [e["event"] for e in read_jsonl(folder / EVENTS)].count("resumed") == 1
    assert trainer(build_config(read_tree(folder / CONFIG)), tmp_path / "whole").train()
    name = "export/transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(run_dir / name) for run_dir in (folder, tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
