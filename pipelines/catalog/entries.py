"""How a checkpoint wants to be used: presets/models/NAME.yaml, or `sampler.json` beside weights."""
# ruff: noqa: RUF001 - Wan's negative prompt is Chinese, full-width commas included

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from pipelines.files.disk import read_json
from pipelines.files.layouts import own_image_preprocessing, transformer_path, what_is_missing
from pipelines.files.tensors import Header
from pipelines.geometry import WAN21, Geometry
from pipelines.recipe import ImagePreprocessing, Recipe, SamplerSpec
from pipelines.strict import Strict, explain

# The constant of Wan2.1's own configuration for every text-to-video model (`sample_neg_prompt`).
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，"
    "整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


class CheckpointSpec(Strict):
    """How a checkpoint wants to be used; also the content of `sampler.json` beside weights."""

    sampler: SamplerSpec = SamplerSpec()
    text_length: int = Field(512, ge=1, description="Tokens of the prompt, zero padded.")
    width: int = 832
    height: int = 480
    num_frames: int = 81
    fps: int = 16
    negative_prompt: str = ""
    geometry: Geometry = Field(
        WAN21,
        exclude_if=lambda geometry: geometry == WAN21,
        description="How VAE and transformer divide a video; empty: as Wan2.1's do.",
    )
    image_preprocessing: ImagePreprocessing | None = Field(
        None,
        description="Of image-to-video models: how the first frame is brought to size "
        "(pipelines/models/first_frame.py). Empty: the model takes no image.",
    )

    @property
    def takes_image(self) -> bool:
        """Whether every video starts from an image."""
        return self.image_preprocessing is not None


class ModelPreset(CheckpointSpec):
    """One file of presets/models/; its name is the file's stem."""

    name: str
    title: str
    kind: Literal["base", "distilled"] = "base"
    source: str = Field(
        description="Folder below the repository or a models folder, or a hub id of such a folder."
    )
    base: str | None = Field(
        None,
        description="Model that brings VAE and text encoder, where the source is a transformer "
        "alone.",
    )
    files: tuple[str, ...] = Field(
        (),
        description="Patterns of the files to fetch from the hub, `*` across folders; empty "
        "fetches all.",
    )
    size_gb: float | None = Field(
        None, gt=0, description="What these files take on disk, in 10^9 bytes; empty: not known."
    )
    license: str
    prompts: str | None = Field(None, description="A file of presets/prompts/, without .txt.")
    architecture: dict[str, int] | None = Field(
        None, description="What its config.json would say: to plan a run where no weights are."
    )


@dataclass(frozen=True)
class ModelEntry:
    """A preset and where it is; `missing` says in a sentence why it cannot be used, or is None.

    `folder` holds the VAE, the text encoder and the transformer, unless the model has a
    `transformer` of its own. A student has a `base` and uses what that one uses, with a
    `transformer` or `adapters` (LoRA files) of its own.
    """

    preset: ModelPreset
    folder: Path | None
    missing: str | None
    base: str | None = None
    transformer: Path | None = None
    adapters: tuple[Path, ...] = ()

    @property
    def own_folder(self) -> Path | None:
        """The folder or file that is this model's and no other's."""
        if self.base is not None:
            return Path(self.preset.source)
        if self.transformer is None:
            return self.folder
        return (
            self.transformer.parent if self.transformer.name == "transformer" else self.transformer
        )

    @property
    def networks(self) -> tuple[Path, ...]:
        """What is loaded before any LoRA; equal for all LoRA students of a base."""
        return tuple(path for path in (self.folder, self.transformer) if path is not None)

    @property
    def loaded_transformer(self) -> Path:
        """The folder or file of the transformer that runs: its own, else the one in `folder`.

        ValueError says what is missing.
        """
        if self.transformer is not None:
            return self.transformer
        if self.folder is None:
            raise ValueError(f"model: {self.missing}")
        return transformer_path(self.folder)

    @property
    def weights(self) -> tuple[Path, ...]:
        """Everything that the videos depend on."""
        return (*self.networks, *self.adapters)


def read_preset(path: Path) -> ModelPreset:
    """One presets/models/NAME.yaml. ValueError naming the file and the field."""
    return _read_preset(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)  # all are asked for at every change in Compare, and reading one takes 5 ms
def _read_preset(path: Path, mtime_ns: int) -> ModelPreset:
    """The time is an argument so that a changed file is read again."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ModelPreset.model_validate({**settings, "name": path.stem})
    except ValidationError as error:
        raise ValueError(f"preset {path.name}: {explain(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"preset {path.name} is not valid YAML: {error}") from error


def image_problem(preset: CheckpointSpec, recipe: Recipe) -> str | None:
    """Why the model cannot be used with this image, or without one; None where it can."""
    if preset.takes_image and recipe.image is None:
        return f"image is missing: {recipe.model} continues an image; give it one"
    if not preset.takes_image and recipe.image is not None:
        return f"image is given but {recipe.model} makes videos from the prompt alone; leave it out"
    return None


def folder_entry(folder: Path, name: str) -> ModelEntry:
    """A folder without a preset: its `sampler.json`, else Wan's defaults with its own shift."""
    missing = what_is_missing(folder)
    spec = CheckpointSpec(negative_prompt=WAN_NEGATIVE_PROMPT)
    try:
        spec = _read_spec(folder, spec)
    except ValueError as error:
        missing = str(error)
    preset = ModelPreset(
        name=name,
        title=folder.resolve().name,
        source=str(folder),
        license="unknown",
        **spec.model_dump(),
    )
    return ModelEntry(preset, folder, missing)


def _read_spec(folder: Path, default: CheckpointSpec) -> CheckpointSpec:
    own, scheduler = folder / "sampler.json", folder / "scheduler" / "scheduler_config.json"
    if own.is_file():
        try:
            return CheckpointSpec.model_validate(read_json(own))
        except ValidationError as error:
            raise ValueError(f"{own}: {explain(error)}") from error
    changes: dict[str, Any] = {}
    if scheduler.is_file():
        sampler = {"flow_shift": read_json(scheduler).get("flow_shift", 5.0)}
        changes["sampler"] = SamplerSpec(**sampler)
    changes["image_preprocessing"] = own_image_preprocessing(folder)
    if changes["image_preprocessing"] == "native":
        # Wan2.1's own defaults for 832x480; for 1280x720 it takes shift 5
        changes["sampler"] = SamplerSpec(num_inference_steps=40, flow_shift=3.0)
    return default.model_copy(update=changes)


def adapter_sampler(path: Path) -> SamplerSpec | None:
    """The sampler that trainers write into a LoRA's metadata, or None."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    text = Header(file).metadata.get("sampler")
    return SamplerSpec.model_validate_json(text) if text else None
