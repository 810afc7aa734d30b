"""How a download stands: files that the downloading process writes and everybody may read.

    MODELS/.downloads/NAME/  state.json  lock  log.txt  and unfinished files, named by their content

Whoever holds the lock is the one that downloads, and the system frees it when that process ends
in whatever way: so a download that was killed is seen as such, and none runs twice.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from pipelines.catalog.entries import ModelPreset
from pipelines.catalog.registry import ROOT, Registry
from pipelines.files.disk import atomic_path
from pipelines.strict import Strict

FOLDER = ".downloads"  # hidden, so that no half of a model is taken for one
StateName = Literal["running", "finished", "stopped", "failed"]
LOCK_SEC = 2.0  # longer than a reader holds the lock


class DownloadState(Strict):
    """The contents of state.json. `stopped` is a download that can go on where it ended."""

    state: StateName
    pid: int
    done_bytes: int = 0
    total_bytes: int = 0
    eta_sec: float | None = None
    error: str = ""  # why it failed


@dataclass(frozen=True)
class Download:
    """A preset whose source is on the hub, the folder it goes to, and that of its state."""

    preset: ModelPreset
    target: Path
    work: Path


def published(registry: Registry) -> dict[str, Download]:
    """What can be downloaded, by name: presets whose source is no folder of this repository."""
    models_dir = registry.download_dir
    return {
        name: Download(preset, models_dir / Path(preset.source).name, models_dir / FOLDER / name)
        for name, preset in registry.presets().items()
        if not (ROOT / preset.source).exists()
    }


def find_download(registry: Registry, name: str) -> Download:
    """ValueError where no preset of this name is published: nothing else is ever fetched."""
    known = published(registry)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"model {str(name)[:80]!r} is none that can be downloaded; "
            f"choose from {', '.join(known)}"
        )
    return known[name]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Held while downloading. ValueError where another process downloads the same."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=LOCK_SEC)
    except Timeout as error:
        raise ValueError(f"{folder.name} is being downloaded already; wait for it") from error
    try:
        yield
    finally:
        lock.release()


def is_running(folder: Path) -> bool:
    """Whether a living process downloads into this folder."""
    if not (folder / "lock").exists():
        return False
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def write_state(folder: Path, state: DownloadState) -> None:
    """Replaces the file whole."""
    with atomic_path(folder / "state.json") as temporary:
        temporary.write_text(state.model_dump_json(), encoding="utf-8")


def read_state(folder: Path) -> DownloadState | None:
    """None where nothing was downloaded; a killed download has `stopped`."""
    running = is_running(folder)  # first: a download that ends meanwhile has written its end
    try:
        state = DownloadState.model_validate_json((folder / "state.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if state.state == "running" and not running:
        return state.model_copy(update={"state": "stopped", "eta_sec": None})
    return state


def cancel(folder: Path) -> None:
    """Asks the downloading process to end; what it has stays. Nothing happens without one."""
    state = read_state(folder)
    if state is not None and state.state == "running":  # it holds the lock, so the id is its own
        os.kill(state.pid, signal.SIGTERM)
