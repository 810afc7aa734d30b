"""`python -m pipelines lora ...`: what is in a LoRA file, and what can be made of it.

lora info FILE [--base BASE]
lora merge BASE DST --lora FILE[:STRENGTH] ... [--lora-alpha A]
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.catalog.entries import ModelEntry, adapter_sampler
from pipelines.catalog.registry import Registry
from pipelines.files.lora_outline import outline, summary
from pipelines.recipe import Adapter

VERIFY_PROMPT = "a large red circle moving right on a navy background"
VERIFY_STEPS = 4  # a difference in weights shows in every step

# What needs torch is imported where it is used: bad input is answered before.


def add_lora_commands(commands: Any, folders: argparse.ArgumentParser) -> None:
    """Adds `lora` and its commands to the subparsers of `python -m pipelines`."""
    lora = commands.add_parser("lora", help="look into, merge, make and convert LoRA files")
    kinds = lora.add_subparsers(required=True, metavar="COMMAND")

    info = kinds.add_parser("info", parents=[folders], help="what a LoRA file holds")
    info.set_defaults(run=_info)
    info.add_argument("file", type=Path)
    info.add_argument("--base", help="a model: count what of the file fits it")

    merge = kinds.add_parser("merge", parents=[folders], help="a model with LoRAs in its weights")
    merge.set_defaults(run=_merge)
    merge.add_argument("base", help="a name from `models`, or a folder")
    merge.add_argument("folder", type=Path, metavar="DST", help="the diffusers folder to write")
    merge.add_argument(
        "--lora", action="extend", nargs="+", required=True, metavar="FILE[:STRENGTH]"
    )
    merge.add_argument("--lora-alpha", type=float, help="replaces the alpha in the LoRA files")

    extract = kinds.add_parser(
        "extract", parents=[folders], help="a LoRA of what tells two models apart"
    )
    extract.set_defaults(run=_extract)
    extract.add_argument("tuned", help="a name from `models`, or a folder")
    extract.add_argument("base", help="the model it was tuned from")
    extract.add_argument("out", type=Path, help="the .safetensors to write, as LightX2V's")
    extract.add_argument("--rank", type=int, required=True)

    export = kinds.add_parser("export", help="a LoRA for other programs")
    export.set_defaults(run=_export)
    export.add_argument("file", type=Path)
    export.add_argument("out", type=Path, help="the .safetensors to write")
    export.add_argument("--to", choices=("diffusers", "comfyui", "lightx2v"), required=True)

    verify = kinds.add_parser("verify", parents=[folders], help="whether an export does the same")
    verify.set_defaults(run=_verify)
    verify.add_argument("file", type=Path)
    verify.add_argument("export", type=Path)
    verify.add_argument("--base", required=True, help="the model to make the two videos with")
    verify.add_argument("--device", help="cpu, cuda, cuda:1; default: the best there is")
    verify.add_argument(
        "--bound", type=float, default=1 / 255, help="largest difference of a pixel in [0, 1]"
    )


def parse_adapter(text: str, lora_alpha: float | None) -> Adapter:
    """PATH[:STRENGTH]; a colon belongs to the path where no number follows it."""
    path, _, strength = text.rpartition(":")
    if re.fullmatch(r"[-+]?\d*\.?\d+", strength):
        return Adapter(path=path, strength=float(strength), lora_alpha=lora_alpha)
    return Adapter(path=text, lora_alpha=lora_alpha)


def _info(options: argparse.Namespace) -> None:
    base = None if options.base is None else _base(options.models, options.base)
    from pipelines.lora.file import read_lora, read_shapes
    from pipelines.lora.merge import open_merged

    lora = read_lora(options.file)
    shapes = read_shapes(options.file)
    model = None if base is None else open_merged(base)[0].shapes
    try:
        print(summary(outline(shapes), model))
    except ValueError as error:
        raise ValueError(f"adapter {options.file} {error}") from error
    print(_alphas(list(lora.alphas.values())))
    sampler = adapter_sampler(options.file)
    if sampler is not None:
        print(f"sampler: {sampler.text}")


def _alphas(stored: Sequence[float]) -> str:
    if not stored:
        return "alpha: not stored, so it is the rank; another is given with --lora-alpha"
    return "alpha: " + ", ".join(f"{alpha:g}" for alpha in sorted(set(stored)))


def _merge(options: argparse.Namespace) -> None:
    base = _base(options.models, options.base)
    adapters = [parse_adapter(text, options.lora_alpha) for text in options.lora]
    from pipelines.lora.merge import merge_to_folder

    _print_notes(merge_to_folder(base, adapters, options.folder))
    print(f"{options.folder}: {base.preset.name} with {len(adapters)} LoRA(s) in its weights")


def _extract(options: argparse.Namespace) -> None:
    tuned, base = _base(options.models, options.tuned), _base(options.models, options.base)
    from pipelines.lora.export import write_lora
    from pipelines.lora.extract import extract_lora

    lora, kept = extract_lora(tuned, base, options.rank)
    write_lora(lora, options.out, "lightx2v")
    print(
        f"{options.out}: {len(lora.down)} layers of rank {options.rank}, {len(lora.deltas)} deltas "
        f"in full; keeps {kept:.2%} of the change (sum of squares)"
    )


def _export(options: argparse.Namespace) -> None:
    from pipelines.lora.export import export_lora

    export_lora(options.file, options.out, options.to)
    print(f"{options.out}: written for {options.to}")


def _verify(options: argparse.Namespace) -> int:
    base = _base(options.models, options.base)
    from pipelines.commands.verify_lora import largest_difference
    from pipelines.models.loading import pick_device

    recipe = Registry(options.models).recipe(
        options.base,
        VERIFY_PROMPT,
        adapters=[Adapter(path=str(options.file))],
        sampler={"num_inference_steps": VERIFY_STEPS},
    )
    difference, importer = largest_difference(
        base, recipe, options.export, pick_device(options.device)
    )
    same = difference <= options.bound
    print(
        f"largest difference of a pixel: {difference:.2g}, "
        f"{'within' if same else 'BEYOND'} the bound of {options.bound:.2g} "
        f"({options.export} read by {importer}, {recipe.sampler.num_inference_steps} steps)"
    )
    return 0 if same else 1


def _base(models: Sequence[Path], name: str) -> ModelEntry:
    """A model that is here, by name or folder."""
    entry = Registry(models).entry(name)
    if entry.folder is None or entry.missing:
        raise ValueError(f"base {name} cannot be used: {entry.missing}")
    return entry


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
