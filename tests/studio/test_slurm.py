"""Runs in a real Slurm of two nodes on this machine. All but the first train nothing."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from studio.runs import supervisor as queue
from studio.runs.files import EVENTS, JOB, LOG, read_json, read_jsonl, write_json
from studio.runs.slurm import SCRIPT, Allocation
from studio.runs.status import NOT_SAVED
from studio.runs.supervisor import Supervisor
from tests.conftest import wait_for
from tests.studio.runs import TRAINS, until
from tests.studio.slurm_cluster import slurm_cluster
from trainers.registry import build_config

CPU = Allocation(nodes=1, gpus_per_node=0)
TREE = {"method": "finetune", "model": "tiny-wan", "num_steps": 9}

REMOVES = """
(folder / "control" / "stop").unlink()
event("stopped")
"""
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that sbatch and the others find, and asked often. Skips where it cannot start."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(slurm_cluster(tmp_path_factory.mktemp("slurm")))
        except RuntimeError as error:
            pytest.skip(str(error))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**found, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(queue, "SLURM_SEC", 0.2)
        yield


def submit(one: Supervisor, name: str, code: str, asked: Allocation = CPU) -> Path:
    """A run whose script starts this Python code, which gets the run's folder, for torchrun."""
    one.submit({**TREE, "name": name}, asked)
    folder = one.runs_dir / name
    program = folder / "program.py"
    program.write_text(code)
    text = (folder / SCRIPT).read_text()
    command, arguments = text.index(".venv/bin/torchrun"), text.index('-m trainers "$@"')
    text = text[:command] + f"{sys.executable} {program} {folder} " + text[arguments:]
    (folder / SCRIPT).write_text(text)
    return folder


def events(folder: Path) -> list[str]:
    return [event["event"] for event in read_jsonl(folder / EVENTS) if event["event"] != "saved"]


@pytest.mark.usefixtures("cluster")
def test_a_run_trains_on_two_nodes(supervisor: Supervisor, config_tree) -> None:
    tree = build_config(config_tree("finetune", num_steps=2, parallel={"replicate": 2}))
    asked = Allocation(nodes=2, gpus_per_node=0, partition="main")
    folder = supervisor.runs_dir / supervisor.submit(tree.model_dump(mode="json"), asked)
    until(supervisor, "micro", "finished", "failed")
    assert events(folder) == ["started", "finished"], (folder / LOG).read_text()
    assert read_jsonl(folder / EVENTS)[0]["num_ranks"] == 2
    assert (folder / "export").is_dir()


@pytest.mark.usefixtures("cluster")
def test_a_job_near_the_end_of_its_time_is_queued_again_until_it_is_stopped(
    supervisor: Supervisor,
) -> None:
    folder = submit(supervisor, "run", TRAINS.replace('event("stopped")', REMOVES))
    until(supervisor, "run", "running")
    number = read_json(folder / JOB)["number"]
    # what Slurm sends before the end of the time
    subprocess.run(["scancel", "--signal=USR1", "--batch", number], check=True)
    wait_for(lambda: f"Slurm job {number} waits: " in reason(supervisor, "run"))
    assert supervisor.run("run").state == "starting"
    until(supervisor, "run", "running")
    assert events(folder) == ["started", "stopped", "started"]
    supervisor.stop("run")
    assert supervisor.run("run").state in ("stopping", "stopped")
    assert until(supervisor, "run", "stopped").reason == ""
    assert read_json(folder / JOB)["number"] == number


@pytest.mark.usefixtures("cluster")
def test_a_job_can_be_cancelled_while_it_waits_and_while_it_trains(supervisor: Supervisor) -> None:
    submit(supervisor, "trains", SLEEPS, Allocation(nodes=2, gpus_per_node=0))
    wait_for(lambda: has_begun(supervisor, "trains"))
    submit(supervisor, "waits", SLEEPS)
    wait_for(lambda: has_begun(supervisor, "waits") or "Resources" in reason(supervisor, "waits"))
    supervisor.stop("waits")
    assert until(supervisor, "waits", "stopped").reason == NOT_SAVED
    supervisor.force_stop("trains")
    assert until(supervisor, "trains", "stopped").reason == NOT_SAVED


@pytest.mark.usefixtures("cluster")
def test_a_job_whose_number_was_not_written_down_is_found_again_and_none_starts_twice(
    supervisor: Supervisor,
) -> None:
    folder = submit(supervisor, "run", SLEEPS)
    supervisor.poll()
    number = read_json(folder / JOB)["number"]
    supervisor._enqueue(folder, first=True)  # as a studio left it that died while it submitted
    supervisor.poll()
    assert read_json(folder / JOB)["number"] == number
    write_json(folder / JOB, read_json(folder / JOB) | {"number": "999999"})
    assert "no longer knows its job 999999" in until(supervisor, "run", "lost").reason
    supervisor.resume("run")
    supervisor.poll()
    assert read_json(folder / JOB)["number"] == number


@pytest.mark.usefixtures("cluster")
def test_what_slurm_refuses_and_how_a_job_failed_is_the_reason(supervisor: Supervisor) -> None:
    submit(supervisor, "refused", "pass", Allocation(gpus_per_node=0, partition="none"))
    refused = until(supervisor, "refused", "failed").reason
    assert refused.startswith("Slurm refuses: ")
    assert "partition" in refused
    submit(supervisor, "broken", "raise ValueError('model: there is none')")
    assert until(supervisor, "broken", "failed").reason == "ValueError: model: there is none"


def reason(one: Supervisor, name: str) -> str:
    one.poll()
    return one.run(name).reason


def has_begun(one: Supervisor, name: str) -> bool:
    """Whether Slurm has begun with the run's job."""
    return reason(one, name) == "" and one.run(name).state == "starting"


@pytest.mark.parametrize("text", ["$(id)", "a b", "x;y", "a\n"])
def test_what_is_asked_of_slurm_is_a_plain_word(text: str) -> None:
    for name in ("partition", "account", "time_limit"):
        with pytest.raises(ValueError, match=name):
            Allocation.model_validate({name: text})
