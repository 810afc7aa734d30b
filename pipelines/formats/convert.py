"""Models from one layout to another: diffusers, Wan's own, ComfyUI's; no weight changes.

Tensors go one by one from file to file, in their dtype, and the result takes its place when it is
whole. A source that is a transformer alone gives a transformer alone.
"""

import shutil
from pathlib import Path

from pipelines.catalog.entries import CheckpointSpec, ModelEntry
from pipelines.catalog.students import StudentSpec
from pipelines.files.diffusers_layout import weight_files
from pipelines.files.disk import atomic_folder, read_json
from pipelines.files.layouts import (
    Layout,
    image_encoder_path,
    is_diffusers_part,
    is_model_folder,
    text_encoder_path,
    tokenizer_path,
    transformer_path,
    vae_path,
)
from pipelines.formats.clip import open_image_encoder
from pipelines.formats.parts import StoredNetwork, open_text_encoder, open_transformer, open_vae
from pipelines.formats.weights import open_weights
from pipelines.formats.writers import (
    Companions,
    StoredModel,
    write_comfyui,
    write_diffusers,
    write_native,
)
from pipelines.sampling.guidance_embedder import DTYPE_KEY

WRITERS = {"diffusers": write_diffusers, "native": write_native, "comfyui": write_comfyui}


def convert(entry: ModelEntry, destination: Path, layout: Layout) -> tuple[str, ...]:
    """Writes a model, or the transformer that it has of its own, at the new folder `destination`.

    How the checkpoint wants to be used goes along, as sampler.json. Returns sentences that the user
    should see. ValueError for what cannot be read or has no room.
    """
    if destination.exists():
        raise ValueError(f"destination {destination} exists already; give the name of a new folder")
    source = _source(entry)
    model = open_model(source, destination.name)
    _require_room(model, destination)
    spec = CheckpointSpec.model_validate(
        entry.preset.model_dump(include=set(CheckpointSpec.model_fields))
    )
    with atomic_folder(destination) as folder:
        notes = WRITERS[layout](model, folder, spec)
        _write_spec(entry, spec, model, folder / _spec_file(model, layout))
    return notes


def _spec_file(model: StoredModel, layout: Layout) -> str:
    alone = layout == "comfyui" and model.companions is None
    return f"diffusion_models/{model.name}.json" if alone else "sampler.json"


def _write_spec(entry: ModelEntry, spec: CheckpointSpec, model: StoredModel, file: Path) -> None:
    """How to use what is written; of a transformer alone only where its base is known."""
    base = entry.base or entry.preset.base
    if model.companions is None:
        if base is None:
            return
        spec = StudentSpec(**spec.model_dump(), base=base, title=entry.preset.title)
    file.write_text(spec.model_dump_json(indent=2), encoding="utf-8")


def _source(entry: ModelEntry) -> Path:
    """What of a model is its own; ValueError where nothing is or where it is not here."""
    if entry.adapters:
        raise ValueError(
            f"source {entry.preset.name} is a LoRA on {entry.base}; merge it into its base first"
        )
    path = entry.transformer or entry.folder
    if path is None or (entry.missing is not None and entry.transformer is None):
        raise ValueError(f"source {entry.preset.name} cannot be converted: {entry.missing}")
    return path


def open_model(source: Path, name: str) -> StoredModel:
    """A model's folder in diffusers' or Wan's layout, or a transformer in a folder or file alone.

    No tensor is read yet. ValueError names a file that is missing, damaged or foreign.
    """
    if not is_model_folder(source):
        return StoredModel(name, _open_transformer(source))
    vae, text_encoder = vae_path(source), text_encoder_path(source)
    image_encoder = image_encoder_path(source)
    companions = Companions(
        vae=_open_diffusers(vae) if vae.is_dir() else open_vae(vae),
        text_encoder=_open_diffusers(text_encoder)
        if text_encoder.is_dir()
        else open_text_encoder(text_encoder),
        tokenizer=tokenizer_path(source),
        image_encoder=_open_image_encoder(image_encoder) if image_encoder.exists() else None,
    )
    return StoredModel(name, _open_transformer(transformer_path(source)), companions)


def _open_transformer(path: Path) -> StoredNetwork:
    return _open_diffusers(path) if is_diffusers_part(path) else open_transformer(path)


def _open_image_encoder(path: Path) -> StoredNetwork:
    return _open_diffusers(path) if path.is_dir() else open_image_encoder(path)


def _open_diffusers(folder: Path) -> StoredNetwork:
    weights = open_weights(weight_files(folder))
    dtype = weights.metadata.get(DTYPE_KEY)
    metadata = {DTYPE_KEY: dtype} if dtype else {}
    return StoredNetwork(weights.tensors, read_json(folder / "config.json"), metadata)


def _require_room(model: StoredModel, destination: Path) -> None:
    """ValueError where the disk is too small, before anything is written."""
    parent = next(folder for folder in destination.absolute().parents if folder.is_dir())
    needed = sum(w.num_bytes for part in model.parts for w in part.tensors.values())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"destination {destination} needs {needed / 1e9:.1f} GB but its disk has "
            f"{free / 1e9:.1f} GB left; free some or choose another disk"
        )
