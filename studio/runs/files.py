"""The files of a run's folder: their names, and how to write and read them whatever happens.

Written atomically and flushed to the disk, so that power loss leaves the old state or the new one.
Read with doubt: other processes write these files, may be killed while they do, and a full disk
cuts lines short.
"""

import functools
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # of the project: where commands of runs start
CONFIG, LAUNCH, LOG = "config.yaml", "launch.json", "log.txt"
PID, JOB, STOPPING, EXIT = "pid.json", "job.json", "stopping.json", "exit.json"
METRICS, EVENTS = "metrics.jsonl", "events.jsonl"

TAIL_BYTES = 2**16
ERROR_LINE = re.compile(
    r"^(?:\[rank\d+\]: *)?"  # torch's prefix
    r"((?:error: |(?:\w+\.)*\w*(?:Error|Exception|KeyboardInterrupt)\b).*)"
    r"|(Signal \d+ \(SIG\w+\) received by PID \d+)"  # in torchrun's report
)


def write_text(path: Path, text: str, new: bool = False) -> bool:
    """Writes a file whole or not at all. With `new`: False, and nothing done, if it is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_json(path: Path, data: Any, new: bool = False) -> bool:
    """Writes JSON as `write_text` does."""
    return write_text(path, json.dumps(data), new)


def read_json(path: Path) -> Any:
    """The JSON in a file, None where that is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; it is read again only when it has changed."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return []
    return _read_jsonl(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _read_jsonl(path: Path, mtime_ns: int, num_bytes: int) -> list[dict[str, Any]]:
    return parse_lines(path.read_text(errors="replace").splitlines())


def parse_lines(lines: list[str]) -> list[dict[str, Any]]:
    """The lines that hold a JSON object."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut short by a kill, a full disk or as it is being written
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def tail(path: Path, offset: int = 0) -> list[str]:
    """The last lines of a text file, up to 64 KiB and not before `offset`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    # a progress bar writes its line again and again: its last state is what one would see
    return [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]


def last_error(log: Path, offset: int = 0) -> str:
    """The last error in a log, not before `offset`; else its last line; empty without lines."""
    lines = [line.strip() for line in tail(log, offset) if line.strip()]
    for line in reversed(lines):
        found = ERROR_LINE.search(line)
        if found and "ChildFailedError" not in line:  # torchrun's own, which says less
            return (found[1] or found[2]).removeprefix("error: ")
    return lines[-1] if lines else ""
