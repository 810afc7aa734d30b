"""python -m trainers CONFIG.yaml [key=value ...] [--run-dir DIR], the same under torchrun.

With --dry-run, --estimate or --export STEP it trains nothing. `python -m trainers prepare` makes
data and `show-data` shows them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pipelines.catalog.registry import Registry
from trainers.prepare import command
from trainers.registry import build_config, read_tree
from trainers.settings.run import Parallel, TrainConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or describes one training.

    Returns the exit code: 0 done or stopped on request, 2 bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    registry = Registry()
    if words[:1] == ["prepare"]:
        return command.main(words[1:], registry)
    if words[:1] == ["show-data"]:
        from trainers.prepare import show  # imports torch

        return show.main(words[1:], registry)
    parser = argparse.ArgumentParser(prog="python -m trainers", description=__doc__)
    parser.add_argument("config", type=Path, help="a file in presets/train/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--run-dir", type=Path, help="default: runs/NAME")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="check and describe, train nothing")
    instead.add_argument(
        "--estimate", action="store_true", help="the figures of --dry-run as JSON, train nothing"
    )
    instead.add_argument(
        "--export",
        type=int,
        metavar="STEP",
        help="export the student of a checkpoint, train nothing; the model's name is RUN@STEP",
    )
    options = parser.parse_intermixed_args(words)
    try:
        tree = read_tree(options.config, options.overrides)
        run_dir = options.run_dir or Path("runs") / str(tree.get("name"))
        if tree.get("method") == "prepare" and options.export is None and not options.estimate:
            command.run(tree, registry, run_dir, None, options.dry_run)
            return 0
        config = build_config(tree)
        registry.entry(config.model)  # a misspelt name is said before the engine is imported
        if options.dry_run or options.estimate:
            return _describe(config, registry, as_json=options.estimate)
        return _run(config, registry, run_dir, options.export)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _describe(config: TrainConfig[Any], registry: Registry, as_json: bool) -> int:
    from trainers.estimate.estimate import estimate  # torch: only once the input is good

    told = estimate(config, registry)
    if as_json:
        print(json.dumps(asdict(told)))
    else:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        print(told.text())
    return 0


def _run(
    config: TrainConfig[Any], registry: Registry, run_dir: Path, exported_step: int | None
) -> int:
    # torch: only once the input is good
    from trainers.engine import Trainer
    from trainers.ranks.ranks import join_ranks, leave_ranks

    if exported_step is not None:  # one process; the devices may be busy with this very run
        config = config.model_copy(update={"parallel": Parallel(), "device": "cpu"})
    ranks = join_ranks(config.device, config.parallel)
    try:
        trainer = Trainer(config, registry, run_dir, ranks)
        if exported_step is None:
            trainer.train()
        else:
            print(trainer.folder.export_step(exported_step))
    finally:
        leave_ranks(ranks)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
