"""What models and LoRAs exist here, and the recipes they make.

A model is a file presets/models/NAME.yaml, or any diffusers folder under a models folder. Nothing
is ever downloaded. This module imports no torch, so that the web process can use it.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError

from pipelines.checkpoints import (
    CheckpointSpec,
    ModelEntry,
    ModelPreset,
    adapter_sampler,
    folder_entry,
    read_preset,
)
from pipelines.files import Header, fingerprint, is_model_folder, what_is_missing
from pipelines.recipe import Adapter, Recipe, SamplerSpec, explain

__all__ = ["CheckpointSpec", "ModelEntry", "ModelPreset", "Overrides", "Registry", "fingerprint"]

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "presets"
MAX_DEPTH = 5  # of a model below a models folder


class Overrides(TypedDict, total=False):
    """What a recipe may change; None or absent means the checkpoint's own value."""

    steps: int | None
    flow_shift: float | None
    guidance_scale: float | None
    sampler: str | None
    sigmas: Sequence[float] | None
    width: int | None
    height: int | None
    num_frames: int | None
    fps: int | None
    negative_prompt: str | None


class Registry:
    """The presets of this repository and everything found under the models folders."""

    def __init__(self, model_dirs: Sequence[Path] = ()):
        for folder in model_dirs:
            if not folder.is_dir():
                raise ValueError(
                    f"models folder {folder} does not exist; create it or correct --models"
                )
        self.model_dirs = tuple(model_dirs)

    def models(self) -> dict[str, ModelEntry]:
        """All models by name, presets first. Looks at the disk again on every call."""
        entries = {
            path.stem: self._preset_entry(path) for path in _files(PRESETS / "models", ".yaml")
        }
        known = {entry.folder.resolve() for entry in entries.values() if entry.folder}
        for models_dir in self.model_dirs:
            for folder in _walk(models_dir):
                if is_model_folder(folder) and folder.resolve() not in known:
                    name = folder.relative_to(models_dir).as_posix()
                    name = folder.resolve().name if name == "." else name
                    name = str(folder) if name in entries else name
                    entries[name] = folder_entry(folder, name)
        return entries

    def entry(self, model: str) -> ModelEntry:
        """A model by name or folder. ValueError that suggests the nearest names."""
        entries = self.models()
        if model in entries:
            return entries[model]
        folder = Path(model)
        if folder.is_dir():
            same = [e for e in entries.values() if e.folder and e.folder.samefile(folder)]
            return same[0] if same else folder_entry(folder, model)
        if folder.is_file():
            raise ValueError(
                f"model {model!r} is a file; give the folder that holds model_index.json"
            )
        nearest = difflib.get_close_matches(model, entries, n=3, cutoff=0.4) or list(entries)
        raise ValueError(f"model {model!r} is unknown; did you mean {' or '.join(nearest)}?")

    def loras(self) -> list[Path]:
        """LoRA files and PEFT folders under the models folders, those that can be read."""
        found: list[Path] = []
        for models_dir in self.model_dirs:
            for folder in _walk(models_dir):
                if (folder / "adapter_config.json").is_file():
                    found.append(folder)
                elif not is_model_folder(folder):
                    found += [path for path in _files(folder, ".safetensors") if _is_lora(path)]
        return found

    def prompt_lists(self) -> list[str]:
        """Names of the prompt lists in presets/prompts/."""
        return [path.stem for path in _files(PRESETS / "prompts", ".txt")]

    def prompts(self, name: str) -> list[str]:
        """The prompts of one list, one a line."""
        path = PRESETS / "prompts" / f"{name}.txt"
        if name not in self.prompt_lists():
            raise ValueError(
                f"prompts {name!r} is unknown; choose from {', '.join(self.prompt_lists())}"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def recipe(
        self,
        model: str,
        prompt: str,
        *,
        adapters: Sequence[Adapter] = (),
        seed: int = 0,
        **overrides: Unpack[Overrides],
    ) -> Recipe:
        """A complete recipe: the checkpoint's own settings under `overrides`, with fingerprints.

        The settings come from the model, or from the first adapter that carries its own sampler.
        ValueError, in one sentence, for anything that is missing, unreadable or out of range.
        """
        entry = self.entry(model)
        given = {key: value for key, value in overrides.items() if value is not None}
        own = [sampler for a in adapters if (sampler := adapter_sampler(Path(a.path)))]
        try:
            sampler = _override(own[0] if own else entry.preset.sampler, given)
            if given.get("negative_prompt") and sampler.guidance_scale <= 1:
                raise ValueError(
                    "negative_prompt is read only with guidance_scale above 1; "
                    "raise that or leave it out"
                )
            geometry = ("width", "height", "num_frames", "fps")
            recipe = Recipe(
                model=entry.preset.name,
                adapters=tuple(adapters),
                sampler=sampler,
                prompt=prompt,
                negative_prompt=_negative_prompt(entry.preset, sampler, given),
                seed=seed,
                **{field: given.get(field, getattr(entry.preset, field)) for field in geometry},
            )
        except ValidationError as error:
            raise ValueError(explain(error)) from error
        return self.resolve(recipe)

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with all fingerprints; ValueError where a file is gone or has changed."""
        entry = self.entry(recipe.model)
        if entry.folder is None or entry.missing:
            raise ValueError(f"model {recipe.model} cannot be used: {entry.missing}")
        adapters = tuple(
            adapter.model_copy(
                update={"fingerprint": _verify("adapter", adapter.path, adapter.fingerprint)}
            )
            for adapter in recipe.adapters
        )
        model_fingerprint = _verify("model", str(entry.folder), recipe.model_fingerprint)
        return recipe.model_copy(
            update={"adapters": adapters, "model_fingerprint": model_fingerprint}
        )

    def _preset_entry(self, path: Path) -> ModelEntry:
        preset = read_preset(path)
        folder = next(filter(is_model_folder, self._places(preset.source)), None)
        if folder is None:
            name = Path(preset.source).name
            missing = (
                f"{preset.source} is not here; run `hf download {preset.source} --local-dir "
                f"DIR/{name}` for any folder DIR and start with --models DIR"
            )
            return ModelEntry(preset, None, missing)
        return ModelEntry(preset, folder, what_is_missing(folder))

    def _places(self, source: str) -> Iterator[Path]:
        """Where a preset's weights may lie, the hub's own cache layout included."""
        yield ROOT / source
        for models_dir in self.model_dirs:
            if models_dir.resolve().name == Path(source).name:
                yield models_dir
            yield models_dir / source
            yield models_dir / Path(source).name
            cached = models_dir / f"models--{source.replace('/', '--')}" / "snapshots"
            yield from sorted(cached.glob("*"))


def _override(own: SamplerSpec, given: dict[str, Any]) -> SamplerSpec:
    """The checkpoint's sampler with the changes; new steps drop explicit sigmas that do not fit."""
    names = {"sampler": "name", "steps": "num_inference_steps"}
    fields = ("sampler", "steps", "flow_shift", "guidance_scale", "sigmas")
    changes = {names.get(field, field): given[field] for field in fields if field in given}
    if "sigmas" in changes:
        changes.setdefault("num_inference_steps", len(changes["sigmas"]))
    elif own.sigmas and changes.get("num_inference_steps") not in (None, len(own.sigmas)):
        changes["sigmas"] = None
    return SamplerSpec.model_validate({**own.model_dump(), **changes})


def _negative_prompt(preset: ModelPreset, sampler: SamplerSpec, given: dict[str, Any]) -> str:
    """Empty where no forward reads it, so that equal videos have equal recipes."""
    if sampler.guidance_scale <= 1:
        return ""
    return str(given.get("negative_prompt", preset.negative_prompt))


def _verify(field: str, path: str, expected: str | None) -> str:
    if not Path(path).exists():
        raise ValueError(f"{field} {path} does not exist; check the path")
    found = fingerprint(Path(path))
    if expected not in (None, found):
        raise ValueError(
            f"{field} {path} has changed since this recipe was made; "
            "make a new recipe from the same settings"
        )
    return found


def _is_lora(path: Path) -> bool:
    return _holds_lora_weights(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _holds_lora_weights(path: Path, mtime_ns: int) -> bool:
    """The time is an argument so that a changed file is read again."""
    try:
        return any("lora_" in name for name in Header(path).shapes)
    except ValueError:
        return False


def _walk(models_dir: Path) -> Iterator[Path]:
    """Folders below (and including) a models folder, sorted; does not look inside a model."""
    for folder, subfolders, _ in os.walk(models_dir, followlinks=True):
        path = Path(folder)
        yield path
        deep = len(path.relative_to(models_dir).parts) >= MAX_DEPTH
        inside = [] if deep or is_model_folder(path) else sorted(subfolders)
        subfolders[:] = [name for name in inside if not name.startswith(".")]


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
