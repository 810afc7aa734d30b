"""What a recipe may change of its checkpoint's own settings, and what follows from a change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pipelines.catalog.entries import ModelPreset, adapter_sampler
from pipelines.recipe import Adapter, SamplerSpec


class Overrides(TypedDict, total=False):
    """What a recipe may change; None or absent means the checkpoint's own value."""

    sampler: Mapping[str, Any]  # by the names in `SamplerSpec`; None counts as absent
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


def override(own: SamplerSpec, changes: Mapping[str, Any]) -> SamplerSpec:
    """The checkpoint's sampler with the changes; new steps drop explicit sigmas that do not fit."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "sigmas" in given:
        given.setdefault("num_inference_steps", len(given["sigmas"]))
    elif own.sigmas and given.get("num_inference_steps") not in (None, len(own.sigmas)):
        given["sigmas"] = None
    return SamplerSpec.model_validate({**own.model_dump(), **given})


def negative_prompt_for(preset: ModelPreset, sampler: SamplerSpec, asked: str | None) -> str:
    """What is asked for, or the preset's own; empty where no forward reads it.

    So equal videos have equal recipes. ValueError where one is asked for all the same.
    """
    if sampler.reads_negative_prompt:
        return preset.negative_prompt if asked is None else asked
    if asked:
        raise ValueError(_unread_negative_prompt(sampler))
    return ""


def _unread_negative_prompt(sampler: SamplerSpec) -> str:
    if sampler.guidance_mode == "two_pass":
        way_out = "is read only with guidance_scale above 1; raise that or leave it out"
    else:
        way_out = "is not read by this distilled model, at any guidance_scale; leave it out"
    return f"negative_prompt {way_out}"
