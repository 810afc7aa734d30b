"""The index of comparisons, jobs and clips: one SQLite file, shared by web process and workers.

Disk is truth: every mp4 carries its recipe, so a lost database costs history and timings, never a
clip. A job is in exactly one state; every change of state is one `BEGIN IMMEDIATE` transaction, so
two processes cannot both win it.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pipelines.recipe import Recipe
from pipelines.strict import Strict

JobState = Literal["queued", "running", "finished", "failed", "cancelled"]

BUSY_TIMEOUT_SEC = 10
NUM_RECENT_CLIPS = 200  # enough to find a clip of the same model and size for an estimate
SCHEMA = """
CREATE TABLE IF NOT EXISTS comparisons (
    id TEXT PRIMARY KEY, created REAL NOT NULL, cells TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, recipe TEXT NOT NULL,
    state TEXT NOT NULL, device TEXT, phase TEXT, step INTEGER, total INTEGER, eta_sec REAL,
    error TEXT, cancel INTEGER NOT NULL DEFAULT 0, worker_pid INTEGER, worker_created REAL,
    created REAL NOT NULL, started REAL, finished REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (key, id);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, id);
CREATE TABLE IF NOT EXISTS clips (
    key TEXT PRIMARY KEY, recipe TEXT NOT NULL, created REAL NOT NULL, load_sec REAL,
    encode_sec REAL, denoise_sec REAL, decode_sec REAL, total_sec REAL,
    num_forwards INTEGER NOT NULL, notes TEXT NOT NULL
);
"""


class Cell(Strict):
    """One tile of a comparison: its letter, a few words for it, and what it shows."""

    label: str
    title: str
    recipe: Recipe


@dataclass(frozen=True)
class Comparison:
    """What one press of Generate asked for."""

    id: str
    created: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Job:
    """One clip to be made. `worker_pid` with `worker_created` names a process beyond doubt."""

    id: int
    key: str
    recipe: str
    state: JobState
    device: str | None
    phase: str | None
    step: int | None
    total: int | None
    eta_sec: float | None
    error: str | None
    cancel: int
    worker_pid: int | None
    worker_created: float | None
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class ClipInfo:
    """What a clip cost. Seconds are None for a clip that was found on disk without its row."""

    num_forwards: int
    load_sec: float | None = None
    encode_sec: float | None = None
    denoise_sec: float | None = None
    decode_sec: float | None = None
    total_sec: float | None = None
    notes: str = ""


class Store:
    """The open index. Every method is safe from any thread; one instance a process."""

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_SEC, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    # Comparisons

    def add_comparison(self, cells: tuple[Cell, ...]) -> str:
        """Remembers the cells under a new id of 16 hex digits."""
        comparison_id = secrets.token_hex(8)
        text = json.dumps([cell.model_dump(mode="json") for cell in cells])
        with self._write() as connection:
            connection.execute(
                "INSERT INTO comparisons VALUES (?, ?, ?)", (comparison_id, time.time(), text)
            )
        return comparison_id

    def comparison(self, comparison_id: str) -> Comparison | None:
        rows = self._read("SELECT * FROM comparisons WHERE id = ?", comparison_id)
        return _comparison(rows[0]) if rows else None

    def recent_comparisons(self, limit: int) -> list[Comparison]:
        """The newest comparisons, newest first."""
        rows = self._read("SELECT * FROM comparisons ORDER BY created DESC LIMIT ?", limit)
        return [_comparison(row) for row in rows]

    # Jobs: queued -> running -> finished | failed | cancelled

    def enqueue(self, recipe: Recipe) -> None:
        """Queues the recipe unless a job for the same recipe is already waiting or running."""
        key = recipe.key()
        with self._write() as connection:
            connection.execute(
                "INSERT INTO jobs (key, recipe, state, created) SELECT ?, ?, 'queued', ? "
                "WHERE NOT EXISTS (SELECT 1 FROM jobs "
                "WHERE key = ? AND state IN ('queued', 'running') AND cancel = 0)",
                (key, recipe.to_json(), time.time(), key),
            )

    def claim(self, device: str) -> Job | None:
        """Gives the oldest queued job to `device`; None when it is busy or nothing waits."""
        with self._write() as connection:
            row = connection.execute(
                "UPDATE jobs SET state = 'running', device = ?, started = ? "
                "WHERE id = (SELECT MIN(id) FROM jobs WHERE state = 'queued') "
                "AND NOT EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND device = ?) "
                "RETURNING *",
                (device, time.time(), device),
            ).fetchone()
        return Job(**row) if row else None

    def begin(self, job_id: int, pid: int, created: float) -> Job | None:
        """A worker takes the job; None when another worker has it or it is no longer to be run."""
        with self._write() as connection:
            row = connection.execute(
                "UPDATE jobs SET worker_pid = ?, worker_created = ? "
                "WHERE id = ? AND state = 'running' AND worker_pid IS NULL RETURNING *",
                (pid, created, job_id),
            ).fetchone()
        return Job(**row) if row else None

    def report(self, job_id: int, phase: str, step: int, total: int, eta_sec: float | None) -> None:
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET phase = ?, step = ?, total = ?, eta_sec = ? WHERE id = ?",
                (phase, step, total, eta_sec, job_id),
            )

    def cancel_requested(self, job_id: int) -> bool:
        return bool(self._read("SELECT 1 FROM jobs WHERE id = ? AND cancel = 1", job_id))

    def request_cancel(self, job_id: int) -> None:
        """A waiting job is cancelled at once, a running one at its next step."""
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            connection.execute(
                "UPDATE jobs SET cancel = 1 WHERE id = ? AND state = 'running'", (job_id,)
            )

    def end(self, job_id: int, state: JobState, error: str | None = None) -> None:
        """Closes a running job; a job that has already ended keeps its end."""
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ? "
                "WHERE id = ? AND state = 'running'",
                (state, error, time.time(), job_id),
            )

    def requeue(self, job_id: int) -> None:
        """Puts a running job back in the queue; one that was to be cancelled is cancelled."""
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET state = iif(cancel, 'cancelled', 'queued'), device = NULL, "
                "phase = NULL, step = NULL, total = NULL, eta_sec = NULL, worker_pid = NULL, "
                "worker_created = NULL, started = NULL "
                "WHERE id = ? AND state = 'running'",
                (job_id,),
            )

    def job(self, job_id: int) -> Job | None:
        rows = self._read("SELECT * FROM jobs WHERE id = ?", job_id)
        return Job(**rows[0]) if rows else None

    def latest_job(self, key: str) -> Job | None:
        rows = self._read("SELECT * FROM jobs WHERE key = ? ORDER BY id DESC LIMIT 1", key)
        return Job(**rows[0]) if rows else None

    def jobs(self, state: JobState) -> list[Job]:
        """The jobs in a state, oldest first."""
        return [
            Job(**r) for r in self._read("SELECT * FROM jobs WHERE state = ? ORDER BY id", state)
        ]

    # Clips

    def add_clip(self, recipe: Recipe, info: ClipInfo) -> None:
        """Remembers a finished clip, in place of an older row for the same recipe."""
        values = {"key": recipe.key(), "recipe": recipe.to_json(), "created": time.time()}
        values |= asdict(info)
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        with self._write() as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO clips ({columns}) VALUES ({marks})", [*values.values()]
            )

    def clip_info(self, key: str) -> ClipInfo | None:
        rows = self._read("SELECT * FROM clips WHERE key = ?", key)
        return _clip_info(rows[0]) if rows else None

    def recent_clips(self, limit: int) -> list[tuple[Recipe, ClipInfo]]:
        """The newest clips with measured seconds, newest first."""
        rows = self._read(
            "SELECT * FROM clips WHERE denoise_sec IS NOT NULL ORDER BY created DESC LIMIT ?", limit
        )
        return [(Recipe.model_validate_json(row["recipe"]), _clip_info(row)) for row in rows]

    def clip_keys(self) -> set[str]:
        return {row["key"] for row in self._read("SELECT key FROM clips")}


def _comparison(row: sqlite3.Row) -> Comparison:
    cells = tuple(Cell.model_validate(cell) for cell in json.loads(row["cells"]))
    return Comparison(row["id"], row["created"], cells)


def _clip_info(row: sqlite3.Row) -> ClipInfo:
    return ClipInfo(**{field.name: row[field.name] for field in fields(ClipInfo)})
