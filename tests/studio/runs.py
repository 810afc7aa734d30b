"""Runs for tests: folders whose command is a few lines of Python, or a real micro training."""

import sys
from pathlib import Path

import psutil
import yaml

from studio.launch import Launch
from studio.processes import marked
from studio.runfiles import CONFIG, LAUNCH, PID, read_json, write_json

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
