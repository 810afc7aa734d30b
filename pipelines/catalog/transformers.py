"""A transformer without the rest of its model: one file, or a folder of shards.

Another model, its base, brings the VAE and the text encoder, which are the same for all of Wan2.1.
`NAME.json` beside NAME.safetensors, or `sampler.json` in a folder, names the base and says how the
checkpoint wants to be sampled (a `StudentSpec`). Where there is none, the base is the first model
here with a transformer of the same size, and settings are its own. What is in a pickle cannot be
seen unopened, so a pickle needs its NAME.json.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from pipelines.catalog.entries import (
    CheckpointSpec,
    ModelEntry,
    ModelPreset,
    adapter_sampler,
    folder_entry,
)
from pipelines.catalog.students import (
    TRANSFORMER,
    StudentSpec,
    base_entry,
    inherited_from,
    is_student_folder,
    student_entry,
)
from pipelines.files.disk import read_json
from pipelines.files.layouts import image_encoder_path, is_diffusers_part, is_model_folder
from pipelines.files.wan_layout import (
    PICKLED_TRANSFORMERS,
    PICKLES,
    TRANSFORMER_FILE,
    WEIGHTS,
    shapes_and_config,
    transformer_files,
    transformer_problem,
)
from pipelines.files.weight_configs import Config, transformer_config
from pipelines.files.weight_names import has_guidance
from pipelines.recipe import SamplerSpec
from pipelines.strict import explain

SHARED = ("text_dim", "out_channels")  # what a VAE and a text encoder ask of a transformer
SIZE = (
    *SHARED,
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "ffn_dim",
    "in_channels",
    "image_dim",
)


def is_transformer_file(path: Path) -> bool:
    """Whether a file is a Wan2.1 transformer: by its header, a pickle by its name."""
    if path.suffix in PICKLES:
        return path.name in PICKLED_TRANSFORMERS or path.with_suffix(".json").is_file()
    part = path.suffix != ".safetensors" or path.name.startswith(TRANSFORMER_FILE)
    return not part and transformer_problem([path]) is None


def is_transformer_folder(folder: Path) -> bool:
    """Whether the weights that lie in the folder itself are a Wan2.1 transformer."""
    if not any(folder.glob(f"{TRANSFORMER_FILE}*.safetensors")):
        return False
    files = [file for file in transformer_files(folder) if file.is_file()]
    return transformer_problem(files) is None


def models_in(folder: Path) -> Iterator[Path]:
    """The models that lie in a folder, not below it: the folder itself, or files in it."""
    if is_model_folder(folder) or is_student_folder(folder) or is_transformer_folder(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_transformer_file(path):
            yield path


def entry_at(path: Path, name: str, bases: Mapping[str, ModelEntry]) -> ModelEntry:
    """What lies in a folder or file as a model; `missing` says what is wrong with it.

    ValueError for a file of another kind.
    """
    if path.is_file():
        if path.suffix not in WEIGHTS:
            raise ValueError(
                f"model {name!r} is a file without weights; give a model's folder, or the file of "
                "a transformer (.safetensors, .pt, .pth, .bin)"
            )
        return transformer_entry(path, name, bases)
    if is_model_folder(path):
        return folder_entry(path, name)
    if is_transformer_folder(path):
        return transformer_entry(path, name, bases)
    if is_student_folder(path):
        return student_entry(path, name, bases)
    return folder_entry(path, name)


def transformer_entry(path: Path, name: str, bases: Mapping[str, ModelEntry]) -> ModelEntry:
    """A file or folder as a model; `missing` says what is wrong with it or with its base."""
    preset = ModelPreset(
        name=name, title=name, kind="distilled", source=str(path), license="unknown"
    )
    try:
        spec = _read_spec(path)
        base = _base_for(path, bases) if spec is None else base_entry(spec.base, bases)
        own = base.preset if spec is None else spec
        settings = {field: getattr(own, field) for field in CheckpointSpec.model_fields}
        if spec is None:
            settings["sampler"] = _own_sampler(path, base)
        elif spec.title:
            settings["title"] = spec.title
    except ValueError as error:
        return ModelEntry(preset, None, str(error), transformer=path)
    inherited = {**inherited_from(base), "base": base.preset.name}
    preset = preset.model_copy(update={**settings, **inherited})
    return ModelEntry(preset, base.folder, _problem(path, base), base.preset.name, path)


def preset_on_base(
    preset: ModelPreset, places: Iterable[Path], base: ModelEntry
) -> ModelEntry | None:
    """A preset whose source is a transformer alone, or None where it is in none of the places.

    The transformer is a file that the preset names, a folder `transformer/`, or shards.
    """
    for place in places:
        folders = [place / TRANSFORMER, *([place] if is_transformer_folder(place) else [])]
        found = [folder for folder in folders if folder.is_dir()]
        named = [path for pattern in preset.files for path in place.glob(pattern)]
        found += sorted(
            (p for p in named if p.suffix in WEIGHTS), key=lambda p: p.suffix in PICKLES
        )
        if found:
            problem = _problem(found[0], base)
            return ModelEntry(preset, base.folder, problem, transformer=found[0])
    return None


def _problem(path: Path, base: ModelEntry) -> str | None:
    """Why the transformer at `path` cannot stand in for its base's, as far as it can be seen."""
    if base.missing or base.folder is None:
        return f"its base {base.preset.name} cannot be used: {base.missing}"
    files = _files(path)
    for file in files:
        if not file.is_file():
            return f"{file} is missing; copy or download it again"
    if any(file.suffix in PICKLES for file in files):
        return None
    try:
        own, its = _config(path), _config(base.loaded_transformer)
    except ValueError as error:
        return f"{path} cannot be used: {error}"
    if any(own.get(key) != its.get(key) for key in SHARED):
        return f"{path} does not fit the VAE and the text encoder of {base.preset.name}"
    if own.get("image_dim") is not None and not image_encoder_path(base.folder).exists():
        return f"{path} reads an image through CLIP, which {base.preset.name} does not have"
    return None


