"""Tables: students beside their teacher, at other sizes, and over guidance scales."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines.catalog.overrides import Overrides
from pipelines.catalog.registry import Registry
from pipelines.files.disk import atomic_path
from pipelines.model_cache import ModelCache
from pipelines.recipe import Adapter, Recipe
from trainers.evaluation.adherence import adherence
from trainers.evaluation.clips import Clips, cached_clips, sample_clips
from trainers.evaluation.features import clip_features, frechet_distance
from trainers.evaluation.measure import (
    REFERENCE_SEED,
    measure,
    observations,
    reference_features,
    rendered_clips,
    summarise,
    verdicts,
)
from trainers.scoring import figures
from trainers.scoring.clip import ClipScorer, contact_sheet

Row = dict[str, str | float]
Columns = Mapping[str, tuple[str, str]]  # title -> name in a row, format

TEACHER = "tiny-wan"
TEACHER_SAMPLING: Overrides = {
    "sampler": {
        "name": "unipc",
        "num_inference_steps": 48,
        "guidance_scale": 3.0,
        "flow_shift": 3.0,
    }
}
RENDERED_SEED = REFERENCE_SEED + 2**20  # other clips than the reference's

STUDENT_COLUMNS: Columns = {
    "student": ("student", ""),
    "forwards": ("num_forwards", "d"),
    "prompt accuracy": ("prompt_accuracy", ".3f"),
    "vs teacher": ("accuracy_difference", "+.3f"),
    "seen": ("prompt_accuracy_seen", ".3f"),
    "held out": ("prompt_accuracy_held_out", ".3f"),
    "slot accuracy": ("slot_accuracy", ".3f"),
    "Frechet": ("frechet", ".2f"),
    "Frechet / teacher": ("frechet_ratio", ".2f"),
    "diversity / teacher": ("diversity", ".2f"),
    "denoise s/clip": ("denoise_sec", ".3f"),
}
SIZE_COLUMNS: Columns = {"size": ("size", ""), "frames": ("num_frames", "d"), **STUDENT_COLUMNS}
IMAGE_COLUMNS: Columns = {
    "model": ("student", ""),
    "forwards": ("num_forwards", "d"),
    "prompt accuracy": ("prompt_accuracy", ".3f"),
    "seen": ("prompt_accuracy_seen", ".3f"),
    "held out": ("prompt_accuracy_held_out", ".3f"),
    "slot accuracy": ("slot_accuracy", ".3f"),
    "first frame, dB": ("first_frame_db", ".1f"),
    "denoise s/clip": ("denoise_sec", ".3f"),
}
GUIDANCE_COLUMNS: Columns = {
    "guidance": ("guidance_scale", "g"),
    "forwards": ("num_forwards", "d"),
    "prompt accuracy": ("prompt_accuracy", ".3f"),
    "slot accuracy": ("slot_accuracy", ".3f"),
    "adherence": ("adherence", ".4f"),
    "Frechet": ("frechet", ".2f"),
}
LORA_ALPHA_COLUMNS: Columns = {
    "alpha x": ("factor", "g"),
    "prompt accuracy": ("prompt_accuracy", ".3f"),
    "held out": ("prompt_accuracy_held_out", ".3f"),
    "slot accuracy": ("slot_accuracy", ".3f"),
    "tiny_clip": ("tiny_clip", ".3f"),
    "exposure / start": ("exposure", ".3f"),
    "saturation / start": ("saturation", ".3f"),
    "clipped - start": ("clipped", "+.4f"),
    "diversity / start": ("diversity", ".2f"),
    "Frechet": ("frechet", ".2f"),
}
LORA_ALPHA_CURVES = {
    "prompt_accuracy": "prompt accuracy",
    "tiny_clip": "tiny_clip, the reward",
    "exposure": "exposure / start",
    "diversity": "diversity / start",
}


def clip_recipes(
    registry: Registry,
    model: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    overrides: Overrides,
    adapters: Sequence[Adapter] = (),
) -> list[Recipe]:
    """One recipe a seed and prompt, seeds outermost. ValueError where the model cannot do it."""
    recipe = registry.recipe(model, prompts[0], adapters=adapters, **overrides)
    if problem := recipe.sampler.problem():
        raise ValueError(f"{model}: {problem}")
    return [
        recipe.model_copy(update={"prompt": prompt, "seed": seed})
        for seed in seeds
        for prompt in prompts
    ]


def student_rows(
    models: ModelCache,
    teacher: Sequence[Recipe],
    students: Mapping[str, Sequence[Recipe]],
    cache: Path,
) -> list[Row]:
    """A row for the teacher, one for rendered clips, one a student; same captions and seeds.

    The teacher's clips are kept in `cache`: they cost more than those of all students together.
    """
    of_teacher = cached_clips(teacher, models, cache)
    shape = of_teacher.videos.shape[1:4]
    rendered = rendered_clips(of_teacher.captions, shape, RENDERED_SEED)
    rows: list[Row] = [
        {"student": f"teacher ({teacher[0].model})", **measure(of_teacher, of_teacher)},
        {"student": "(rendered)", **measure(rendered, of_teacher)},
    ]
    for name, recipes in students.items():
        rows.append({"student": name, **measure(sample_clips(recipes, models), of_teacher)})
    return rows


def size_rows(
    models: ModelCache, rounds: Sequence[tuple[Sequence[Recipe], Sequence[Recipe]]], cache: Path
) -> list[Row]:
    """The rows of `student_rows` for (teacher's, student's) recipes of one size after another."""
    rows: list[Row] = []
    for teacher, student in rounds:
        recipe = student[0]
        geometry: Row = {
            "size": f"{recipe.width}x{recipe.height}",
            "num_frames": recipe.num_frames,
        }
        found = student_rows(models, teacher, {recipe.model: student}, cache)
        rows += [geometry | row for row in found]
    return rows


def guidance_rows(
    models: ModelCache, scorer: Recipe, sweep: Sequence[Sequence[Recipe]]
) -> list[Row]:
    """A row a guidance scale; `scorer` is a recipe of the model that measures adherence."""
    rows: list[Row] = []
    for recipes in sweep:
        clips = sample_clips(recipes, models)
        reference = reference_features(clips.captions, clips.videos.shape[1:4])
        rows.append(
            {
                "guidance_scale": recipes[0].sampler.guidance_scale,
                "num_forwards": clips.num_forwards,
                **summarise(verdicts(clips.captions, observations(clips.videos))),
                "adherence": adherence(clips, scorer, models),
                "frechet": frechet_distance(clip_features(clips.videos), reference),
            }
        )
    return rows


def lora_alpha_rows(
    models: ModelCache,
    sweep: Mapping[float, Sequence[Recipe]],
    scorer: ClipScorer,
    cache: Path,
) -> list[Row]:
    """A row a factor of a LoRA's own alpha; ratios are to factor 0, the model under it."""
    start = cached_clips(sweep[0.0], models, cache)
    of_start = drift_figures(start)
    rows: list[Row] = []
    for factor, recipes in sweep.items():
        clips = cached_clips(recipes, models, cache)
        figures = drift_figures(clips)
        rows.append(
            {
                "factor": factor,
                **measure(clips, start),
                "exposure": figures["luminance"] / of_start["luminance"],
                "saturation": figures["saturation"] / of_start["saturation"],
                "clipped": figures["clipped_share"] - of_start["clipped_share"],
                "tiny_clip": float(rewards(scorer, clips).mean()),
            }
        )
    return rows


