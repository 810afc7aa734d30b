"""Processes that outlive the one that started them: which one it is, whether it lives, its end.

An id alone names no process, as ids are given out again; with the machine, the boot and the time of
its making it does. Everything that a run starts carries the run's mark in its environment, which
children inherit: so the whole tree is found even when parents in it are gone. (torchrun gives every
rank a session of its own, and its ranks outlive it.)
"""

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

MARK = "STUDIO_RUN_MARK"  # the environment variable
SLACK_SEC = 1.0  # of a creation time: psutil rounds the time of the boot to seconds
KILL_SEC = 10.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def identity() -> dict[str, Any]:
    """This process: `host`, `boot_id`, `pid`, and `create_time` in seconds after the boot."""
    process = psutil.Process()
    made = {"pid": process.pid, "create_time": _create_time(process), "boot_id": boot_id()}
    return made | {"host": socket.gethostname()}


def is_elsewhere(record: Mapping[str, Any]) -> bool:
    """Whether another machine, which shares the folder, wrote this down: it knows the process."""
    return bool(record.get("host", socket.gethostname()) != socket.gethostname())


def find(record: Mapping[str, Any]) -> psutil.Process | None:
    """The process of an `identity`, None where it has ended or is on another machine."""
    if is_elsewhere(record) or record["boot_id"] != boot_id():
        return None
    process = _living(record["pid"])
    same = process and abs(_create_time(process) - record["create_time"]) < SLACK_SEC
    return process if same else None


def find_older(pid: int, moment: float) -> psutil.Process | None:
    """The process with this id that was there at a Unix time; None where the id was given anew."""
    process = _living(pid)
    return process if process and process.create_time() < moment + SLACK_SEC else None


def kill_marked(mark: str) -> None:
    """Kills every process with this mark, and what they start meanwhile; gives up in the end."""
    deadline = time.monotonic() + KILL_SEC
    while (found := marked(mark)) and time.monotonic() < deadline:
        kill(found)
        time.sleep(0.05)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def marked(mark: str) -> list[psutil.Process]:
    """All living processes with this mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended, or somebody else's
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def boot_id() -> str:
    """Differs from boot to boot; empty where the system has none."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


def _living(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _create_time(process: psutil.Process) -> float:
    """Seconds after the boot: unlike Unix time it stays when somebody sets the clock."""
    return process.create_time() - psutil.boot_time()
