"""What models and LoRAs exist here, and the recipes they make.

A model is a file presets/models/NAME.yaml, a student in assets/students/ or exported by a run (RUN,
or RUN@STEP for one of its checkpoints), or under a models folder any model in diffusers' or Wan's
own layout, any student, any transformer in a file or folder of its own.
Nothing is downloaded here; that is `hub`.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from pipelines.catalog.entries import (
    ModelEntry,
    ModelPreset,
    folder_entry,
    read_preset,
)
from pipelines.catalog.overrides import Overrides, negative_prompt_for, override, own_sampler
from pipelines.catalog.steps import step_of
from pipelines.catalog.students import is_student_folder
from pipelines.catalog.transformers import entry_at, models_in, preset_on_base
from pipelines.files.disk import joint_fingerprint, read_lines
from pipelines.files.layouts import is_model_folder, what_is_missing
from pipelines.files.lora_outline import is_lora_file
from pipelines.memory import memory_words, parse_memory
from pipelines.recipe import Adapter, FirstFrame, Recipe
from pipelines.strict import explain

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "presets"
STUDENTS = ROOT / "assets" / "students"
KEPT = "models"  # below the runs folder: exports that were given a name and stay
RUNS = Path(os.environ.get("STUDIO_RUNS") or ROOT / "runs")  # set by `app.py --runs`
_NAMED = os.environ.get("STUDIO_MODELS") or str(ROOT / "models")  # set by `app.py --models`
MODELS = [Path(folder) for folder in _NAMED.split(os.pathsep)]  # where no folder is named
MAX_DEPTH = 5  # of a model below a models folder


class Registry:
    """The presets, students and runs of this repository, and what the models folders hold."""

    def __init__(self, model_dirs: Sequence[Path] = (), runs_dir: Path = RUNS):
        for folder in model_dirs:
            if not folder.is_dir():
                raise ValueError(
                    f"models folder {folder} does not exist; create it or correct --models"
                )
        self.model_dirs = tuple(model_dirs) or tuple(filter(Path.is_dir, MODELS))
        self.runs_dir = runs_dir

    @property
    def download_dir(self) -> Path:
        """Where downloaded models go; it may not be there yet."""
        return self.model_dirs[0] if self.model_dirs else MODELS[0]

    def presets(self) -> dict[str, ModelPreset]:
        """The models of presets/models/ by name, here or not; what ships comes first."""
        presets = [read_preset(path) for path in _files(PRESETS / "models", "*.yaml")]
        presets.sort(key=lambda p: (not p.source.startswith("assets/"), p.name))
        return {preset.name: preset for preset in presets}

    def models(self) -> dict[str, ModelEntry]:
        """All models by name: presets, students, runs, then what the models folders hold.

        Looks at the disk again on every call.
        """
        presets = self._presets()
        known = {entry.own_folder.resolve() for entry in presets.values() if entry.own_folder}
        known |= {path.parent for path in known if path.is_file()}  # LightX2V puts a VAE beside it
        places: dict[str, Path] = {}
        for name, other_name, place in self._scanned():
            if place.resolve() not in known:
                known.add(place.resolve())
                taken = name in presets or name in places
                places[other_name if taken else name] = place
        bases = presets | {
            name: folder_entry(place, name)
            for name, place in places.items()
            if is_model_folder(place)
        }
        alone = {name: place for name, place in places.items() if name not in bases}
        first = {name: entry_at(place, name, bases) for name, place in alone.items()}
        whole = bases | {name: entry for name, entry in first.items() if entry.missing is None}
        found = {  # those that stand on another student: a reward's LoRA on a distilled model
            name: whole.get(name) or entry_at(place, name, whole) for name, place in places.items()
        }
        return presets | found

    def _presets(self) -> dict[str, ModelEntry]:
        """What presets/models/ describes; what ships with the repository comes first."""
        presets = self.presets().values()
        whole = {p.name: self._preset_entry(p) for p in presets if p.base is None}
        alone = {p.name: self._preset_on_base(p, whole) for p in presets if p.base is not None}
        return {p.name: (whole | alone)[p.name] for p in presets}

    def _scanned(self) -> Iterator[tuple[str, str, Path]]:
        """What may hold a model: its name, another in case that is taken, and a folder or file."""
        for folder in (*sorted(STUDENTS.glob("*/")), *sorted((self.runs_dir / KEPT).glob("*/"))):
            yield folder.name, str(folder), folder
        for folder in sorted(self.runs_dir.glob("*/export/")):
            if not (folder / "vae").is_dir():  # an autoencoder's export makes no videos
                yield folder.parent.name, f"runs/{folder.parent.name}", folder
        for folder in sorted(self.runs_dir.glob("*/exports/*/")):
            if (step := step_of(folder.name)) is not None:
                name = f"{folder.parents[1].name}@{step}"
                yield name, f"runs/{name}", folder
        for models_dir in self.model_dirs:
            for folder in _walk(models_dir):
                for place in models_in(folder):
                    name = place.relative_to(models_dir).as_posix()
                    yield place.resolve().name if name == "." else name, str(place), place

    def entry(self, model: str) -> ModelEntry:
        """A model by name, folder or file. ValueError that suggests the nearest names."""
        entries = self.models()
        if model in entries:
            return entries[model]
        place = Path(model)
        if place.exists():
            same = [e for e in entries.values() if e.own_folder and e.own_folder.samefile(place)]
            if same:
                return same[0]
            return entry_at(place, model, entries)
        nearest = difflib.get_close_matches(model, entries, n=3, cutoff=0.4) or list(entries)
        raise ValueError(f"model {model!r} is unknown; did you mean {' or '.join(nearest)}?")

    def loras(self) -> list[Path]:
        """LoRA files and PEFT folders under the models folders, and LoRAs on top of students."""
        found: list[Path] = []
        for models_dir in self.model_dirs:
            for folder in _walk(models_dir):
                if (folder / "adapter_config.json").is_file():
                    found.append(folder)
                elif not is_model_folder(folder):
                    found += filter(is_lora_file, _files(folder, "*"))
        on_top = [e.adapters[-1] for e in self.models().values() if len(e.adapters) > 1]
        return found + [path for path in on_top if path not in found]

    def prompt_lists(self) -> list[str]:
        """Names of the prompt lists in presets/prompts/."""
        return [path.stem for path in _files(PRESETS / "prompts", "*.txt")]

    def prompts(self, name: str) -> list[str]:
        """The prompts of one list, one a line."""
        path = PRESETS / "prompts" / f"{name}.txt"
        if name not in self.prompt_lists():
            raise ValueError(
                f"prompts {name!r} is unknown; choose from {', '.join(self.prompt_lists())}"
            )
        return read_lines(path)

    def recipe(
        self,
        model: str,
        prompt: str,
        *,
        image: Path | None = None,
        adapters: Sequence[Adapter] = (),
        seed: int = 0,
        memory: str = "plain",
        **overrides: Unpack[Overrides],
    ) -> Recipe:
        """A complete recipe: the checkpoint's own settings under `overrides`, with fingerprints.

        A base model takes the settings of the first adapter that carries its own sampler; a
        distilled one keeps its own.
        ValueError, in one sentence, for anything that is missing, unreadable or out of range.
        """
        entry = self.entry(model)
        given: dict[str, Any] = {
            name: getattr(entry.preset, name) for name in ("width", "height", "num_frames", "fps")
        }
        given |= {name: value for name, value in overrides.items() if value is not None}
        try:
            sampler = override(own_sampler(entry.preset, adapters), given.pop("sampler", {}))
            negative_prompt = given.pop("negative_prompt", None)
            recipe = Recipe(
                model=entry.preset.name,
                adapters=tuple(adapters),
                sampler=sampler,
                prompt=prompt,
                image=None if image is None else FirstFrame(path=str(image)),
                negative_prompt=negative_prompt_for(entry.preset, sampler, negative_prompt),
                seed=seed,
                memory=memory_words(parse_memory(memory)),
                **given,
            )
        except ValidationError as error:
            raise ValueError(explain(error)) from error
        return resolved(recipe, entry)

    def _preset_entry(self, preset: ModelPreset) -> ModelEntry:
        folder = next(filter(is_model_folder, self._places(preset.source)), None)
        if folder is None:
            return ModelEntry(preset, None, _how_to_get(preset))
        return ModelEntry(preset, folder, what_is_missing(folder))

    def _preset_on_base(self, preset: ModelPreset, bases: Mapping[str, ModelEntry]) -> ModelEntry:
        """A preset whose source is a transformer alone."""
        base = bases.get(preset.base or "")
        if base is None:
            raise ValueError(
                f"preset {preset.name}.yaml: base is {preset.base!r} but must be one of "
                f"{', '.join(bases)}"
            )
        preset = preset.model_copy(update={"geometry": base.preset.geometry})
        entry = preset_on_base(preset, self._places(preset.source), base)
        return entry or ModelEntry(preset, None, _how_to_get(preset))

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


def _how_to_get(preset: ModelPreset) -> str:
    return (
        f"{preset.source} is not here; run `python -m pipelines download {preset.name} "
        f"--models DIR`, or put it at DIR/{Path(preset.source).name}, and start with --models DIR"
    )


def resolved(recipe: Recipe, entry: ModelEntry) -> Recipe:
    """The recipe with all fingerprints, its model's included.

    ValueError where a file is gone or has changed, or the model makes no videos of this size.
    """
    if entry.folder is None or entry.missing:
        raise ValueError(f"model {recipe.model} cannot be used: {entry.missing}")
    geometry = entry.preset.geometry
    if problem := geometry.problem(recipe.width, recipe.height, recipe.num_frames):
        raise ValueError(problem)
    adapters = tuple(
        adapter.model_copy(
            update={"fingerprint": _verify("adapter", [Path(adapter.path)], adapter.fingerprint)}
        )
        for adapter in recipe.adapters
    )
    model_fingerprint = _verify("model", entry.weights, recipe.model_fingerprint)
    image = recipe.image
    if image is not None:
        digest = _verify("image", [Path(image.path)], image.fingerprint)
        image = image.model_copy(update={"fingerprint": digest})
    return recipe.model_copy(
        update={"adapters": adapters, "model_fingerprint": model_fingerprint, "image": image}
    )


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


def _walk(models_dir: Path) -> Iterator[Path]:
    """Folders below (and including) a models folder, sorted; does not look inside a model."""
    for folder, subfolders, _ in os.walk(models_dir, followlinks=True):
        path = Path(folder)
        yield path
        deep = len(path.relative_to(models_dir).parts) >= MAX_DEPTH
        whole = is_model_folder(path) or is_student_folder(path)
        inside = [] if deep or whole else sorted(subfolders)
        subfolders[:] = [name for name in inside if not name.startswith(".")]


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())
