"""First frames of the shapes world: images for a model to continue, and how well it does.

What is measured of each clip: `first_frame_db`, the PSNR of its first frame against the image, and
whether the exact checker reads the caption out of it. The ceiling is the autoencoder's copy of the
rendered clip that the image was taken from.

    python -m trainers.evaluation.first_frames presets/prompts/shapes_train.txt runs/tiny-frames

renders images for the prompts of a list and writes OUT/prompts.jsonl, data for training without
videos.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.files.disk import atomic_path, fingerprint, read_lines
from pipelines.model_cache import ModelCache
from pipelines.recipe import FirstFrame, Recipe
from trainers.evaluation.clips import Clips, decode, sample_clips
from trainers.evaluation.measure import observations, rendered_clips, summarise, verdicts
from trainers.worlds.shapes import Caption, render

ENCODE_BATCH = 16  # clips


def write_first_frame(path: Path, caption: Caption, seed: int) -> None:
    """The first frame of a rendered clip as an image file; atomic."""
    (frame,) = render(caption, seed, frames=slice(0, 1))
    with atomic_path(path) as partial:
        Image.fromarray(np.rint(frame * 255).astype(np.uint8)).save(partial)


def with_first_frames(recipes: Sequence[Recipe], folder: Path, seed: int) -> list[Recipe]:
    """Each recipe with the first frame of its caption's clip, rendered with seed + its number."""
    given = []
    for number, recipe in enumerate(recipes):
        path = folder / f"{seed + number}.png"
        write_first_frame(path, Caption.parse(recipe.prompt), seed + number)
        image = FirstFrame(path=str(path), fingerprint=fingerprint(path))
        given.append(recipe.model_copy(update={"image": image}))
    return given


def measure_continuation(clips: Clips, rendered: Clips) -> dict[str, float]:
    """Figures of clips that continue the first frames of rendered ones."""
    figures = summarise(verdicts(clips.captions, observations(clips.videos)))
    figures["first_frame_db"] = psnr_db(clips.videos[:, 0], rendered.videos[:, 0])
    figures["num_forwards"] = clips.num_forwards
    figures["denoise_sec"] = clips.denoise_sec
    return figures


def psnr_db(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Mean over images of the peak signal-to-noise ratio. uint8 [N, H, W, 3]."""
    errors = np.square(images.astype(float) - reference.astype(float)).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-3))))


@torch.no_grad()
def round_trip(rendered: Clips, recipe: Recipe, models: ModelCache) -> Clips:
    """The autoencoder's copies of rendered clips: the best that a model of its latents can do."""
    components = models.components(recipe, models.registry.entry(recipe.model))
    videos = torch.from_numpy(rendered.videos).permute(0, 1, 4, 2, 3)
    latents = [components.encode(batch / 255).cpu() for batch in videos.split(ENCODE_BATCH)]
    copies = decode(torch.cat(latents), components)
    return Clips(rendered.captions, torch.cat(latents), copies, 0, 0.0)


def continuation_rows(
    models: ModelCache, sweep: Sequence[Sequence[Recipe]], folder: Path, seed: int
) -> list[dict[str, str | float]]:
    """A row for the ceiling, then one for the recipes of each model; all have the same captions."""
    captions = [Caption.parse(recipe.prompt) for recipe in sweep[0]]
    first = sweep[0][0]
    rendered = rendered_clips(captions, (first.num_frames, first.height, first.width), seed)
    ceiling = measure_continuation(round_trip(rendered, first, models), rendered)
    rows: list[dict[str, str | float]] = [{"student": "(autoencoder)", **ceiling}]
    for recipes in sweep:
        clips = sample_clips(with_first_frames(recipes, folder, seed), models)
        rows.append({"student": recipes[0].model, **measure_continuation(clips, rendered)})
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers.evaluation.first_frames")
    parser.add_argument("prompts", type=Path, help="captions of the shapes world, one a line")
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-prompt", type=int, default=1, help="images of each caption")
    options = parser.parse_args()
    captions = [Caption.parse(line) for line in read_lines(options.prompts)]
    lines = []
    for number, caption in enumerate(captions * options.per_prompt):
        write_first_frame(options.out / f"{number:05d}.png", caption, number)
        lines.append(json.dumps({"prompt": str(caption), "image": f"{number:05d}.png"}))
    with atomic_path(options.out / "prompts.jsonl") as partial:
        partial.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
