"""What a recipe may change of its checkpoint's own settings, and what follows from a change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from pipelines.catalog.entries import ModelPreset, adapter_sampler
from pipelines.recipe import Adapter, SamplerSpec


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


def own_sampler(preset: ModelPreset, adapters: Sequence[Adapter]) -> SamplerSpec:
    """The sampler a model wants under these adapters, where nothing else is asked for."""
    if preset.kind == "distilled":
        return preset.sampler
    own = [sampler for a in adapters if (sampler := adapter_sampler(Path(a.path)))]
    return own[0] if own else preset.sampler


def override(own: SamplerSpec, given: dict[str, Any]) -> SamplerSpec:
    """The checkpoint's sampler with the changes; new steps drop explicit sigmas that do not fit."""
    names = {"sampler": "name", "steps": "num_inference_steps"}
    fields = ("sampler", "steps", "flow_shift", "guidance_scale", "sigmas")
    changes = {names.get(field, field): given[field] for field in fields if field in given}
    if "sigmas" in changes:
        changes.setdefault("num_inference_steps", len(changes["sigmas"]))
    elif own.sigmas and changes.get("num_inference_steps") not in (None, len(own.sigmas)):
        changes["sigmas"] = None
    return SamplerSpec.model_validate({**own.model_dump(), **changes})


def negative_prompt_for(preset: ModelPreset, sampler: SamplerSpec, given: dict[str, Any]) -> str:
    """Empty where no forward reads it, so that equal videos have equal recipes.

    ValueError where one is given all the same.
    """
    if not sampler.reads_negative_prompt:
        if given.get("negative_prompt"):
            raise ValueError(_unread_negative_prompt(sampler))
        return ""
    return str(given.get("negative_prompt", preset.negative_prompt))


def _unread_negative_prompt(sampler: SamplerSpec) -> str:
    if sampler.guidance_mode == "two_pass":
        way_out = "is read only with guidance_scale above 1; raise that or leave it out"
    else:
        way_out = "is not read by this distilled model, at any guidance_scale; leave it out"
    return f"negative_prompt {way_out}"
