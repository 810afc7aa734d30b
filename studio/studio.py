"""`Studio`, what page and API call to work with clips: submit, watch, cancel, export.

Every method that makes something refuses in a studio for viewers, so no event handler, server
function or raw HTTP request can get round the interface.
"""

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.catalog.registry import Registry
from pipelines.recipe import Recipe
from pipelines.video import read_recipe, write_grid
from studio.clips.live_preview import preview_name
from studio.clips.store import NUM_RECENT_CLIPS, Cell, ClipInfo, Comparison, Job, Store
from studio.clips.workers import clip_path, store_path
from studio.compare.cost import Forecast, estimate_sec, metric_lines
from studio.compare.images import Images
from studio.compare.variants import LABELS, Variant, cli_command, lora_name, to_recipe
from studio.page.words import FILE_ROUTE, plural, sentence
from studio.train.training import Training

EXPORT_SUFFIXES = (".mp4", ".gif")


class Studio:
    """The clips of a data folder and the models of a registry; makes clips unless `viewer`."""

    def __init__(self, data: Path, registry: Registry, viewer: bool, memory: str = "plain"):
        self.data = data
        self.registry = registry
        self.viewer = viewer
        self.memory = memory  # how models are held where a comparison does not say
        self.training: Training | None = None  # what Train and Runs need; never for viewers
        for folder in ("clips", "exports", "previews", "cache"):
            (data / folder).mkdir(parents=True, exist_ok=True)
        self.images = Images(data)
        self.store = Store(store_path(data))
        self._exporting = threading.Lock()

    def require_maker(self) -> None:
        if self.viewer:
            raise ValueError("This studio is for viewing only; start it without --viewer.")

    def index_clips(self) -> None:
        """Finds clips whose row was lost: the recipe inside the mp4 says what they are."""
        known = self.store.clip_keys()
        for path in (self.data / "clips").glob("[0-9a-f]*.mp4"):
            if path.stem in known:
                continue
            try:
                recipe = read_recipe(path)
            except ValueError:  # not ours or damaged: it stays on disk and out of the studio
                continue
            if recipe.key() == path.stem:
                self.store.add_clip(recipe, ClipInfo(num_forwards=recipe.num_forwards))

    def first_model(self) -> str | None:
        """The model that Compare starts with: the first that is here."""
        entries = self.registry.models()
        return next((name for name, entry in entries.items() if entry.missing is None), None)

    # Making

    def add_image(self, path: str) -> str:
        """Keeps an uploaded image; returns the name by which variants can start from it."""
        self.require_maker()
        return self.images.add(Path(path))

    def recipes(
        self, variants: Sequence[Variant], prompt: str, image: str = "", memory: str = ""
    ) -> list[Recipe]:
        """The recipe of every variant. ValueError naming the first variant that cannot work.

        `image` is a name from `add_image`, for the variants whose model continues one; `memory` is
        read by `parse_memory`, and empty the studio's own.
        """
        if not 1 <= len(variants) <= len(LABELS):
            raise ValueError(f"variants: give between 1 and {len(LABELS)}")
        recipes = []
        first_frame = self.images.path(image) if image else None
        for label, variant in zip(LABELS, variants, strict=False):
            try:
                recipes.append(self._recipe(variant, prompt, first_frame, memory))
            except ValueError as error:
                raise ValueError(f"Variant {label}: {sentence(error)}") from error
        return recipes

    def _recipe(
        self, variant: Variant, prompt: str, first_frame: Path | None, memory: str
    ) -> Recipe:
        return to_recipe(self.registry, variant, prompt, first_frame, memory or self.memory)

    def submit(
        self, variants: Sequence[Variant], prompt: str, image: str = "", memory: str = ""
    ) -> str:
        """Queues what is not made yet and returns the id of the comparison at once."""
        self.require_maker()
        recipes = self.recipes(variants, prompt, image, memory)
        cells = tuple(
            Cell(label=label, title=self.title(recipe), recipe=recipe)
            for label, recipe in zip(LABELS, recipes, strict=False)
        )
        comparison_id = self.store.add_comparison(cells)
        for recipe in recipes:
            if not self.has_clip(recipe.key()):
                self.store.enqueue(recipe)
        return comparison_id

    def cancel(self, job_id: int) -> None:
        self.require_maker()
        if not isinstance(job_id, int) or self.store.job(job_id) is None:
            raise ValueError(f"job {job_id} does not exist")
        self.store.request_cancel(job_id)

    def export(self, comparison_id: str, suffix: str) -> str:
        """Writes the finished clips side by side under their labels; returns the page's link."""
        self.require_maker()
        if suffix not in EXPORT_SUFFIXES:
            raise ValueError(
                f"suffix is {suffix!r} but must be one of {', '.join(EXPORT_SUFFIXES)}"
            )
        cells = [c for c in self.comparison(comparison_id).cells if self.has_clip(c.recipe.key())]
        if not cells:
            raise ValueError("No clip is finished yet; wait for at least one.")
        name = f"exports/{comparison_id}-{''.join(cell.label for cell in cells)}{suffix}"
        with self._exporting:
            if not (self.data / name).exists():
                paths = [clip_path(self.data, cell.recipe.key()) for cell in cells]
                labels = [f"{cell.label}: {cell.title}" for cell in cells]
                write_grid(paths, labels, self.data / name)
        return FILE_ROUTE + name

    def commands(self, comparison_id: str) -> list[str]:
        """The shell command for each cell. Not for viewers: it may hold paths of this machine."""
        self.require_maker()
        return [
            cli_command(self.registry, cell.recipe, f"{cell.label}.mp4")
            for cell in self.comparison(comparison_id).cells
        ]

    # Looking

    def forecast(
        self, variants: Sequence[Variant], prompt: str, image: str = "", memory: str = ""
    ) -> "Forecast":
        """What pressing Generate would do, for the line above the button."""
        first_frame = self.images.path(image) if image else None
        problems: dict[str, str] = {}
        seconds: list[float | None] = []
        num_cached = 0
        history = self.store.recent_clips(NUM_RECENT_CLIPS)
        for label, variant in zip(LABELS, variants, strict=False):
            try:
                recipe = self._recipe(variant, prompt, first_frame, memory)
            except ValueError as error:
                problems[label] = sentence(error)
                continue
            if self.has_clip(recipe.key()):
                num_cached += 1
            else:
                seconds.append(estimate_sec(recipe, history))
        return Forecast(problems, seconds, num_cached)

    def takes_image(self, models: Sequence[str]) -> bool:
        """Whether one of these models continues an image."""
        entries = self.registry.models()
        return any(entries[name].preset.takes_image for name in models if name in entries)

    def comparison(self, comparison_id: str) -> Comparison:
        valid = isinstance(comparison_id, str) and re.fullmatch("[0-9a-f]{16}", comparison_id)
        found = self.store.comparison(comparison_id) if valid else None
        if found is None:
            raise ValueError("This comparison does not exist here; check the link.")
        return found

    def recipe(self, comparison_id: str, label: str) -> Recipe:
        """The recipe of one cell. Viewers see the names of files, not where they lie."""
        for cell in self.comparison(comparison_id).cells:
            if cell.label == label:
                return without_folders(cell.recipe) if self.viewer else cell.recipe
        raise ValueError(f"label is {label!r} but this comparison has no such variant")

    def has_clip(self, key: str) -> bool:
        return self.store.clip_info(key) is not None and clip_path(self.data, key).exists()

    def title(self, recipe: Recipe) -> str:
        """A recipe in a few words."""
        model = self.registry.entry(recipe.model).preset.title
        adapters = "".join(
            f" + {lora_name(self.registry, Path(adapter.path))}" for adapter in recipe.adapters
        )
        alphas = {adapter.lora_alpha for adapter in recipe.adapters} - {None}
        adapters += "".join(f" (lora_alpha {alpha:g})" for alpha in alphas)
        return f"{model}{adapters}, {plural(recipe.sampler.num_inference_steps, 'step')}"

    def status(self, comparison_id: str) -> dict[str, Any]:
        """Everything the player shows, as plain JSON."""
        comparison = self.comparison(comparison_id)
        waiting = [job.id for job in self.store.jobs("queued")]
        first = self.store.clip_info(comparison.cells[0].recipe.key())
        cells = [
            self._cell_status(cell, waiting, first if cell.label != LABELS[0] else None)
            for cell in comparison.cells
        ]
        return {"id": comparison.id, "viewer": self.viewer, "cells": cells}

    def _cell_status(
        self, cell: Cell, waiting: list[int], first: ClipInfo | None
    ) -> dict[str, Any]:
        recipe, key = cell.recipe, cell.recipe.key()
        spec = recipe.sampler
        shown: dict[str, Any] = {
            "label": cell.label,
            "title": cell.title,
            "detail": f"{spec.name} · shift {spec.flow_shift:g} · {spec.guidance_text}"
            f" · seed {recipe.seed} · {recipe.width}x{recipe.height}, {recipe.num_frames} frames"
            + (f" · memory {recipe.memory}" if recipe.memory != "plain" else ""),
            "prompt": recipe.prompt,
            "width": recipe.width,
            "height": recipe.height,
            "fps": recipe.fps,
            "num_frames": recipe.num_frames,
        }
        if image := self.images.name(recipe.image):
            shown["image"] = f"{FILE_ROUTE}images/{image}.png"
        info = self.store.clip_info(key)
        if info is not None and clip_path(self.data, key).exists():
            name = f"{FILE_ROUTE}clips/{key}"
            metrics = metric_lines(info, first)
            shown |= {"state": "finished", "url": f"{name}.mp4"}
            return shown | {"metrics": metrics, "notes": info.notes}
        shown |= job_status(self.store.latest_job(key), waiting)
        if shown["state"] == "running" and (made := preview_name(self.data, key)):
            shown["preview"] = FILE_ROUTE + made
        return shown

    def history(self, limit: int = 12) -> list[dict[str, Any]]:
        """Recent comparisons, newest first."""
        return [
            {
                "id": comparison.id,
                "prompt": comparison.cells[0].recipe.prompt,
                "variants": " | ".join(cell.title for cell in comparison.cells),
                "when": time.strftime("%d %b %H:%M", time.localtime(comparison.created)),
            }
            for comparison in self.store.recent_comparisons(limit)
        ]


def without_folders(recipe: Recipe) -> Recipe:
    adapters = tuple(
        adapter.model_copy(update={"path": Path(adapter.path).name}) for adapter in recipe.adapters
    )
    image = recipe.image
    if image is not None:
        image = image.model_copy(update={"path": Path(image.path).name})
    return recipe.model_copy(update={"adapters": adapters, "image": image})


def job_status(job: Job | None, waiting: Sequence[int]) -> dict[str, Any]:
    """State of a clip that is not there (yet)."""
    if job is None or job.state == "finished":
        error = "The clip is gone from the disk; press Generate to make it again."
        return {"state": "missing", "error": error}
    shown: dict[str, Any] = {"state": job.state, "job": job.id, "error": job.error}
    if job.state == "queued":
        shown["ahead"] = waiting.index(job.id) if job.id in waiting else 0
    if job.state == "running":
        shown |= {"phase": job.phase, "step": job.step, "total": job.total}
        shown |= {"eta_sec": job.eta_sec, "cancelling": bool(job.cancel)}
    return shown
