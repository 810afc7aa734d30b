"""python -m trainers prepare SOURCE OUT --model NAME [--size WxH ...] [--frames N] [--fps N].

Encodes videos with captions, or prompts alone, into a folder that `data.folder` of a run names. The
same under torchrun: each rank takes every n-th shard. Whatever ends it, Ctrl-C, kill -9 or
`touch OUT/control/stop`, the same command goes on at the first shard that is missing. What could
not be prepared, and why, is in OUT/problems.jsonl; OUT/previews shows some of what was stored.

OUT/config.yaml with `method: prepare` asks for the same, as the configuration of a run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.catalog.registry import Registry
from trainers.settings.prepare import PrepareSettings
from trainers.sources.inspect import probe, read_config
from trainers.sources.listing import Item, kind_of


def main(arguments: Sequence[str], registry: Registry) -> int:
    """The command line. Returns 0 when done or stopped on request, 2 for bad input."""
    options = _parser().parse_args(arguments)
    names = PrepareSettings.model_fields
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"name": options.out.resolve().name, "source": options.source.resolve()}
    try:
        run(given, registry, options.out, options.device, options.dry_run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(
    tree: Mapping[str, Any], registry: Registry, out: Path, device: str | None, dry_run: bool
) -> None:
    """Prepares what a tree of `PrepareConfig` says into a folder, or only lists it.

    ValueError in one sentence for what cannot be.
    """
    config, items = read_config(tree, registry)
    if dry_run:
        _list(items, config)
        return
    # torch: only once the input is good
    from trainers.prepare.encode import Encoder, local_device
    from trainers.prepare.job import Preparation

    encoder = Encoder(config, registry.entry(config.model), local_device(device))
    Preparation(config, items, encoder, out).run()


def _list(items: Sequence[Item], settings: PrepareSettings) -> None:
    """A line for each item, then a sum."""
    num_problems = 0
    for item in items:
        seen = probe(item, settings.clips) if kind_of([item]) == "videos" else None
        name = item.file or item.caption
        if seen is None:
            print(name)
        elif seen.problem:
            num_problems += 1
            print(f"{name}: {seen.problem}")
        else:
            assert seen.size is not None
            print(
                f"{name}: {seen.width}x{seen.height}, {seen.fps:.4g} fps, {seen.duration_sec:.1f} s"
                f" -> {seen.size[0]}x{seen.size[1]}, {seen.kept:.0%} of the picture"
            )
    print(f"{len(items) - num_problems} of {len(items)} can be prepared, as far as headers tell")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers prepare")
    parser.add_argument(
        "source",
        type=Path,
        help="a folder of videos with .txt captions beside them, a .csv, .jsonl or .json list, a "
        "folder of FastVideo's .parquet files, or a .txt list of prompts",
    )
    parser.add_argument("out", type=Path, help="the folder to make, or to go on with")
    parser.add_argument("--model", required=True, help="a model's name or folder; it encodes")
    own = "default: the model's own"
    parser.add_argument(
        "--size",
        action="append",
        metavar="WxH",
        help=f"may be repeated: each video gets the nearest in shape; {own}",
    )
    parser.add_argument("--frames", type=int, metavar="N", help=f"of a clip, 4n+1; {own}")
    parser.add_argument("--fps", type=int, metavar="N", help=f"of a clip; {own}")
    parser.add_argument("--clips-per-video", type=int, metavar="N", help="at most; default: 1")
    parser.add_argument("--device", help="cpu or cuda; default: a GPU for each rank, if there is")
    parser.add_argument("--dry-run", action="store_true", help="list the items, prepare nothing")
    return parser
