"""Wan's own layout: folders as Wan-Video publishes them, and transformers in files of their own.

    Wan2.1-T2V-1.3B/
        diffusion_pytorch_model.safetensors (or -0000K-of-0000N with an index), config.json
        models_t5_umt5-xxl-enc-bf16.pth  google/umt5-xxl/  Wan2.1_VAE.pth
        models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth            (image to video)

LightX2V's repositories look the same, with `distill_model.safetensors` as the transformer. What is
in a safetensors file its header says; a pickle is known by its name and opened only where it is
loaded.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.files.disk import read_json
from pipelines.files.tensors import Header
from pipelines.files.weight_names import architecture, diffusers_names

TRANSFORMER_FILE = "diffusion_pytorch_model"
DISTILLED_FILES = ("distill_model.safetensors", "distill_model.pt")
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER = Path("google", "umt5-xxl")
# Names that published transformers have as pickles; LightX2V, DMD2_wanx, Self-Forcing-Plus.
PICKLED_TRANSFORMERS = ("distill_model.pt", "feedforward.bin", "model.pt")
PICKLES = (".pt", ".pth", ".bin")
WEIGHTS = (".safetensors", *PICKLES)


def is_native_folder(folder: Path) -> bool:
    """Whether the folder holds, in Wan's own layout, a transformer with a VAE or a text encoder."""
    others = (folder / VAE_FILE).is_file() or (folder / TEXT_ENCODER_FILE).is_file()
    return others and _has_transformer(folder)


def _has_transformer(folder: Path) -> bool:
    names = (f"{TRANSFORMER_FILE}*.safetensors*", *DISTILLED_FILES)
    return any(next(folder.glob(name), None) for name in names)


def transformer_files(folder: Path) -> list[Path]:
    """The transformer's files of a native folder, all shards, there or not."""
    index = folder / f"{TRANSFORMER_FILE}.safetensors.index.json"
    if index.is_file():
        return [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
    shards = [
        match for file in folder.glob("*.safetensors") if (match := _SHARD.fullmatch(file.name))
    ]
    if shards:
        total = shards[0]["total"]
        return [
            folder / f"{TRANSFORMER_FILE}-{number:05}-of-{total}.safetensors"
            for number in range(1, int(total) + 1)
        ]
    for name in DISTILLED_FILES:
        if (folder / name).is_file():
            return [folder / name]
    return [folder / f"{TRANSFORMER_FILE}.safetensors"]


_SHARD = re.compile(rf"{TRANSFORMER_FILE}-\d{{5}}-of-(?P<total>\d{{5}})\.safetensors")


def is_image_to_video(folder: Path) -> bool:
    """Whether a native folder's transformer continues an image, as its config.json says."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "i2v"


def native_problem(folder: Path) -> str | None:
    """One sentence about the first thing that keeps a native folder from loading, or None."""
    try:
        image = [folder / IMAGE_ENCODER_FILE] if is_image_to_video(folder) else []
        files = [*transformer_files(folder), folder / VAE_FILE, folder / TEXT_ENCODER_FILE, *image]
    except ValueError as error:
        return str(error)
    for file in files:
        if not file.is_file():
            return f"{file.name} is missing in {folder}; copy or download it again"
    if not (folder / TOKENIZER).is_dir():
        return f"{folder} has no {TOKENIZER}/ folder; copy it from the model's repository"
    return transformer_problem(transformer_files(folder))


def transformer_problem(files: list[Path]) -> str | None:
    """Why these files are no Wan2.1 transformer, as far as safetensors headers say, or None."""
    if any(file.suffix != ".safetensors" for file in files):
        return None
    try:
        shapes = _all_shapes(files)
    except ValueError as error:
        return str(error)
    if diffusers_names(shapes) is None:
        return f"{files[0]} holds {architecture(shapes)}, and only Wan2.1's transformer can be used"
    return None


def shapes_and_config(files: list[Path]) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes by diffusers names of a transformer's safetensors files, and what else they state."""
    shapes = _all_shapes(files)
    names = diffusers_names(shapes)
    assert names is not None  # `transformer_problem` has checked
    stated = Header(files[0]).metadata.get("config")
    beside = files[0].parent / "config.json"
    config = json.loads(stated) if stated else read_json(beside) if beside.is_file() else {}
    return {names[name]: shape for name, shape in shapes.items()}, config


def _all_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _shapes(file, file.stat().st_mtime_ns)
    return shapes


@lru_cache(maxsize=1024)
def _shapes(file: Path, mtime_ns: int) -> dict[str, tuple[int, ...]]:
    """The time is an argument so that a changed file is read again."""
    return Header(file).shapes
