"""What test_scale.py runs under torchrun: one layout of the same two ranks after another."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import WanTransformer3DModel
from torch.distributed.tensor import DTensor

from pipelines.catalog.registry import Registry
from trainers.engine import Trainer
from trainers.ranks.context import share_context
from trainers.ranks.ranks import Ranks, join_ranks, leave_ranks
from trainers.registry import build_config
from trainers.run.checkpoint import full_weights
from trainers.settings.run import TrainConfig

LAYOUTS: dict[str, dict[str, Any]] = {
    "sharded": {},
    "replicated": {"parallel": {"replicate": 2}},
    "context": {"parallel": {"context": 2}},
    "bf16": {"precision": "bf16", "activation_checkpointing": True},
    "context bf16": {
        "parallel": {"context": 2},
        "precision": "bf16",
        "activation_checkpointing": True,
    },
}


def save_roles(run: Trainer, ranks: Ranks, folder: Path) -> None:
    """Whole weights of all trained and averaged roles, and whether they lie in pieces."""
    kept = {name: role for name, role in run.roles.items() if name != "teacher"}
    weights = {name: full_weights(role.own_parameters, ranks) for name, role in kept.items()}
    pieces = {
        name: all(isinstance(p, DTensor) for p in role.own_parameters.values())
        for name, role in kept.items()
    }
    if ranks.is_main:
        torch.save(weights, folder / "roles.pt")
        (folder / "pieces.json").write_text(json.dumps(pieces))


def run_interrupted(config: TrainConfig[Any], folder: Path, ranks: Ranks) -> Trainer:
    """One step, a checkpoint, and the rest in a new trainer."""
    first = Trainer(config, Registry(), folder, ranks)
    first.folder.begin()
    first.train_step()
    first.step += 1
    first._save()
    second = Trainer(config, Registry(), folder, ranks)
    second.train()
    return second


def refusals(ranks: Ranks) -> dict[str, str]:
    """What is said where heads or tokens cannot be shared."""

    def micro(num_heads: int) -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=num_heads,
            attention_head_dim=12,
            text_dim=4,
            freq_dim=4,
            ffn_dim=4,
            num_layers=1,
        )

    def odd_tokens() -> None:
        transformer = micro(2)
        share_context(transformer, ranks)
        latents, text = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 4, 4)
        transformer(hidden_states=latents, timestep=torch.zeros(1), encoder_hidden_states=text)

    return {
        "heads": message(lambda: share_context(micro(3), ranks)),
        "tokens": message(odd_tokens),
    }


def message(action: Callable[[], None]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    tree, out = yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for name, settings in LAYOUTS.items():
        config = build_config(tree | settings)
        ranks = join_ranks("cpu", config.parallel)
        run = Trainer(config, Registry(), out / name, ranks)
        run.train()
        save_roles(run, ranks, out / name)
        if name == "sharded":
            resumed = run_interrupted(config, out / "resumed", ranks)
            save_roles(resumed, ranks, out / "resumed")
        if name == "context":
            said = refusals(ranks)
            (out / f"refusals{ranks.rank}.json").write_text(json.dumps(said))
    leave_ranks(ranks)


if __name__ == "__main__":
    main()
