"""The actions of the Runs tab: what it looks up, and what its buttons do.

Browsers may send anything.
"""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.catalog.registry import KEPT, ROOT, Registry
from pipelines.catalog.steps import step_name
from pipelines.recipe import Recipe
from pipelines.video import read_recipe
from studio.compare.variants import LABELS, own_variant
from studio.page.handlers import require_action
from studio.page.words import file_link, video_link
from studio.run_page import html, view
from studio.runs.files import CONFIG, LOG
from studio.runs.listing import Run, is_name, read_tree
from studio.studio import Studio
from studio.train.training import Training

EXPORTING = threading.Lock()  # each export holds a whole model in memory
CURVES = ROOT / "assets" / "curves"  # of the runs whose students ship, by preset
SHIPPED = "shipped "  # before a preset's name, where runs are listed too
NOTES = {
    "save": "It saves after this step.",
    "sample": "It draws after this step.",
    "stop": "It ends after this step, with a checkpoint.",
    "resume": "It is in the queue and goes on from its newest checkpoint.",
}


class RunActions:
    """Every method that takes a name refuses one that is no run, with a ValueError."""

    def __init__(self, studio: Studio, training: Training):
        self.studio, self.training = studio, training
        self.supervisor = training.supervisor

    # Looking

    def show_list(self, name: str) -> str:
        return html.run_list(self.supervisor.runs())

    def shown(self, draw: Callable[[Run], str]) -> Callable[[str], str]:
        """A part of the run page, empty while no run is open."""
        return lambda name: draw(self.supervisor.run(name)) if name else ""

    def read_log(self, name: str, offset: int) -> dict[str, Any]:
        folder = self.supervisor.run(name).folder
        return view.read_log(folder, offset) | {"link": file_link(folder / LOG)}

    def find_in_log(self, name: str, text: str) -> list[str]:
        return view.find_in_log(self.supervisor.run(name).folder, text)

    def config_text(self, name: str) -> str:
        return (self.supervisor.run(name).folder / CONFIG).read_text(errors="replace")

    def comparable(self, name: str) -> tuple[list[str], list[str]]:
        """What a run's settings can be held against: presets of its method, and other runs."""
        presets = self.training.presets(self.supervisor.run(name).method)
        return presets, [run.name for run in self.supervisor.runs() if run.name != name]

    def differences(self, name: str, preset: str | None, run: str | None) -> str:
        """As HTML; the preset with its defaults filled in."""
        here = read_tree(self.supervisor.run(name).folder)
        if run is not None:
            there = read_tree(self.supervisor.run(run).folder)
        else:
            there = self.whole_preset(name, preset or "")
        return html.differences(view.difference(here, there), run or f"preset {preset}")

    def whole_preset(self, name: str, preset: str) -> dict[str, Any]:
        """A preset of a run's method, with all defaults and the run's own name."""
        method = self.supervisor.run(name).method
        tree = self.training.preset(method, preset)
        tree = self.training.methods.check(tree).tree or tree
        return tree | {"name": read_tree(self.supervisor.run(name).folder).get("name")}

    def nearest_preset(self, name: str, known: Sequence[str]) -> str | None:
        """The one of these presets that a run's settings differ from least."""
        here = read_tree(self.supervisor.run(name).folder)

        def distance(preset: str) -> int:
            return len(view.difference(here, self.whole_preset(name, preset)))

        return min(known, key=distance, default=None)

    def shipped_curves(self, name: str) -> list[str]:
        """Presets of a run's method whose own run is known; the nearest one first."""
        presets = self.training.presets(self.supervisor.run(name).method)
        known = [preset for preset in presets if (CURVES / preset).is_dir()]
        nearest = self.nearest_preset(name, known)
        return sorted(known, key=lambda preset: preset != nearest)

    def curve(self, name: str, figure: str, smoothing: float) -> view.Curve:
        """Of a run, or of the shipped run of a preset."""
        preset = name.removeprefix(SHIPPED)
        if name.startswith(SHIPPED) and preset in {each.name for each in CURVES.iterdir()}:
            return view.curve(CURVES / preset, figure, smoothing)
        return view.curve(self.supervisor.run(name).folder, figure, smoothing)

    def pair(self, name: str, samples: Sequence[str]) -> dict[str, Any]:
        """Two samples of a run for the player. ValueError where one is not there."""
        run = self.supervisor.run(name)
        cells: list[dict[str, Any]] = []
        for label, wanted in zip(LABELS, list(samples)[:2], strict=False):
            title, path = find_sample(run, wanted)
            cells.append(sample_cell(label, title, path, read_recipe(path)))
        if len({cell["prompt"] for cell in cells}) > 1:
            cells = [cell | {"title": f"{cell['title']}: {cell['prompt']}"} for cell in cells]
        made = " ".join(cell["url"] for cell in cells)
        return {"id": made, "viewer": False, "samples": True, "cells": cells}

    # Doing

    def act(self, name: str, action: str, text: str = "") -> dict[str, Any]:
        """What a button does; the answer says what live.js is to do next.

        `text` is what the user wrote beside the button.
        """
        self.studio.require_maker()
        does = self.supervisor
        actions: dict[str, Callable[[], dict[str, Any] | None]] = {
            "save": lambda: does.save_now(name),
            "sample": lambda: does.sample_now(name),
            "stop": lambda: does.stop(name),
            "force_stop": lambda: does.force_stop(name),
            "resume": lambda: self.resume(name),
            "up": lambda: does.move(name, -1),
            "down": lambda: does.move(name, 1),
            "unqueue": lambda: does.unqueue(name),
            "delete": lambda: self.delete(name),
            "compare": lambda: {"link": f"?v={self.compare(name, step)}"},
            "keep": lambda: self.keep(name, step, text),
        }
        verb, _, step = str(action).partition("@")  # compare@300 is of the checkpoint at step 300
        require_action(action if step and verb not in ("compare", "keep") else verb, actions)
        return actions[verb]() or {"note": NOTES.get(verb, "")}

    def resume(self, name: str) -> None:
        """Where it was; a run from a shell gets the first device of this machine."""
        run = self.supervisor.run(name)
        known = run.devices or run.slurm
        self.supervisor.resume(name, None if known else self.training.devices()[:1])

    def delete(self, name: str) -> dict[str, Any]:
        self.supervisor.delete(name)
        return {"gone": True, "note": f"{name} is in the trash, in .trash of the runs folder."}

    def compare(self, name: str, step: str) -> str:
        """A comparison of a run's model and its student; returns its id.

        The student is the one the run exported, or that of the checkpoint at a step.
        """
        run = self.supervisor.run(name)
        export = exported(run, step)
        registry = self.training.registry
        student = registry.entry(str(export))
        models = [student.base or run.model, student.preset.name]
        variants = [own_variant(registry, model) for model in models]
        validation = read_tree(run.folder).get("validation") or {}
        if not self.studio.takes_image(models):
            first_list = registry.prompt_lists()[0]
            prompt = (validation.get("prompts") or registry.prompts(first_list))[0]
            return self.studio.submit(variants, prompt)
        if validation.get("images"):
            image = self.studio.add_image(str(ROOT / validation["images"][0]))
            return self.studio.submit(variants, validation["prompts"][0], image)
        example = self.studio.images.examples()[0]
        return self.studio.submit(variants, example.prompt, example.name)

    def keep(self, name: str, step: str, model: str) -> dict[str, Any]:
        """Makes a model of a run's student, or of that of the checkpoint at a step."""
        run = self.supervisor.run(name)
        require_free(self.training.registry, model)
        keep(self.training.registry, exported(run, step), run.folder / CONFIG, model)
        return {"note": f"{model} is a model now: a choice in Compare, also without this run."}


