"""Saving and resuming through torch's distributed checkpoint: step, trained weights, optimizers.

A checkpoint folder appears under its final name only when it is whole: it is written beside it and
renamed. What a kill leaves behind is a `.partial` folder that the next save removes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from trainers.distributed import World, barrier
from trainers.roles import BuiltRole, trained_state

PARTIAL = ".partial"


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(folder for folder in folders if folder.suffix != PARTIAL)


def save_checkpoint(
    run_dir: Path,
    step: int,
    roles: Mapping[str, BuiltRole],
    optimizers: Mapping[str, Optimizer],
    world: World,
) -> Path:
    """Writes checkpoints/step_NNNNNN and returns it."""
    final = run_dir / "checkpoints" / f"step_{step:06d}"
    partial = final.with_name(final.name + PARTIAL)
    if world.is_main:
        for leftover in final.parent.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
    barrier(world)
    state = _state(roles, optimizers)
    dcp.save(state, checkpoint_id=partial, no_dist=world.num_ranks == 1)
    if world.is_main:
        (partial / "step.json").write_text(json.dumps({"step": step}))
        if (
            final.exists()
        ):  # a save at a step that was saved before, by a run that was resumed from it
            shutil.rmtree(final)
        os.replace(partial, final)
    barrier(world)
    return final


def load_checkpoint(
    folder: Path,
    roles: Mapping[str, BuiltRole],
    optimizers: Mapping[str, Optimizer],
    world: World,
) -> int:
    """Restores weights and optimizers in place; returns the number of finished steps."""
    state = _state(roles, optimizers)
    dcp.load(state, checkpoint_id=folder, no_dist=world.num_ranks == 1)
    for name, optimizer in optimizers.items():
        set_optimizer_state_dict(
            roles[name].network, optimizer, optim_state_dict=state["optimizers"][name]
        )
    return int(json.loads((folder / "step.json").read_text())["step"])


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for folder in checkpoint_folders(run_dir)[:-keep]:
        shutil.rmtree(folder)


def _state(roles: Mapping[str, BuiltRole], optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """Views of the live tensors, so that loading writes into the networks."""
    return {
        "roles": {name: trained_state(role, roles) for name, role in roles.items()},
        "optimizers": {
            name: get_optimizer_state_dict(roles[name].network, optimizer)
            for name, optimizer in optimizers.items()
        },
    }


def full_weights(network: nn.Module) -> dict[str, Tensor]:
    """All weights by name, gathered on the CPU of the main rank (the others get an empty dict)."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(network, options=options))
    return {name: weight.clone() for name, weight in weights.items()}  # gathering pads the storage
