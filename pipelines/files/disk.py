"""Atomic writes, content hashes, sizes, JSON and lists; of weights only samples are read."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

CONTENT_SUFFIXES = (".safetensors", ".json", ".model", ".bin", ".pt", ".pth")
WHOLE_FILE_BYTES = 64 * 2**20  # larger files are hashed by samples: a 14B model has 60 GB
SAMPLE_BYTES = 2**20
NUM_SAMPLES = 32


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the new folder `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fingerprint(path: Path) -> str:
    """16 hex digits that change with the weights and configurations at `path`, a file or a folder.

    `sampler.json` does not count: what it says is in the recipe itself.
    """
    if path.is_file():
        return _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix in CONTENT_SUFFIXES and file.name != "sampler.json" and file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()} {fingerprint(file)}\n".encode())
    return digest.hexdigest()[:16]


def joint_fingerprint(paths: Sequence[Path]) -> str:
    """One fingerprint for several paths; of one path, its own."""
    digests = [fingerprint(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


@lru_cache(maxsize=4096)
def _file_digest(path: Path, num_bytes: int, mtime_ns: int) -> str:
    """The size and time are arguments so that a changed file is read again."""
    digest = hashlib.sha256(str(num_bytes).encode())
    with path.open("rb") as file:
        if num_bytes <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            for index in range(NUM_SAMPLES):
                file.seek(index * (num_bytes - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def read_json(path: Path) -> Any:
    """Parsed JSON. ValueError naming the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); copy or download it again"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a list, such as one of prompts, without empty ones and those that start with #.

    What is not UTF-8 shows as a replacement character.
    """
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def disk_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
