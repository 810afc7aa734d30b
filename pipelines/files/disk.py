"""Files: atomic writes, safetensors headers, content hashes, complete model folders.

Of weights only headers and samples are read here, and nothing is unpickled. This module imports no
torch, so that the web process can use it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

MODEL_PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
IMAGE_PARTS = ("image_encoder", "image_processor")
IMAGE_PIPELINE = "WanImageToVideoPipeline"
PIPELINES = ("WanPipeline", IMAGE_PIPELINE, "WanDMDPipeline")  # the last is FastWan's
WITHOUT_WEIGHTS = ("tokenizer", "image_processor")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # diffusers', transformers'
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


class Header:
    """What a safetensors file says about itself: `shapes` by tensor name, and `metadata`."""

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.shapes = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except SafetensorError as error:
            raise ValueError(
                f"weights {path} are damaged ({error}); copy or download the file again"
            ) from error


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


def is_diffusers_folder(folder: Path) -> bool:
    """Whether the folder has the diffusers layout of a pipeline with a transformer."""
    return (folder / "model_index.json").is_file() and (folder / "transformer").is_dir()


def pipeline_class(folder: Path) -> str | None:
    """The diffusers pipeline that a model folder is for, where it says so."""
    index = folder / "model_index.json"
    name: str | None = read_json(index).get("_class_name") if index.is_file() else None
    return name


def diffusers_problem(folder: Path) -> str | None:
    """One sentence about the first thing that keeps a diffusers folder from loading, or None."""
    try:
        return _first_problem(folder)
    except ValueError as error:
        return str(error)


def _first_problem(folder: Path) -> str | None:
    if not is_diffusers_folder(folder):
        return f"{folder} is not a diffusers folder: it needs model_index.json and transformer/"
    pipeline = pipeline_class(folder)
    if pipeline not in PIPELINES:
        return f"{folder} holds a {pipeline}, but only {' and '.join(PIPELINES)} can be used"
    for part in (*MODEL_PARTS, *_image_parts(folder)):
        if not (folder / part).is_dir():
            return f"{folder} has no {part}/ folder; copy it from the model's repository"
        missing = [file for file in weight_files(folder / part) if not file.is_file()]
        if part not in WITHOUT_WEIGHTS and missing:
            if any((folder / part).glob("*.bin")):
                return f"{folder / part} is a pickle, which is not opened; save it as safetensors"
            return f"{part}/{missing[0].name} is missing in {folder}; copy or download it again"
    return None


def _image_parts(folder: Path) -> tuple[str, ...]:
    """What a network that reads CLIP's tokens needs beside the other parts."""
    config = folder / "transformer" / "config.json"
    reads_embeds = config.is_file() and read_json(config).get("image_dim") is not None
    return IMAGE_PARTS if reads_embeds else ()


def weight_files(part: Path) -> list[Path]:
    """The safetensors files, all shards, that a part of a model needs, there or not."""
    for name in WEIGHT_NAMES:
        index = part / f"{name}.safetensors.index.json"
        if index.is_file():
            return [part / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
        if (part / f"{name}.safetensors").is_file():
            return [part / f"{name}.safetensors"]
    by_transformers = part.name in ("text_encoder", "image_encoder")
    expected = WEIGHT_NAMES[1] if by_transformers else WEIGHT_NAMES[0]
    return [part / f"{expected}.safetensors"]


def read_json(path: Path) -> Any:
    """Parsed JSON. ValueError naming the file where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); copy or download it again"
        ) from error


def disk_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