def find_sample(run: Run, wanted: str) -> tuple[str, Path]:
    """A row's title and the file, by FOLDER/NAME. ValueError where there is none."""
    for row in view.samples(run.folder):
        for path in row.videos.values():
            if f"{path.parent.name}/{path.stem}" == wanted:
                return row.title, path
    raise ValueError(f"sample: {run.name} has no sample {str(wanted)[:60]!r}; reload the page")


def sample_cell(label: str, title: str, path: Path, recipe: Recipe) -> dict[str, Any]:
    """A sample as the player takes it."""
    shape = ("prompt", "width", "height", "fps", "num_frames")
    return {name: getattr(recipe, name) for name in shape} | {
        "label": label,
        "title": title,
        "detail": f"seed {recipe.seed}, {recipe.num_forwards} forwards",
        "state": "finished",
        "url": video_link(path),
        "metrics": [],
        "notes": "",
    }


def exported(run: Run, step: str) -> Path:
    """The folder of a run's student, or of that of a checkpoint. ValueError where none is there."""
    export = export_checkpoint(run, step) if step else run.folder / "export"
    if not export.is_dir():
        raise ValueError(f"run: {run.name} has no export yet; a run exports when it is finished")
    return export


def export_checkpoint(run: Run, step: str) -> Path:
    """The student of the checkpoint at a step, exported by a process of its own if it is not yet.

    ValueError where there is no such checkpoint, or in the words of that process.
    """
    saved = [each for each in view.checkpoints(run.folder) if str(each.step) == step]
    if not saved:
        raise ValueError(
            f"run: {run.name} has no checkpoint at step {step[:20]!r}; reload the page"
        )
    folder = run.folder / "exports" / step_name(saved[0].step)
    if folder.is_dir() and folder.stat().st_mtime >= saved[0].saved:
        return folder
    config, run_dir = str(run.folder / CONFIG), str(run.folder)
    command = [sys.executable, "-m", "trainers", config, "--run-dir", run_dir, "--export", step]
    with EXPORTING:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"it ended with code {done.returncode}"]
        raise ValueError(f"run: {run.name} cannot be exported ({lines[-1]})")
    return folder


def require_free(registry: Registry, name: str) -> None:
    """ValueError where a model cannot have this name."""
    if not is_name(name):
        raise ValueError("model: use up to 64 letters, digits and . _ -, a letter or digit first")
    if name in registry.models():
        raise ValueError(f"model: there is a model {name} already; choose another name")


def keep(registry: Registry, export: Path, config: Path, name: str) -> Path:
    """Copies an export, and the settings it was trained with; returns the model's folder."""
    folder = registry.runs_dir / KEPT / name
    partial = registry.runs_dir / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(export, partial)
    shutil.copy(config, partial / "training.yaml")
    folder.parent.mkdir(exist_ok=True)
    return partial.rename(folder)
