"""Runs for tests: folders whose command is a few lines of Python, or a real micro training."""

import sys
from pathlib import Path

import psutil
import yaml

from studio.runs.files import CONFIG, LAUNCH, PID, read_json, write_json
from studio.runs.launch import Launch
from studio.runs.listing import Run
from studio.runs.processes import marked
from studio.runs.supervisor import Supervisor
from tests.conftest import wait_for

SLEEP = "import time; time.sleep(600)"
TRAINS = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
def event(kind):
    line = json.dumps({"time": time.time(), "event": kind, "pid": os.getpid()})
    with (folder / "events.jsonl").open("a") as file:
        file.write(line + "\\n")
event("started")
while not (folder / "control" / "stop").exists():
    time.sleep(0.02)
event("stopped")
"""


def make_run(
    runs_dir: Path,
    name: str,
    code: str = SLEEP,
    devices: tuple[str, ...] = ("cpu",),
    after: str | None = None,
) -> Path:
    """A run that is Python code, which gets the run's folder as its argument."""
    folder = runs_dir / name
    return make_command_run(folder, (sys.executable, "-c", code, str(folder)), devices, after)


def make_command_run(
    folder: Path,
    command: tuple[str, ...],
    devices: tuple[str, ...] = ("cpu",),
    after: str | None = None,
) -> Path:
    folder.mkdir(parents=True)
    launch = Launch(devices=devices, command=command, after=after)
    write_json(folder / LAUNCH, launch.model_dump(mode="json"))
    tree = {"name": folder.name, "method": "finetune", "model": "tiny-wan", "num_steps": 9}
    (folder / CONFIG).write_text(yaml.safe_dump(tree))
    return folder


def processes(folder: Path) -> list[psutil.Process]:
    """What the newest start of a run has started and what still lives."""
    return marked(read_json(folder / PID)["mark"])


QUICK = "pass"
BROKEN = "raise ValueError('model: there is none')"
WATCH = """
import sys, time, pathlib
from studio.runs.supervisor import Supervisor
Supervisor(pathlib.Path(sys.argv[1])).start()
time.sleep(600)
"""


def queue(supervisor: Supervisor, name: str, code: str = SLEEP, **options) -> Path:
    folder = make_run(supervisor.runs_dir, name, code, **options)
    supervisor._enqueue(folder, first=False)
    return folder


def until(supervisor: Supervisor, name: str, *states: str) -> Run:
    """Polls until the run is in one of these states."""

    def look() -> Run | None:
        supervisor.poll()
        run = supervisor.run(name)
        return run if run.state in states else None

    return wait_for(look)


def states(supervisor: Supervisor) -> dict[str, str]:
    return {run.name: run.state for run in supervisor.runs()}
