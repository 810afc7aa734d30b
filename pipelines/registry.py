"""What models and LoRAs exist here, and the recipes they make.

A model is a file presets/models/NAME.yaml, a student in assets/students/ or exported by a run (RUN,
or RUN@STEP for one of its checkpoints), or any diffusers folder or student under a models folder.
Nothing is ever downloaded. This module imports no torch, so that the web process can use it.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Unpack

from pydantic import ValidationError

from pipelines.checkpoints import (
    CheckpointSpec,
    ModelEntry,
    ModelPreset,
    folder_entry,
    read_preset,
)
from pipelines.files import Header, fingerprint, is_model_folder, joint_fingerprint, what_is_missing
from pipelines.overrides import Overrides, negative_prompt_for, override, own_sampler
from pipelines.recipe import Adapter, Recipe, explain
from pipelines.students import StudentSpec, is_student_folder, student_entry

__all__ = [
    "CheckpointSpec",
    "ModelEntry",
    "ModelPreset",
    "Registry",
    "StudentSpec",
    "fingerprint",
]

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "presets"
STUDENTS = ROOT / "assets" / "students"
RUNS = Path(os.environ.get("STUDIO_RUNS") or ROOT / "runs")  # set by `app.py --runs`
MAX_DEPTH = 5  # of a model below a models folder


class Registry:
    """The presets, students and runs of this repository, and what the models folders hold."""

    def __init__(self, model_dirs: Sequence[Path] = (), runs_dir: Path = RUNS):
        for folder in model_dirs:
            if not folder.is_dir():
                raise ValueError(
                    f"models folder {folder} does not exist; create it or correct --models"
                )
        self.model_dirs = tuple(model_dirs)
        self.runs_dir = runs_dir

    def models(self) -> dict[str, ModelEntry]:
        """All models by name: presets, students, runs, then what the models folders hold.

        Looks at the disk again on every call.
        """
        presets = {
            path.stem: self._preset_entry(path) for path in _files(PRESETS / "models", ".yaml")
        }
        known = {entry.folder.resolve() for entry in presets.values() if entry.folder}
        folders: dict[str, Path] = {}
        for name, other_name, folder in self._folders():
            if folder.resolve() not in known:
                known.add(folder.resolve())
                taken = name in presets or name in folders
                folders[other_name if taken else name] = folder
        bases = presets | {
            name: folder_entry(folder, name)
            for name, folder in folders.items()
            if is_model_folder(folder)
        }
        found = {
            name: bases[name] if name in bases else student_entry(folder, name, bases)
            for name, folder in folders.items()
        }
        return presets | found

    def _folders(self) -> Iterator[tuple[str, str, Path]]:
        """Folders that may hold a model: the name, another in case it is taken, and the folder."""
        for folder in sorted(STUDENTS.glob("*/")):
            yield folder.name, str(folder), folder
        for folder in sorted(self.runs_dir.glob("*/export/")):
            if not (folder / "vae").is_dir():  # an autoencoder's export makes no videos
                yield folder.parent.name, f"runs/{folder.parent.name}", folder
        for folder in sorted(self.runs_dir.glob("*/exports/step_??????/")):
            name = f"{folder.parents[1].name}@{int(folder.name.removeprefix('step_'))}"
            yield name, f"runs/{name}", folder
        for models_dir in self.model_dirs:
            for folder in _walk(models_dir):
                if is_model_folder(folder) or is_student_folder(folder):
                    name = folder.relative_to(models_dir).as_posix()
                    yield folder.resolve().name if name == "." else name, str(folder), folder

    def entry(self, model: str) -> ModelEntry:
        """A model by name or folder. ValueError that suggests the nearest names."""
        entries = self.models()
        if model in entries:
            return entries[model]
        folder = Path(model)
        if folder.is_dir():
            same = [e for e in entries.values() if e.own_folder and e.own_folder.samefile(folder)]
            if same:
                return same[0]
            if is_student_folder(folder):
                return student_entry(folder, model, entries)
            return folder_entry(folder, model)
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

        A base model takes the settings of the first adapter that carries its own sampler; a
        distilled one keeps its own.
        ValueError, in one sentence, for anything that is missing, unreadable or out of range.
        """
        entry = self.entry(model)
        given = {key: value for key, value in overrides.items() if value is not None}
        try:
            sampler = override(own_sampler(entry.preset, adapters), given)
            geometry = ("width", "height", "num_frames", "fps")
            recipe = Recipe(
                model=entry.preset.name,
                adapters=tuple(adapters),
                sampler=sampler,
                prompt=prompt,
                negative_prompt=negative_prompt_for(entry.preset, sampler, given),
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
                update={
                    "fingerprint": _verify("adapter", [Path(adapter.path)], adapter.fingerprint)
                }
            )
            for adapter in recipe.adapters
        )
        model_fingerprint = _verify("model", entry.weights, recipe.model_fingerprint)
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


def _verify(field: str, paths: Sequence[Path], expected: str | None) -> str:
    """The fingerprint of all paths; ValueError where one is gone or they have changed."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{field} {path} does not exist; check the path")
    found = joint_fingerprint(paths)
    if expected not in (None, found):
        raise ValueError(
            f"{field} {paths[-1]} has changed since this recipe was made; "
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
