"""What is done to the process of one run: start it, ask it, end it, write down that it ended.

The caller holds the lock of the folder of runs.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from studio.runs import slurm
from studio.runs.files import (
    EVENTS,
    EXIT,
    JOB,
    LOG,
    PID,
    ROOT,
    STOPPING,
    read_json,
    read_jsonl,
    write_json,
)
from studio.runs.launch import Launch
from studio.runs.processes import KILL_SEC, find, is_elsewhere, kill, kill_marked
from studio.runs.status import ALIVE, Status, has_wrapper, newest_start, read_status, trainer

START_SEC = 60.0  # for a wrapper to say who it is
OVERDUE_SEC = 30.0  # for a wrapper to end a run once both graces are over
WRAPPER_SEC = 3.0  # for a wrapper to write down that its training is gone
CONTROLS = ("stop", "save_now", "sample_now")
MARKED = (
    "It was marked as stopped; {host}, where it trained, may still be at it until its next step."
)


def clear(folder: Path) -> None:
    """Removes what an earlier start left, so that the next one counts."""
    for name in (PID, JOB, EXIT, STOPPING, *(f"control/{control}" for control in CONTROLS)):
        (folder / name).unlink(missing_ok=True)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the wrapper of a run and waits until it has said who it is, or has failed to."""
    with (folder / LOG).open("ab") as output:
        wrapper = subprocess.Popen(
            [sys.executable, "-m", "studio.runs.wrapper", str(folder)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SEC
    while not (folder / PID).exists() and wrapper.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not (folder / PID).exists():
        wrapper.kill()
        write_exit(folder, Status("failed", "It could not be started; its log may say why.", None))
    return wrapper


def submit(folder: Path, launch: Launch) -> None:
    """Hands a run to Slurm; a refusal is written down as its end."""
    log = folder / LOG
    record = {"time": time.time(), "log_offset": log.stat().st_size if log.exists() else 0}
    try:
        number = slurm.submit(folder, launch.command, {**os.environ, **launch.environment})
    except ValueError as error:
        write_exit(folder, Status("failed", str(error), None))
        return
    note = slurm.note(number, slurm.SlurmJob("PENDING", "it was just submitted"))
    write_json(folder / JOB, record | {"number": number, "waits": True, "note": note})


def follow(folder: Path, job: slurm.SlurmJob | None) -> None:
    """Writes down what Slurm says about the run's job; cancels what does not stop by itself."""
    record = read_json(folder / JOB)
    ended = slurm.outcome(folder, record, job)
    if ended is not None:
        write_exit(folder, ended)
    elif job is not None:
        said = {"waits": job.state in slurm.WAITS, "note": slurm.note(record["number"], job)}
        if record | said != record:
            write_json(folder / JOB, record | said)
        if (folder / STOPPING).exists() and is_overdue(folder):
            with suppress(ValueError):  # the next look asks again
                slurm.cancel(record["number"])


def ask(folder: Path, control: str) -> None:
    """Leaves a request that the training looks for after each step."""
    (folder / "control").mkdir(exist_ok=True)
    (folder / "control" / control).touch()


def ask_to_stop(folder: Path, grace_sec: float) -> None:
    """Stops after this step, with a checkpoint; by force if that takes too long."""
    write_json(folder / STOPPING, {"time": time.time(), "grace_sec": grace_sec})
    ask(folder, "stop")
    job = read_json(folder / JOB)
    if job is not None:  # it looks for the stop file once it trains
        slurm.cancel(job["number"], only_if_waiting=True)


def is_overdue(folder: Path) -> bool:
    """Whether a stop was asked for so long ago that its wrapper should have forced it."""
    request = read_json(folder / STOPPING)
    return time.time() > request["time"] + 2 * request["grace_sec"] + OVERDUE_SEC


def end(folder: Path) -> None:
    """Kills training and all its processes; then the wrapper, unless it ends by itself.

    On another machine the wrapper does that, or nobody can. ValueError where Slurm refuses.
    """
    job, wrapper = read_json(folder / JOB), read_json(folder / PID)
    if job is not None:
        slurm.cancel(job["number"])
        return
    process = wrapper and find(wrapper)
    if process is not None:
        kill_marked(wrapper["mark"])
        _, stuck = psutil.wait_procs([process], timeout=WRAPPER_SEC)
        kill(stuck)
        psutil.wait_procs(stuck, timeout=KILL_SEC)
        return
    started = newest_start(read_jsonl(folder / EVENTS))
    process = trainer(started)
    if wrapper is None and started is not None and is_elsewhere(started):
        write_exit(folder, Status("stopped", MARKED.format(host=started["host"]), None))
    elif process is not None:  # from a shell
        kill([*process.children(recursive=True), process])
        psutil.wait_procs([process], timeout=KILL_SEC)


def settle(folder: Path) -> None:
    """Where the wrapper died without a word: ends what is left of the run and writes its end.

    Not where it was on another machine: its files may only be late.
    """
    wrapper = read_json(folder / PID)
    if wrapper is None or is_elsewhere(wrapper) or has_wrapper(folder, wrapper):
        return
    if (folder / EXIT).exists():
        return
    kill_marked(wrapper["mark"])
    status = read_status(folder)
    if status.state not in ALIVE:
        write_exit(folder, status)


def write_exit(folder: Path, status: Status) -> None:
    """Writes down how a run ended, unless its wrapper has, which knows better."""
    ended = {"state": status.state, "reason": status.reason, "code": None, "time": time.time()}
    write_json(folder / EXIT, ended, new=True)
