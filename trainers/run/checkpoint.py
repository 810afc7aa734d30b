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
from torch.optim import Optimizer

from pipelines.catalog.steps import step_name, step_of
from trainers.networks.role import BuiltRole, trained_state
from trainers.ranks.ranks import Ranks, barrier, whole

PARTIAL = ".partial"
BEST = "best.json"  # in the run directory: step and score of the best checkpoint


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("*")
    return sorted(folder for folder in folders if step_of(folder.name) is not None)


def save_checkpoint(
    run_dir: Path,
    step: int,
    roles: Mapping[str, BuiltRole],
    optimizers: Mapping[str, Optimizer],
    ranks: Ranks,
) -> Path:
    """Writes checkpoints/step_NNNNNN and returns it.

    ValueError where it cannot be written, as on a full disk; nothing is left of it then.
    """
    final = _folder(run_dir, step)
    partial = final.with_name(final.name + PARTIAL)
    if ranks.is_main:
        for leftover in final.parent.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
    barrier(ranks)
    state = _state(roles, optimizers)
    try:
        dcp.save(state, checkpoint_id=partial, no_dist=ranks.num_ranks == 1)
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
        if (
            final.exists()
        ):  # a save at a step that was saved before, by a run that was resumed from it
            shutil.rmtree(final)
        os.replace(partial, final)
    barrier(ranks)
    return final


def load_checkpoint(
    folder: Path,
    roles: Mapping[str, BuiltRole],
    optimizers: Mapping[str, Optimizer],
    ranks: Ranks,
) -> int:
    """Restores weights and optimizers in place; returns the number of finished steps."""
    state = _state(roles, optimizers)
    dcp.load(state, checkpoint_id=folder, no_dist=ranks.num_ranks == 1)
    for name, optimizer in optimizers.items():
        set_optimizer_state_dict(
            roles[name].network, optimizer, optim_state_dict=state["optimizers"][name]
        )
    return int(json.loads((folder / "step.json").read_text())["step"])


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


def _state(roles: Mapping[str, BuiltRole], optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """Views of the live tensors, so that loading writes into the networks."""
    return {
        "roles": {name: trained_state(role, roles) for name, role in roles.items()},
        "optimizers": {
            name: get_optimizer_state_dict(roles[name].network, optimizer)
            for name, optimizer in optimizers.items()
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
