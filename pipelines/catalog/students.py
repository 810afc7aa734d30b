"""Students: what a distillation run exports, and what lies in assets/students/NAME.

A student is a folder with `sampler.json` beside `lora.safetensors` or `transformer/`. It names the
base model that it stands on, whose VAE, text encoder and, for a LoRA, transformer it uses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipelines.catalog.entries import CheckpointSpec, ModelEntry, ModelPreset, folder_entry
from pipelines.files.diffusers_layout import weight_files
from pipelines.files.disk import read_json
from pipelines.files.layouts import is_model_folder
from pipelines.files.tensors import Header
from pipelines.strict import explain

SPEC_FILE = "sampler.json"
LORA_FILE = "lora.safetensors"
TRANSFORMER = "transformer"


class StudentSpec(CheckpointSpec):
    """The `sampler.json` of a student."""

    base: str = Field(description="Name of the base model that the student stands on.")
    title: str | None = Field(None, description="Name on the page; empty shows the folder's.")


def is_student_folder(folder: Path) -> bool:
    """Whether `sampler.json` lies there without a whole model or an autoencoder around it."""
    alone = not is_model_folder(folder) and not (folder / "vae").is_dir()
    return alone and (folder / SPEC_FILE).is_file()


def student_entry(folder: Path, name: str, bases: Mapping[str, ModelEntry]) -> ModelEntry:
    """A student's folder as a model; `missing` says what is wrong with it or with its base."""
    preset = ModelPreset(
        name=name, title=name, kind="distilled", source=str(folder), license="unknown"
    )
    try:
        spec = _read_spec(folder)
        own = {field: getattr(spec, field) for field in CheckpointSpec.model_fields}
        preset = preset.model_copy(update={**own, "title": spec.title or name})
        base = base_entry(spec.base, bases)
        transformer, adapters = _weights(folder)
    except ValueError as error:
        return ModelEntry(preset, None, str(error))
    preset = preset.model_copy(update=inherited_from(base))
    if transformer is None:  # its LoRA goes on top of what its base is made of
        transformer, adapters = base.transformer, (*base.adapters, *adapters)
    return ModelEntry(preset, base.folder, None, base.base or spec.base, transformer, adapters)


def inherited_from(base: ModelEntry) -> dict[str, Any]:
    """Fields of a preset that are those of the base model, whose VAE a student uses."""
    own = base.preset
    return {"license": own.license, "prompts": own.prompts, "geometry": own.geometry}


def _read_spec(folder: Path) -> StudentSpec:
    file = folder / SPEC_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {SPEC_FILE}; export the run again")
    try:
        return StudentSpec.model_validate(read_json(file))
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error)}") from error


def base_entry(name: str, bases: Mapping[str, ModelEntry]) -> ModelEntry:
    """The base model, by name or folder; ValueError where it cannot carry a student."""
    base = bases.get(name)
    if base is None and is_model_folder(Path(name)):
        base = folder_entry(Path(name), name)
    if base is None and is_student_folder(Path(name)):
        base = student_entry(Path(name), name, bases)
    if base is None:
        models = [known for known, entry in bases.items() if entry.missing is None]
        raise ValueError(
            f"base {name!r} is not among the models here ({', '.join(models)}); a student stands "
            "on one of them"
        )
    if base.missing is not None:
        raise ValueError(f"base {name!r} cannot be used: {base.missing}")
    return base


def _weights(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The student's own transformer folder or its LoRA; ValueError where they are not whole."""
    lora, transformer = folder / LORA_FILE, folder / TRANSFORMER
    if lora.is_file() == transformer.is_dir():
        found = "both" if lora.is_file() else "neither"
        raise ValueError(
            f"{folder} holds {found} of {LORA_FILE} and {TRANSFORMER}/ but a student has one of "
            "them; export the run again"
        )
    if lora.is_file():
        Header(lora)
        return None, (lora,)
    for file in (transformer / "config.json", *weight_files(transformer)):
        if not file.is_file():
            raise ValueError(f"{file} is missing; export the run again")
    return transformer, ()
