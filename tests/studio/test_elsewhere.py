"""Runs of another machine that shares the folder: no process of theirs can be seen from here."""

import os
import time
from pathlib import Path

import psutil
import pytest

from studio.runs.files import EXIT, LAUNCH, PID, read_json, write_json
from studio.runs.status import SILENT_SEC
from studio.runs.supervisor import Supervisor
from tests.studio.runs import TRAINS, make_run, processes, queue, until

OTHER = {"host": "another-machine", "boot_id": "another"}


@pytest.fixture
def elsewhere(supervisor: Supervisor) -> Path:
    """A running run that looks as if its wrapper and its training were on another machine."""
    folder = queue(supervisor, "run", TRAINS)
    until(supervisor, "run", "running")
    write_json(folder / PID, read_json(folder / PID) | OTHER)
    with_host = (folder / "events.jsonl").read_text().replace('{"time"', '{"host": "other", "time"')
    (folder / "events.jsonl").write_text(with_host)
    return folder


def test_a_run_elsewhere_lives_while_its_wrapper_shows_that_it_does(
    supervisor: Supervisor, elsewhere: Path
) -> None:
    supervisor.poll()
    assert supervisor.run("run").state == "running"
    assert len(processes(elsewhere)) == 1
    wrapper = psutil.Process(read_json(elsewhere / PID)["pid"])
    wrapper.suspend()  # it would touch the file
    silent = time.time() - SILENT_SEC - 1
    os.utime(elsewhere / PID, (silent, silent))
    supervisor.poll()
    assert supervisor.run("run").state == "lost"
    assert not (elsewhere / EXIT).exists()  # it may only be late
    assert len(processes(elsewhere)) == 1
    wrapper.resume()
    os.utime(elsewhere / PID)
    assert supervisor.run("run").state == "running"


def test_a_run_elsewhere_can_be_stopped(supervisor: Supervisor, elsewhere: Path) -> None:
    supervisor.stop("run")
    assert until(supervisor, "run", "stopped").reason == ""
    assert processes(elsewhere) == []


def test_a_run_from_a_shell_elsewhere_is_not_taken_for_lost_and_can_be_marked_as_stopped(
    supervisor: Supervisor,
) -> None:
    folder = make_run(supervisor.runs_dir, "run")
    (folder / LAUNCH).unlink()
    event = f'{{"time": {time.time()}, "event": "started", "pid": {os.getpid()}, "host": "other"}}'
    (folder / "events.jsonl").write_text(event + "\n")
    supervisor.poll()
    run = supervisor.run("run")
    assert (run.state, "other" in run.reason) == ("running", True)
    supervisor.force_stop("run")  # this very process has the id of that one
    run = supervisor.run("run")
    assert (run.state, "marked as stopped; other" in run.reason) == ("stopped", True)
