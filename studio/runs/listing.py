"""Runs as their folders tell them: state, progress, place in the queue. Reads only.

Runs that were started from a shell are there too; they have no launch.json.
"""

import functools
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from studio.runs.files import CONFIG, EXIT, JOB, LAUNCH, METRICS, PID, parse_lines, read_json, tail
from studio.runs.launch import Launch
from studio.runs.slurm import Allocation
from studio.runs.status import ALIVE, State, read_status
from trainers.settings.run import NAME_PATTERN

QUEUE = "queue.json"
PREPARE = "prepare"  # in place of a method: a run that makes data
NUM_PACE_LINES = 50  # of metrics.jsonl, that the pace is taken from
MAX_NAME = 64


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. Times are Unix times; `step` counts finished steps."""

    name: str
    folder: Path
    state: State
    reason: str  # why it failed, was lost or stopped without a checkpoint; else empty
    method: str  # method, model and num_steps are empty where config.yaml is damaged
    model: str
    num_steps: int
    step: int
    eta_sec: float | None
    devices: tuple[str, ...]  # of this machine; empty for a run from a shell or in Slurm
    slurm: Allocation | None
    after: str | None
    created: float
    started: float | None
    ended: float | None
    position: int | None = None  # in the queue, from 1
    waits_for: str = ""  # why it does not start yet


def is_name(name: object) -> bool:
    """Whether a run may have this name; it comes from browsers and becomes a path."""
    return isinstance(name, str) and re.fullmatch(NAME_PATTERN, name) is not None


def run_folder(runs_dir: Path, name: str) -> Path:
    """The folder of a run. ValueError where there is no such run."""
    if not is_name(name) or not (runs_dir / name / CONFIG).is_file():
        raise ValueError(f"run: there is no run {str(name)[:MAX_NAME]!r}; reload the list")
    return runs_dir / name


def free_name(runs_dir: Path, name: str) -> str:
    """The name, or the first of name-2, name-3 and so on that no run has."""
    number, free = 1, name
    while (runs_dir / free).exists():
        number += 1
        ending = f"-{number}"
        free = name[: MAX_NAME - len(ending)] + ending
    return free


def read_launch(folder: Path) -> Launch | None:
    """How a run was started; None for one from a shell, and where the file is damaged."""
    try:
        return Launch.model_validate(read_json(folder / LAUNCH))
    except ValidationError:
        return None


def read_tree(folder: Path) -> dict[str, Any]:
    """The settings in config.yaml; empty where it is damaged."""
    path = folder / CONFIG
    return _read_tree(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _read_tree(path: Path, mtime_ns: int) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(errors="replace"), yaml.CSafeLoader)
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def list_runs(runs_dir: Path) -> list[Run]:
    """Living ones first, then the queue in its order, then the others, newest first."""
    queue = read_queue(runs_dir)
    folders = [path.parent for path in runs_dir.glob(f"[!.]*/{CONFIG}")]
    runs = []
    for folder in filter(lambda folder: is_name(folder.name), folders):
        with suppress(FileNotFoundError):  # deleted meanwhile
            runs.append(read_run(folder, queue))
    reasons = waiting(runs)
    runs = [replace(run, waits_for=reasons.get(run.name, "")) for run in runs]
    return sorted(runs, key=_place)


def read_queue(runs_dir: Path) -> list[str]:
    """The names of the waiting runs in order.

    The file may still name one that has begun or was deleted: queueing removed the files of its
    earlier start.
    """
    names = read_json(runs_dir / QUEUE) or []
    folders = [runs_dir / name for name in names if (runs_dir / name / CONFIG).is_file()]
    begun = (PID, JOB, EXIT)
    return [f.name for f in folders if not any((f / name).exists() for name in begun)]


def _place(run: Run) -> tuple[int, float]:
    if run.position is not None:
        return 1, run.position
    return (0 if run.state in ALIVE else 2), -(run.started or run.created)


def waiting(runs: Sequence[Run]) -> dict[str, str]:
    """Why each queued run does not start yet; those that may start are left out.

    A run that waits for a device keeps its place: later ones do not take that device.
    """
    by_name = {run.name: run for run in runs}
    users = {device: run.name for run in runs if run.state in ALIVE for device in run.devices}
    reasons = {}
    for run in sorted((r for r in runs if r.position), key=_place):
        earlier = by_name.get(run.after) if run.after else None
        used = next((device for device in run.devices if device in users), None)
        if run.after and (earlier is None or earlier.state != "finished"):
            reasons[run.name] = f"{run.after} ({earlier.state if earlier else 'deleted'})"
            continue
        if used is not None:
            reasons[run.name] = f"{used}, used by {users[used]}"
        users = dict.fromkeys(run.devices, run.name) | users
    return reasons


def read_run(folder: Path, queue: Sequence[str] = ()) -> Run:
    """One run; `queue` holds the names of the waiting runs in order."""
    tree, launch, status = read_tree(folder), read_launch(folder), read_status(folder)
    queued = folder.name in queue and status.state not in ALIVE
    num_steps = tree.get("num_steps")
    num_steps = num_steps if isinstance(num_steps, int) else 0
    steps = read_steps(folder)
    return Run(
        name=folder.name,
        folder=folder,
        state="queued" if queued else status.state,
        reason="" if queued else status.reason,
        method=str(tree.get("method", "")),
        model=str(tree.get("model", "")),
        num_steps=num_steps,
        step=steps[-1][0] if steps else 0,
        eta_sec=eta_sec(steps, status.started, num_steps) if status.state == "running" else None,
        devices=launch.devices if launch else (),
        slurm=launch.slurm if launch else None,
        after=launch.after if launch else None,
        created=(folder / CONFIG).stat().st_mtime,
        started=status.started,
        ended=status.ended,
        position=list(queue).index(folder.name) + 1 if queued else None,
    )


def read_steps(folder: Path) -> Sequence[tuple[int, float]]:
    """Number of finished steps and Unix time of the newest lines of metrics.jsonl."""
    path = folder / METRICS
    if not path.exists():
        return ()
    stat = path.stat()
    return _read_steps(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)
def _read_steps(path: Path, mtime_ns: int, num_bytes: int) -> Sequence[tuple[int, float]]:
    """`read_steps` of a file as it was at a time; most runs have ended, and are read only once."""
    lines = parse_lines(tail(path)[-NUM_PACE_LINES:])
    return tuple((line["step"], line["time"]) for line in lines if {"step", "time"} <= line.keys())


def eta_sec(
    steps: Sequence[tuple[int, float]], started: float | None, num_steps: int
) -> float | None:
    """Seconds to the last step at the pace of the newest ones, with all that is between them."""
    recent = [(step, moment) for step, moment in steps if moment >= (started or 0)]
    if not recent or recent[-1][0] == recent[0][0]:
        return None
    pace_sec = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
    return max(0, num_steps - recent[-1][0]) * pace_sec
