"""The state of a run, from the files in its folder and the table of processes.

    queued    in queue.json and not begun          finished  all steps are done
    starting  its process lives, training does     stopped   on request; resume continues it
              not yet                              failed    by itself; `reason` says why
    running   it trains                            lost      its process is gone and left no end:
    stopping  it was asked to end                            killed, or the machine went down

Only files of the newest start count. A run that was started from a shell has no pid.json: its
`started` event names its process. Of a run in Slurm job.json says what Slurm said. Other machines
may share the folder: their processes cannot be seen from here, but their wrappers touch pid.json.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from studio.runs.files import (
    EVENTS,
    EXIT,
    JOB,
    LOG,
    PID,
    STOPPING,
    last_error,
    read_json,
    read_jsonl,
)
from studio.runs.processes import find, find_older, is_elsewhere

State = Literal[
    "queued", "starting", "running", "stopping", "finished", "stopped", "failed", "lost"
]
ALIVE: tuple[State, ...] = ("starting", "running", "stopping")
BEAT_SEC = 10.0  # between two touches of pid.json
SILENT_SEC = 120.0  # after which a wrapper elsewhere counts as gone; clocks may differ, files lag
NOT_SAVED = "It ended before it could save; resume continues from its newest checkpoint."
NOT_STARTED = "It was not started; resume puts it into the queue."
LOST = (
    "Its process was killed or the machine went down; resume continues from its newest checkpoint."
)
ELSEWHERE = (
    "It was started from a shell on {host}, so that only that machine knows whether it lives."
)


@dataclass(frozen=True)
class Status:
    """How a run's newest start went. Times are Unix times, None where nobody wrote them down."""

    state: State  # never queued: that is for the queue to say
    reason: str
    started: float | None
    ended: float | None = None


def read_status(folder: Path) -> Status:
    wrapper = read_json(folder / PID)
    wrapper_lives = wrapper is not None and has_wrapper(folder, wrapper)
    exited = read_json(folder / EXIT)  # after the look at the process, which writes it last
    events, job = read_jsonl(folder / EVENTS), read_json(folder / JOB)
    start = newest_start(events)
    if exited is not None and start is not None and start["time"] > exited["time"]:
        wrapper, job, exited = None, None, None  # it was started again, from a shell
    began = next((found["time"] for found in (wrapper, job, start) if found is not None), None)
    if exited is not None:
        return Status(exited["state"], exited["reason"], began, exited["time"])
    if began is None:
        return Status("stopped", NOT_STARTED, None)
    trains = start is not None and start["time"] >= began
    asked = (read_json(folder / STOPPING) or {"time": 0})["time"] >= began
    last = events[-1] if trains else {}
    at_work: State = "stopping" if asked else "running" if trains else "starting"
    if job is not None:  # Slurm's word decides how it ends, and becomes an exit.json
        again = job["waits"] or last.get("event") == "stopped"  # for now: it is queued again
        return Status("starting" if again and not asked else at_work, job["note"], began)
    if wrapper_lives or (trains and trainer(start) is not None):
        return Status(at_work, "", began)
    if last.get("event") in ("finished", "stopped"):
        return Status(last["event"], "", began, last["time"])
    if wrapper is None and start is not None and is_elsewhere(start):
        return Status(at_work, ELSEWHERE.format(host=start["host"]), began)
    if asked:
        return Status("stopped", NOT_SAVED, began)
    said = last_error(folder / LOG, (wrapper or {}).get("log_offset", 0))
    return Status("lost", f"{LOST} Its log ends with: {said}" if said else LOST, began)


def has_wrapper(folder: Path, wrapper: Mapping[str, Any]) -> bool:
    """Whether the process that pid.json names lives, as far as can be told from here."""
    if is_elsewhere(wrapper):
        return time.time() - (folder / PID).stat().st_mtime < SILENT_SEC
    return find(wrapper) is not None


def newest_start(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The event with which the newest training began."""
    return next((e for e in reversed(events) if e.get("event") == "started"), None)


def trainer(start: Mapping[str, Any] | None) -> psutil.Process | None:
    """The living process that wrote a `started` event, None where it has ended or is elsewhere."""
    if start is None or "pid" not in start or is_elsewhere(start):
        return None
    return find_older(start["pid"], start["time"])
