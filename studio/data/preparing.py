"""Data sets below the runs folder: listed, a source looked at, a new one prepared.

A preparation is a run whose folder becomes the data.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from pipelines.geometry import Geometry
from studio.runs.files import read_json, read_jsonl
from studio.runs.listing import PREPARE, Run, is_name
from studio.train.training import Training, shown_path
from trainers.sources.inspect import Look, look

INDEX, PROBLEMS, PREVIEWS = "index.json", "problems.jsonl", "previews"
LOOK_SEC = 15.0  # for the videos; a large folder is not looked at to its end
TIMEOUT_SEC = 60.0  # for the whole look: a folder elsewhere may hang


@dataclass(frozen=True)
class DataSet:
    """One folder with prepared data, or on its way there."""

    name: str
    folder: Path
    shown_folder: str  # what `data.folder` of a run is to say
    run: Run | None  # that prepares it; None where it was made without one
    captions: Sequence[str]  # empty until it is finished
    sizes: Sequence[tuple[int, int, int]]  # width, height and frames of the videos, each once
    num_bytes: int
    problems: Sequence[tuple[str, str]]  # file or prompt, and why it was not prepared
    previews: dict[int, Path]  # videos of some samples, by number


class Preparing:
    """Data sets of the folder of runs. Methods that take a name refuse what is no run."""

    def __init__(self, training: Training):
        self.training, self.supervisor = training, training.supervisor

    def look(self, tree: Mapping[str, Any], within_sec: float = LOOK_SEC) -> Look:
        """Validates the settings and looks at the source, in a process that may die of it."""
        registry = self.training.registry
        missing = registry.entry(str(tree["model"])).missing
        if missing is not None:
            raise ValueError(f"model: {missing}")
        with ProcessPool(max_workers=1, context=get_context("spawn")) as pool:
            future = pool.schedule(look, (tree, registry, within_sec), timeout=TIMEOUT_SEC)
            try:
                seen: Look = future.result()
            except TooLong as error:
                raise ValueError(
                    f"source: a look at it takes more than {TIMEOUT_SEC:.0f} s; check the disk"
                ) from error
            except ProcessExpired as error:
                raise ValueError(
                    "source: one of its videos ends the process that looks at it; look at the "
                    "source from a shell with --dry-run, and remove that video"
                ) from error
        return seen

    def start(self, tree: Mapping[str, Any], devices: Sequence[str]) -> str:
        """Queues a preparation, first; returns its name. ValueError naming the field."""
        return self.supervisor.submit(self.look(tree, 0).config, devices, None, first=True)

    def data_sets(self) -> list[DataSet]:
        """Living ones first, then the newest."""
        runs = {run.name: run for run in self.supervisor.runs() if run.method == PREPARE}
        others = [
            path.parent
            for path in self.supervisor.runs_dir.glob(f"[!.]*/{INDEX}")
            if is_name(path.parent.name) and path.parent.name not in runs
        ]
        others.sort(key=lambda folder: -folder.stat().st_mtime)
        found = [self._data_set(run.folder, run) for run in runs.values()]
        return found + [self._data_set(folder, None) for folder in others]

    def _data_set(self, folder: Path, run: Run | None) -> DataSet:
        index = folder / INDEX
        modified = index.stat().st_mtime_ns if index.is_file() else 0
        captions, sizes = read_index(index, modified) if modified else ((), ())
        return DataSet(
            name=folder.name,
            folder=folder,
            shown_folder=shown_path(folder),
            run=run,
            captions=captions,
            sizes=sizes,
            num_bytes=shards_bytes(folder, folder.stat().st_mtime_ns),
            problems=read_problems(folder),
            previews={int(p.stem): p for p in sorted((folder / PREVIEWS).glob("[0-9]*.mp4"))},
        )


def read_problems(folder: Path) -> list[tuple[str, str]]:
    """Name of the file, or the prompt, and why it was not prepared."""
    rows = read_jsonl(folder / PROBLEMS)
    return [(Path(str(row.get("file"))).name, str(row.get("problem"))) for row in rows]


@functools.lru_cache(maxsize=64)
def read_index(path: Path, modified: int) -> tuple[Sequence[str], Sequence[tuple[int, int, int]]]:
    """Captions, and the sizes of video there are; read again only when the file is new."""
    index = read_json(path) or {}
    geometry = Geometry.model_validate(index.get("geometry", {}))
    sizes = dict.fromkeys(geometry.video_size(shape) for shape in index.get("shapes", ()))
    return tuple(index.get("captions", ())), tuple(sizes)


@functools.lru_cache(maxsize=64)
def shards_bytes(folder: Path, modified: int) -> int:
    """On disk; a folder is younger when a file has come."""
    return sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))
