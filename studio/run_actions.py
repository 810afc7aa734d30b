"""What the Runs tab asks for by itself, and what its buttons do. Browsers may send anything."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.registry import ROOT
from studio import run_html, run_view
from studio.runfiles import CONFIG, LOG
from studio.runs import Run, read_tree
from studio.schema_values import whole_tree
from studio.studio import Studio
from studio.training import Training
from studio.variants import own_variant

EXPORTING = threading.Lock()  # each export holds a whole model in memory
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
        return run_html.run_list(self.supervisor.runs())

    def shown(self, draw: Callable[[Run], str]) -> Callable[[str], str]:
        """A part of the run page, empty while no run is open."""
        return lambda name: draw(self.supervisor.run(name)) if name else ""

    def read_log(self, name: str, offset: int) -> dict[str, Any]:
        folder = self.supervisor.run(name).folder
        return run_view.read_log(folder, offset) | {"link": run_html.file_link(folder / LOG)}

    def find_in_log(self, name: str, text: str) -> list[str]:
        return run_view.find_in_log(self.supervisor.run(name).folder, text)

    def config_text(self, name: str) -> str:
        return (self.supervisor.run(name).folder / CONFIG).read_text(errors="replace")

    def comparable(self, name: str) -> tuple[list[str], list[str]]:
        """What a run's settings can be held against: presets of its method, and other runs."""
        presets = self.training.presets(self.supervisor.run(name).method)
        return presets, [run.name for run in self.supervisor.runs() if run.name != name]

    def differences(self, name: str, preset: str | None, run: str | None) -> str:
        """As HTML; the preset with its defaults filled in."""
        method = self.supervisor.run(name).method
        here = read_tree(self.supervisor.run(name).folder)
        if run is not None:
            there = read_tree(self.supervisor.run(run).folder)
        else:
            schema = self.training.methods.schemas()[method]
            there = whole_tree(schema, schema, self.training.preset(method, preset or ""))
            there["name"] = here.get("name")  # every run has its own
        return run_html.differences(run_view.difference(here, there), run or f"preset {preset}")

    # Doing

    def act(self, name: str, action: str) -> dict[str, Any]:
        """What a button does; the answer says what live.js is to do next."""
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
        }
        verb, _, step = str(action).partition("@")  # compare@300 is of the checkpoint at step 300
        if verb not in actions or (step and verb != "compare"):
            raise ValueError(f"action: there is no action {str(action)[:40]!r}; reload the page")
        return actions[verb]() or {"note": NOTES.get(verb, "")}

    def resume(self, name: str) -> None:
        """On the devices that it had; a run from a shell gets the first device of this machine."""
        had = self.supervisor.run(name).devices
        self.supervisor.resume(name, None if had else self.training.devices()[:1])

    def delete(self, name: str) -> dict[str, Any]:
        self.supervisor.delete(name)
        return {"gone": True, "note": f"{name} is in the trash, in .trash of the runs folder."}

    def compare(self, name: str, step: str) -> str:
        """A comparison of a run's model and its student; returns its id.

        The student is the one the run exported, or that of the checkpoint at a step.
        """
        run = self.supervisor.run(name)
        export = export_checkpoint(run, step) if step else run.folder / "export"
        if not export.is_dir():
            raise ValueError(f"run: {name} has no export yet; a run exports when it is finished")
        registry = self.training.registry
        student = registry.entry(str(export))
        models = [student.base or run.model, student.preset.name]
        validation = read_tree(run.folder).get("validation") or {}
        first_list = registry.prompt_lists()[0]
        prompt = (validation.get("prompts") or registry.prompts(first_list))[0]
        return self.studio.submit([own_variant(registry, model) for model in models], prompt)


def export_checkpoint(run: Run, step: str) -> Path:
    """The student of the checkpoint at a step, exported by a process of its own if it is not yet.

    ValueError where there is no such checkpoint, or in the words of that process.
    """
    saved = [each for each in run_view.checkpoints(run.folder) if str(each.step) == step]
    if not saved:
        raise ValueError(
            f"run: {run.name} has no checkpoint at step {step[:20]!r}; reload the page"
        )
    folder = run.folder / "exports" / f"step_{saved[0].step:06d}"
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
