"""python -m studio.runs.wrapper RUN_DIR: runs one training and writes down how it ended.

It stands between studio and training because only a parent learns how a process ended, and the
studio may be gone by then. It starts the command in launch.json, its output to log.txt, and writes

    pid.json     who this is, made exactly once: a second wrapper for the same start gives up;
                 touched every few seconds, for studios on other machines
    exit.json    state, reason, code and time, when the training and all its processes are gone

Once it sees stopping.json it makes sure that the training ends: by the stop file, which the studio
has put there; after a grace by SIGTERM (torchrun passes it on to its ranks); after another grace by
killing everything that carries the run's mark.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.runs.files import (
    EVENTS,
    EXIT,
    LAUNCH,
    LOG,
    PID,
    ROOT,
    STOPPING,
    last_error,
    read_json,
    read_jsonl,
    write_json,
)
from studio.runs.processes import MARK, identity, kill_marked
from studio.runs.status import BEAT_SEC, NOT_SAVED, State

POLL_SEC = 0.2
RESERVE = ".reserve"  # space for exit.json, taken while there is some
RESERVE_BYTES = 2**16
FULL_DISK_BYTES = 2**17

Process = subprocess.Popen[bytes]


def main(run_dir: Path) -> int:
    """Returns 0 once exit.json is written, 3 where another wrapper has taken this start."""
    launch = read_json(run_dir / LAUNCH)
    command, variables = launch["command"], launch["environment"]
    log = run_dir / LOG
    record = identity() | {"mark": secrets.token_hex(16), "time": time.time()}
    record["log_offset"] = log.stat().st_size if log.exists() else 0
    if not write_json(run_dir / PID, record, new=True):
        print(f"{run_dir} has been started already", file=sys.stderr)
        return 3
    (run_dir / RESERVE).write_bytes(b" " * RESERVE_BYTES)
    threading.Thread(target=beat, args=(run_dir / PID,), daemon=True).start()
    early: list[int] = []  # SIGTERM, as when the machine shuts down, before there is a training
    signal.signal(signal.SIGTERM, lambda signum, _: early.append(signum))
    try:
        process = start(command, {**os.environ, **variables, MARK: record["mark"]}, log)
    except OSError as error:
        end = ending("failed", f"Its command cannot be run: {error}.", None)
    else:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        if early:
            process.terminate()
        forced = wait(process, run_dir)
        kill_marked(record["mark"])  # ranks that outlived their torchrun
        end = outcome(run_dir, record, process.returncode, forced)
    (run_dir / RESERVE).unlink(missing_ok=True)
    write_json(run_dir / EXIT, end, new=True)
    return 0


def beat(file: Path) -> None:
    """Shows that this process lives, until it ends."""
    while True:
        time.sleep(BEAT_SEC)
        os.utime(file)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Starts the training. OSError where there is no such command."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait(process: Process, run_dir: Path) -> bool:
    """Waits for the end. Returns whether it took more than the stop file."""
    while process.poll() is None:
        request = read_json(run_dir / STOPPING)
        if request is not None:
            return make_end(process, request["grace_sec"])
        time.sleep(POLL_SEC)
    return False


def make_end(process: Process, grace_sec: float) -> bool:
    """As `wait`, and does not wait for ever."""
    if has_ended(process, grace_sec):
        return False
    process.terminate()
    if not has_ended(process, grace_sec):
        process.kill()
        process.wait()
    return True


def has_ended(process: Process, within_sec: float) -> bool:
    try:
        process.wait(within_sec)
    except subprocess.TimeoutExpired:
        return False
    return True


def outcome(run_dir: Path, record: Mapping[str, Any], code: int, forced: bool) -> dict[str, Any]:
    """How the run ended, by the code of its command, its events and what was asked of it."""
    events = [e for e in read_jsonl(run_dir / EVENTS) if e.get("time", 0) >= record["time"]]
    last = events[-1].get("event") if events else None
    asked = read_json(run_dir / STOPPING) is not None
    if last == "stopped":  # also where torchrun calls its SIGTERM a failure
        return ending("stopped", "", code)
    if code == 0:
        return ending("finished", "", code)
    if forced or (asked and code == -signal.SIGKILL):
        return ending("stopped", NOT_SAVED, code)
    return ending("failed", failure(run_dir, record, code), code)


def ending(state: State, reason: str, code: int | None) -> dict[str, Any]:
    return {"state": state, "reason": reason, "code": code, "time": time.time()}


def failure(run_dir: Path, record: Mapping[str, Any], code: int) -> str:
    """Why the command failed, as far as log and disk tell."""
    said = last_error(run_dir / LOG, record["log_offset"])
    if shutil.disk_usage(run_dir).free < FULL_DISK_BYTES:  # the log may have lost its end
        return f"The disk is full; free some space and resume. The log ends with: {said}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", most likely because memory ran out" if code == -signal.SIGKILL else ""
        return f"It was ended by {name}{hint}."
    return said or f"It ended with code {code} and said nothing."


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
