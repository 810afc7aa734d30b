"""Networks in files of any layout, by diffusers' names, none of their weights read yet."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.files.disk import read_json
from pipelines.files.layouts import is_diffusers_part
from pipelines.files.wan_layout import transformer_files
from pipelines.files.weight_configs import (
    Config,
    text_encoder_config,
    transformer_config,
    vae_config,
)
from pipelines.files.weight_names import (
    TEXT_ENCODER,
    NameTable,
    architecture,
    diffusers_names,
    has_original_guidance,
    vae_size,
    vae_table,
)
from pipelines.formats.weights import Weight, Weights, open_weights
from pipelines.sampling.guidance_embedder import DTYPE_KEY


@dataclass(frozen=True)
class StoredNetwork:
    """One network in files: weights by diffusers names, diffusers configuration, and metadata."""

    tensors: dict[str, Weight]
    config: Config
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by diffusers name."""
        return {name: weight.shape for name, weight in self.tensors.items()}


def open_transformer(path: Path) -> StoredNetwork:
    """A transformer from one file, or a folder with diffusion_pytorch_model*.safetensors."""
    files = transformer_files(path) if path.is_dir() else [path]
    weights = open_weights(files)
    names = diffusers_names(weights.tensors)
    if names is None:
        raise ValueError(
            f"model: {files[0]} holds {architecture(weights.shapes)}, and only Wan2.1's "
            "transformer can be used"
        )
    tensors = {names[name]: weight for name, weight in weights.tensors.items()}
    shapes = {name: weight.shape for name, weight in tensors.items()}
    dtype = weights.metadata.get(DTYPE_KEY)
    if dtype is None and has_original_guidance(weights.tensors):
        dtype = "bfloat16"
    metadata = {DTYPE_KEY: dtype} if dtype else {}
    try:
        return StoredNetwork(
            tensors, transformer_config(shapes, _stated(files[0], weights)), metadata
        )
    except ValueError as error:
        raise ValueError(f"model: {files[0]} cannot be used: {error}") from error


def _stated(file: Path, weights: Weights) -> Config:
    """What is said about a transformer beside its shapes: in the metadata, or in config.json."""
    if "config" in weights.metadata:
        stated: Config = json.loads(weights.metadata["config"])
        return stated
    beside = file.parent / "config.json"
    return read_json(beside) if beside.is_file() else {}


def open_vae(file: Path) -> StoredNetwork:
    """The VAE of Wan2.1_VAE.pth."""
    weights = open_weights([file])
    tensors = _renamed(file, weights, vae_table(*vae_size(weights.tensors)))
    return StoredNetwork(tensors, _configured(file, vae_config, tensors))


def open_text_encoder(file: Path) -> StoredNetwork:
    """The text encoder of models_t5_umt5-xxl-enc-bf16.pth."""
    tensors = _renamed(file, open_weights([file]), TEXT_ENCODER)
    return StoredNetwork(tensors, _configured(file, text_encoder_config, tensors))


def _renamed(file: Path, weights: Weights, table: NameTable) -> dict[str, Weight]:
    tensors = {}
    for name, weight in weights.tensors.items():
        theirs = table.to_diffusers(name)
        if theirs is None:
            raise ValueError(
                f"model: {file} is not what its name says ({name} is unknown); copy or download "
                "it again"
            )
        tensors[theirs] = weight
    return tensors


def _configured(
    file: Path, infer: Callable[[Mapping[str, Sequence[int]]], Config], tensors: dict[str, Weight]
) -> Config:
    """The configuration by shapes under what FILE.json says."""
    beside = file.with_suffix(".json")
    try:
        config = infer({name: weight.shape for name, weight in tensors.items()})
    except KeyError as error:
        raise ValueError(
            f"model: {file} is incomplete ({error.args[0]} is missing); copy or download it again"
        ) from error
    return config | (read_json(beside) if beside.is_file() else {})


def transformer_settings(path: Path) -> Config:
    """The diffusers configuration of a transformer, from a folder or file of any layout."""
    if not is_diffusers_part(path):
        return open_transformer(path).config
    config: Config = read_json(path / "config.json")
    return config