def drift_figures(clips: Clips) -> dict[str, float]:
    """Means over all clips of brightness, saturation and the share of black and white pixels."""
    video = torch.from_numpy(clips.videos).permute(0, 1, 4, 2, 3) / 255
    measures = {
        "luminance": figures.luminance,
        "saturation": figures.saturation,
        "clipped_share": figures.clipped_share,
    }
    return {name: float(figure(video).mean()) for name, figure in measures.items()}


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """The rows as a table; what could not be measured is a dash."""
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[_shown(row[name], spec) for name, spec in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_json(rows: Sequence[Row], out: Path) -> None:
    """All figures of the rows, null where there is none; atomic."""
    content = [{k: None if _is_nan(v) else v for k, v in row.items()} for row in rows]
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shown(figure: str | float, spec: str) -> str:
    return "-" if _is_nan(figure) else format(figure, spec)


def _is_nan(figure: str | float) -> bool:
    return isinstance(figure, float) and math.isnan(figure)


@torch.no_grad()
def rewards(scorer: ClipScorer, clips: Clips) -> np.ndarray:
    """The reward of each clip for its own caption. [N]."""
    found = []
    for video, caption in zip(clips.videos, clips.captions, strict=True):
        frames = torch.from_numpy(video).permute(0, 3, 1, 2)[None] / 255
        found.append(float(scorer.score(contact_sheet(frames), (str(caption),))))
    return np.array(found)
