"""What a run has to show, read from its folder: figures, samples, checkpoints, log, differences."""

import functools
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.catalog.steps import step_of
from studio.runs.files import LOG, METRICS, read_json, read_jsonl

MAX_POINTS = 500  # of a curve; more than a chart has pixels for
SPARK_POINTS = 40
LOG_BYTES = 2**17  # that one look at the log brings
MAX_FOUND = 200
LOSS = "student/loss"
NOT_FIGURES = {"step", "time"}
OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # what a progress bar wrote before its last state


@dataclass(frozen=True)
class Curve:
    """One figure of one run by step."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class SampleRow:
    """The videos of one validation by file name; step None is the teacher's."""

    step: int | None
    videos: dict[str, Path]

    @property
    def title(self) -> str:
        """The step, or who drew it."""
        return "teacher" if self.step is None else f"step {self.step:,}"


@dataclass(frozen=True)
class SavedStep:
    step: int
    num_bytes: int
    saved: float  # Unix time
    best: bool


def figures(folder: Path) -> list[str]:
    """Names of all figures: the student's loss, other losses, the rest."""
    names = {name for line in read_jsonl(folder / METRICS) for name in line} - NOT_FIGURES
    return sorted(names, key=lambda name: (name != LOSS, not name.endswith("/loss"), name))


def curve(folder: Path, figure: str, smoothing: float = 0.0, num_points: int = MAX_POINTS) -> Curve:
    """A figure, smoothed by a moving average and thinned out evenly."""
    steps, values, mean = [], [], None
    for line in read_jsonl(folder / METRICS):
        value = line.get(figure)
        if isinstance(value, int | float) and "step" in line:
            mean = value if mean is None else smoothing * mean + (1 - smoothing) * value
            steps.append(line["step"])
            values.append(mean)
    stride = -(-len(steps) // num_points) or 1
    kept = sorted({*range(0, len(steps), stride), *([len(steps) - 1] if steps else [])})
    return Curve(tuple(steps[i] for i in kept), tuple(values[i] for i in kept))


def spark(folder: Path) -> Curve:
    """The first loss in a few points."""
    names = figures(folder)
    return curve(folder, names[0], num_points=SPARK_POINTS) if names else Curve((), ())


def latest(folder: Path) -> dict[str, float]:
    """The newest value of every figure."""
    newest: dict[str, float] = {}
    for line in read_jsonl(folder / METRICS):
        newest |= line
    return {name: value for name, value in newest.items() if name not in NOT_FIGURES}


def samples(folder: Path) -> list[SampleRow]:
    """The teacher's videos, then those of every validation, newest first."""
    rows = []
    for each in (folder / "samples").glob("*/"):
        step = step_of(each.name)
        videos = {path.stem: path for path in sorted(each.glob("*.mp4"))}
        if videos and (step is not None or each.name == "teacher"):
            rows.append(SampleRow(step, videos))
    return sorted(rows, key=lambda row: -(row.step if row.step is not None else 10**9))


def checkpoints(folder: Path) -> list[SavedStep]:
    """Whole checkpoints, newest first."""
    best = (read_json(folder / "best.json") or {}).get("step")
    saved = []
    for each in (folder / "checkpoints").glob("*"):
        step = step_of(each.name)
        if step is not None:
            modified = each.stat().st_mtime
            saved.append(SavedStep(step, folder_size(each, modified), modified, step == best))
    return sorted(saved, key=lambda each: -each.step)


@functools.lru_cache(maxsize=512)
def folder_size(folder: Path, modified: float) -> int:
    """Bytes of all files; a checkpoint never changes once it is there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The log


def read_log(folder: Path, offset: int) -> dict[str, Any]:
    """The log's text from a byte on, or its last part if `offset` is negative or far behind."""
    path = folder / LOG
    if not path.is_file():
        return {"text": "", "offset": 0, "skipped": False}
    size = path.stat().st_size
    start = offset if 0 <= offset <= size and size - offset <= LOG_BYTES else size - LOG_BYTES
    start = max(start, 0)
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(size - start)
    whole = text.rfind(b"\n") + 1  # the rest of the last line comes with the next look
    shown = text[:whole].decode(errors="replace")
    return {
        "text": OVERWRITTEN.sub("", shown),
        "offset": start + whole,
        "skipped": start != offset and start > 0,
    }


def find_in_log(folder: Path, wanted: str) -> list[str]:
    """The last lines that hold the text."""
    path = folder / LOG
    if not wanted or not path.is_file() or not path.stat().st_size:
        return []
    lines: list[str] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        place = text.rfind(wanted.encode())
        while place >= 0 and len(lines) < MAX_FOUND:
            start, end = text.rfind(b"\n", 0, place) + 1, text.find(b"\n", place)
            line = text[start : end if end >= 0 else len(text)]
            lines.append(line.decode(errors="replace").rsplit("\r", 1)[-1][:2000])
            place = text.rfind(wanted.encode(), 0, start)
    return lines[::-1]


# Configurations


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted path."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ, with both values; None where one side has no such setting."""
    ours, theirs = dict(flat(here)), dict(flat(there))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        (name, ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def newest_events(folder: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Events of these kinds, newest first."""
    events = read_jsonl(folder / "events.jsonl")
    return [event for event in reversed(events) if event.get("event") in kinds]
