"""A LightX2V configuration (`configs/distill/*.json`) as a student here: sampler, size and LoRAs.

    python -m pipelines import-lightx2v CONFIG.json DST --base wan2.1-t2v-14b --models DIR

`denoising_step_list` counts thousandths of the unshifted noise level. Since November 2025 LightX2V
takes deterministic Euler steps between these levels; before, and in its documentation still, it
draws new noise (`--sampler lcm`). This module imports no torch before it is sure of the input.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.catalog.entries import ModelPreset
from pipelines.catalog.registry import Registry
from pipelines.catalog.students import LORA_FILE, SPEC_FILE, TRANSFORMER, StudentSpec
from pipelines.files.disk import atomic_path, read_json
from pipelines.recipe import Adapter, SamplerSpec
from pipelines.strict import explain

NUM_LEVELS = 1000
# Two networks, one for high noise and one for low: Wan2.2.
TWO_EXPERTS = ("boundary", "boundary_step_index", "high_noise_", "low_noise_")


class LoraConfig(BaseModel):
    """One entry of `lora_configs`."""

    path: str
    strength: float = 1.0
    name: str | None = None  # the expert of Wan2.2


class LightX2VConfig(BaseModel):
    """What of a configuration decides the picture; the rest is about speed and memory."""

    model_config = ConfigDict(extra="allow")

    infer_steps: int = Field(ge=1)
    enable_cfg: bool
    sample_shift: float = 5.0
    sample_guide_scale: float | list[float] = 5.0
    denoising_step_list: list[float] | None = None
    enable_dynamic_cfg: bool = False
    cfg_scale: float | None = None
    target_video_length: int = 81
    target_height: int = 480
    target_width: int = 832
    text_len: int = 512
    feature_caching: str = "NoCaching"
    lora_configs: list[LoraConfig] = []


def add_lightx2v_command(commands: Any, folders: argparse.ArgumentParser) -> None:
    """Adds `import-lightx2v` to the subparsers of `python -m pipelines`."""
    parser = commands.add_parser(
        "import-lightx2v", parents=[folders], help="a LightX2V distill configuration as a model"
    )
    parser.set_defaults(run=_import)
    parser.add_argument("config", type=Path, help="a file of LightX2V's configs/distill/")
    parser.add_argument(
        "folder", type=Path, metavar="DST",
        help="the folder to write, below a models folder; may hold transformer/ already",
    )  # fmt: skip
    parser.add_argument("--base", required=True, help="the model that the student stands on")


def _import(options: argparse.Namespace) -> None:
    config = read_config(options.config)
    registry = Registry(options.models)
    base = registry.entry(options.base)
    if base.base is not None:
        raise ValueError(f"base {options.base} is a student itself; name the model it stands on")
    adapters = [
        Adapter(path=str(_find(registry, options.config, lora.path)), strength=lora.strength)
        for lora in config.lora_configs
    ]
    write_student(config, adapters, base.preset, options.folder)
    extra = config.model_extra or {}
    if extra:
        print(f"left out, as it is about speed and memory: {', '.join(extra)}")
    print(f"{options.folder}: {options.base}, {student_sampler(config).text}")


def read_config(path: Path) -> LightX2VConfig:
    """A configuration file. ValueError naming the field that cannot be honoured here."""
    if not path.is_file():
        raise ValueError(f"config {path} does not exist; check the path")
    try:
        config = LightX2VConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"config {path}: {explain(error)}") from error
    two = [key for key in config.model_extra or {} if key.startswith(TWO_EXPERTS)]
    if two or any(lora.name for lora in config.lora_configs):
        raise ValueError(
            f"config {path} is for the two experts of Wan2.2 ({(two or ['lora_configs.name'])[0]}),"
            " and only Wan2.1 is read here; take one of configs/distill/wan21"
        )
    if config.feature_caching != "NoCaching":
        raise ValueError(
            f"config {path}: feature_caching is {config.feature_caching} and changes the picture; "
            "set it to NoCaching"
        )
    return config


def student_sampler(config: LightX2VConfig) -> SamplerSpec:
    """The sampler that the configuration asks for."""
    guidance = {"guidance_mode": "off", "guidance_scale": 1.0}
    if config.enable_dynamic_cfg:
        if config.cfg_scale is None:
            raise ValueError("cfg_scale is missing though enable_dynamic_cfg is on; add it")
        guidance = {"guidance_mode": "embedded", "guidance_scale": config.cfg_scale}
    elif config.enable_cfg:
        if isinstance(config.sample_guide_scale, list):
            raise ValueError("sample_guide_scale lists the experts of Wan2.2; give one number")
        guidance = {"guidance_mode": "two_pass", "guidance_scale": config.sample_guide_scale}
    steps: dict[str, Any] = {"name": "unipc"}
    if config.denoising_step_list is not None:
        levels = [step / NUM_LEVELS for step in config.denoising_step_list]
        steps = {"name": "euler", "sigmas": levels}
    steps |= {"num_inference_steps": config.infer_steps, "flow_shift": config.sample_shift}
    try:
        return SamplerSpec.model_validate({**steps, **guidance})
    except ValidationError as error:
        raise ValueError(f"config: {explain(error)}") from error


def write_student(
    config: LightX2VConfig, adapters: Sequence[Adapter], base: ModelPreset, folder: Path
) -> None:
    """Writes `sampler.json` and, where the configuration has LoRAs, `lora.safetensors`.

    One LoRA at strength 1 is copied as it is; others become one that does the same. ValueError
    where the folder has weights that contradict the configuration.
    """
    own = (folder / TRANSFORMER).is_dir()
    if own == bool(adapters):
        has = "has a transformer/ and" if own else "has no transformer/ and"
        raise ValueError(
            f"{folder} {has} the configuration {'lists' if adapters else 'lists no'} lora_configs; "
            "a student is a LoRA, or a transformer/ of its own that you put there"
        )
    for name in (SPEC_FILE, LORA_FILE):
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists already; give the name of a new folder")
    spec = StudentSpec(
        base=base.name,
        sampler=student_sampler(config),
        text_length=config.text_len,
        width=config.target_width,
        height=config.target_height,
        num_frames=config.target_video_length,
        fps=base.fps,
        negative_prompt=base.negative_prompt,
    )
    if len(adapters) == 1 and adapters[0].strength == 1 and _is_safetensors(adapters[0]):
        with atomic_path(folder / LORA_FILE) as temporary:
            shutil.copyfile(adapters[0].path, temporary)
    elif adapters:
        from pipelines.lora.export import write_lora
        from pipelines.lora.file import stack_loras

        write_lora(stack_loras(adapters), folder / LORA_FILE, "lightx2v")
    with atomic_path(folder / SPEC_FILE) as temporary:
        temporary.write_text(spec.model_dump_json(indent=2), encoding="utf-8")


def _is_safetensors(adapter: Adapter) -> bool:
    return Path(adapter.path).suffix == ".safetensors"


def _find(registry: Registry, config: Path, path: str) -> Path:
    """The LoRA file as named, beside the configuration, or below the models folders."""
    for place in (Path(path), config.parent / path, config.parent / Path(path).name):
        if place.is_file():
            return place
    same = [found for found in registry.loras() if found.name == Path(path).name]
    if len(same) == 1:
        return same[0]
    raise ValueError(
        f"lora_configs: {path} is {'there more than once' if same else 'not here'}; put the file "
        "beside the configuration, or once below a folder given by --models"
    )
