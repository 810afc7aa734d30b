"""Where the parts of a model lie: diffusers' layout or Wan's own."""

from pathlib import Path
from typing import Literal

from pipelines.files.diffusers_layout import (
    IMAGE_PIPELINE,
    diffusers_problem,
    is_diffusers_folder,
    pipeline_class,
)
from pipelines.files.disk import read_json
from pipelines.files.wan_layout import (
    IMAGE_ENCODER_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER,
    VAE_FILE,
    WEIGHTS,
    is_image_to_video,
    is_native_folder,
    native_problem,
)
from pipelines.recipe import ImagePreprocessing

Layout = Literal["diffusers", "native", "comfyui"]


def is_model_folder(folder: Path) -> bool:
    """Whether the folder holds a whole model in one of the two layouts."""
    return is_diffusers_folder(folder) or is_native_folder(folder)


def what_is_missing(folder: Path) -> str | None:
    """One sentence about the first thing that keeps a model's folder from loading, or None."""
    if is_native_folder(folder):
        return native_problem(folder)
    return diffusers_problem(folder)


def own_image_preprocessing(folder: Path) -> ImagePreprocessing | None:
    """How the code that a model's folder was made for prepares a first frame, if it takes one."""
    if is_native_folder(folder):
        return "native" if is_image_to_video(folder) else None
    return "diffusers" if pipeline_class(folder) == IMAGE_PIPELINE else None


def is_diffusers_part(path: Path) -> bool:
    """Whether a transformer is in diffusers' layout: a folder with the config.json of its class."""
    config = path / "config.json"
    return config.is_file() and "num_attention_heads" in read_json(config)


def transformer_path(folder: Path) -> Path:
    """What `load_transformer` reads of a model's folder."""
    return folder if is_native_folder(folder) else folder / "transformer"


def vae_path(folder: Path) -> Path:
    """The VAE of a model's folder: a file in Wan's layout, else a folder."""
    return folder / (VAE_FILE if is_native_folder(folder) else "vae")


def text_encoder_path(folder: Path) -> Path:
    """The text encoder of a model's folder: a file in Wan's layout, else a folder."""
    return folder / (TEXT_ENCODER_FILE if is_native_folder(folder) else "text_encoder")


def tokenizer_path(folder: Path) -> Path:
    """The tokenizer's folder of a model's folder."""
    return folder / (TOKENIZER if is_native_folder(folder) else "tokenizer")


def image_encoder_path(folder: Path) -> Path:
    """CLIP of a model's folder: a file in Wan's layout, else a folder; there or not."""
    return folder / (IMAGE_ENCODER_FILE if is_native_folder(folder) else "image_encoder")


def weight_bytes(path: Path) -> int:
    """Size of all weights of a model's folder, or of one file, on disk."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS)