def _files(path: Path) -> list[Path]:
    return transformer_files(path) if path.is_dir() else [path]


def _config(path: Path) -> Config:
    """A transformer's diffusers configuration. ValueError where it is none of Wan2.1's."""
    if is_diffusers_part(path):
        config: Config = read_json(path / "config.json")
        return config
    if problem := transformer_problem(_files(path)):
        raise ValueError(problem)
    return transformer_config(*shapes_and_config(_files(path)))


def _base_for(path: Path, bases: Mapping[str, ModelEntry]) -> ModelEntry:
    """The first usable model with a transformer of the same size."""
    spec = _spec_file(path).name
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which is not opened to look; say in {spec} beside it what it is, "
            'for example {"base": "wan2.1-t2v-14b"}'
        )
    own = _config(path)
    for base in bases.values():
        if base.missing is None and base.base is None:
            its = _config(base.loaded_transformer)
            if all(own.get(key) == its.get(key) for key in SIZE):
                return base
    raise ValueError(
        f"{path} is a transformer alone, and no model of its size is here to bring the VAE and the "
        f"text encoder; download one, or name it as base in {spec}"
    )


def _own_sampler(path: Path, base: ModelEntry) -> SamplerSpec:
    """The sampler in the file's metadata, else the base's; guidance as the network takes it."""
    own = adapter_sampler(path) if path.is_file() else None
    if own is not None:
        return own
    guided = has_guidance(shapes_and_config(_files(path))[0])
    mode = {"guidance_mode": "embedded"} if guided else {}
    return base.preset.sampler.model_copy(update=mode)


def _spec_file(path: Path) -> Path:
    return path / "sampler.json" if path.is_dir() else path.with_suffix(".json")


def _read_spec(path: Path) -> StudentSpec | None:
    file = _spec_file(path)
    if not file.is_file():
        return None
    try:
        return StudentSpec.model_validate(read_json(file))
    except ValidationError as error:
        raise ValueError(f"{file}: {explain(error)}") from error
