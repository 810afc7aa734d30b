"""Saving and resuming through torch's distributed checkpoint: step, trained weights, optimizers.

A checkpoint folder appears under its final name only when it is whole: it is written beside it and
renamed. What a kill leaves behind is a `.partial` folder that the next save removes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from pipelines.catalog.steps import step_name, step_of
from pipelines.files.disk import atomic_path
from trainers.networks.role import trained_state
from trainers.ranks.ranks import Ranks, barrier, whole
from trainers.run.run import Run

PARTIAL = ".partial"
BEST = "best.json"  # in the run directory: step and score of the best checkpoint


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("*")
    return sorted(folder for folder in folders if step_of(folder.name) is not None)


def save_checkpoint(run_dir: Path, step: int, run: Run) -> None:
    """Writes checkpoints/step_NNNNNN.

    ValueError where it cannot be written, as on a full disk; nothing is left of it then.
    """
    final, ranks = _folder(run_dir, step), run.ranks
    partial = final.with_name(final.name + PARTIAL)
    if ranks.is_main:
        for leftover in final.parent.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
    barrier(ranks)
    try:
        dcp.save(_state(run), checkpoint_id=partial, no_dist=ranks.num_ranks == 1)
    except CheckpointException as error:  # on every rank, if it is so on one
        free_gb = shutil.disk_usage(run_dir).free / 1e9
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)  # gives the log its space back
        raise ValueError(
            f"checkpoints: {final.name} could not be written with {free_gb:.3f} GB free on its "
            "disk; free some space and resume, earlier checkpoints are whole"
        ) from error
    if ranks.is_main:
        (partial / "step.json").write_text(json.dumps({"step": step}))
        if final.exists():  # saved before, by a run that was then resumed from an older one
            shutil.rmtree(final)
        os.replace(partial, final)
    barrier(ranks)


def load_checkpoint(folder: Path, run: Run) -> int:
    """Restores weights and optimizers in place; returns the number of finished steps."""
    state = _state(run)
    dcp.load(state, checkpoint_id=folder, no_dist=run.ranks.num_ranks == 1)
    for name, optimizer in run.optimizers.items():
        set_optimizer_state_dict(
            run.roles[name].network, optimizer, optim_state_dict=state["optimizers"][name]
        )
    return int(json.loads((folder / "step.json").read_text())["step"])


def write_best(run_dir: Path, best: tuple[int, float] | None) -> None:
    """Writes best.json, step and score of a checkpoint; None removes it."""
    path = run_dir / BEST
    if best is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({"step": best[0], "score": best[1]}))


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that best.json names, None where nothing has ranked them."""
    path = run_dir / BEST
    if not path.is_file():
        return None
    return _folder(run_dir, json.loads(path.read_text())["step"])


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """The whole checkpoint at a step; ValueError names the steps there are."""
    folder = _folder(run_dir, step)
    if not folder.is_dir():
        steps = ", ".join(str(step_of(folder.name)) for folder in checkpoint_folders(run_dir))
        raise ValueError(
            f"{run_dir} has no checkpoint at step {step}; it has {steps or 'none at all'}"
        )
    return folder


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best."""
    best = best_checkpoint(run_dir)
    for folder in checkpoint_folders(run_dir)[:-keep]:
        if folder != best:
            shutil.rmtree(folder)


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / step_name(step)


def _state(run: Run) -> dict[str, Any]:
    """Views of the live tensors, so that loading writes into the networks."""
    return {
        "roles": {name: trained_state(role, run.roles) for name, role in run.roles.items()},
        "optimizers": {
            name: get_optimizer_state_dict(run.roles[name].network, optimizer)
            for name, optimizer in run.optimizers.items()
        },
    }


def full_weights(parameters: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Parameters by name, whole, on the CPU of the main rank (the others get an empty dict)."""
    weights = {}
    for name, parameter in parameters.items():
        weight = whole(parameter.detach())  # every rank takes part
        if ranks.is_main:
            weights[name] = weight.cpu().clone()  # gathering pads the storage
    return weights
