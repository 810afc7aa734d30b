"""Exports that became models: copies with names of their own, kept when the run is deleted."""

import shutil
from pathlib import Path

from pipelines.catalog.registry import KEPT, Registry
from studio.runs.listing import is_name


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
