"""The command line: make a clip, show the recipe inside one, list the models, convert one.

    python -m pipelines generate --model tiny-wan --prompt "..." --out clip.mp4
    python -m pipelines show clip.mp4
    python -m pipelines models --json
    python -m pipelines download wan2.1-t2v-1.3b --models DIR
    python -m pipelines convert Wan2.1-T2V-14B wan-diffusers --to diffusers
    python -m pipelines lora info FILE        (also merge, extract, export, verify)

Exit codes: 0 done, 1 `lora verify` found a difference, 2 bad input (one sentence on stderr),
130 cancelled with Ctrl-C.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from pipelines.catalog.entries import ModelEntry, image_problem
from pipelines.catalog.registry import Registry
from pipelines.commands.download import add_download_command
from pipelines.commands.import_lightx2v import add_lightx2v_command
from pipelines.commands.lora import add_lora_commands, parse_adapter
from pipelines.files.layouts import Layout
from pipelines.files.preview_decoder import check_preview_decoder
from pipelines.geometry import read_size
from pipelines.recipe import SETTINGS, SamplerSpec
from pipelines.strict import explain
from pipelines.video import read_recipe

if TYPE_CHECKING:
    from pipelines.generate import Clip


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        return run(options) or 0
    except (ValueError, OSError) as error:
        sentence = explain(error) if isinstance(error, ValidationError) else error
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncancelled; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    folders = argparse.ArgumentParser(add_help=False)
    folders.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR",
        help="a folder to look for models and LoRAs in (repeatable)",
    )  # fmt: skip

    _add_generate_command(commands, folders)

    show = commands.add_parser("show", help="print the recipe inside a clip")
    show.set_defaults(run=_show)
    show.add_argument("video", type=Path)

    models = commands.add_parser("models", parents=[folders], help="list the models")
    models.set_defaults(run=_models)
    models.add_argument("--json", action="store_true")

    convert = commands.add_parser("convert", parents=[folders], help="write a model another way")
    convert.set_defaults(run=_convert)
    convert.add_argument("source", help="a name from `models`, a folder, or a transformer's file")
    convert.add_argument("destination", type=Path, help="a new folder")
    convert.add_argument("--to", required=True, choices=get_args(Layout))
    add_lora_commands(commands, folders)
    add_lightx2v_command(commands, folders)
    add_download_command(commands, folders)
    return parser


def _add_generate_command(commands: Any, folders: argparse.ArgumentParser) -> None:
    make = commands.add_parser("generate", parents=[folders], help="make one clip")
    make.set_defaults(run=_generate)
    make.add_argument("--model", required=True, help="a name from `models`, or a folder")
    make.add_argument("--prompt", required=True)
    make.add_argument("--out", type=Path, required=True, help="the .mp4 to write")
    make.add_argument(
        "--image", type=Path, metavar="FILE", help="the first frame, for image-to-video models"
    )
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--device", help="cpu, cuda, cuda:1; default: the best there is")
    make.add_argument(
        "--memory", default="plain", help="plain, fit (to the device), or NAME=VALUE,..."
    )
    make.add_argument(
        "--preview-decoder", type=Path, metavar="FILE",
        help="a TAEHV file for Wan2.1 (taew2_1) that decodes in place of the VAE: rough, and fast",
    )  # fmt: skip
    own = make.add_argument_group("left out, these are the checkpoint's own")
    own.add_argument("--negative-prompt")
    for word, name in SETTINGS.items():
        field = SamplerSpec.model_fields[name]
        kind = field.annotation if field.annotation in (int, float) else str
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        own.add_argument(f"--{word}", type=kind, choices=choices, help=field.description)
    own.add_argument("--size", metavar="WIDTHxHEIGHT")
    own.add_argument("--frames", type=int, help="4n+1")
    own.add_argument("--fps", type=int)
    lora = make.add_argument_group("LoRA")
    lora.add_argument("--lora", action="append", default=[], metavar="PATH[:STRENGTH]")
    lora.add_argument("--lora-alpha", type=float, help="replaces the alpha in the LoRA files")


def _generate(options: argparse.Namespace) -> None:
    registry = Registry(options.models)
    if options.lora_alpha is not None and not options.lora:
        raise ValueError("lora_alpha is given without a LoRA; add --lora PATH or leave it out")
    width, height = read_size(options.size) if options.size is not None else (None, None)
    recipe = registry.recipe(
        options.model,
        options.prompt,
        image=options.image,
        adapters=[parse_adapter(text, options.lora_alpha) for text in options.lora],
        seed=options.seed,
        memory=options.memory,
        sampler={
            **{name: getattr(options, word) for word, name in SETTINGS.items()},
            "sigmas": _sigmas(options.sigmas),
        },
        width=width,
        height=height,
        num_frames=options.frames,
        fps=options.fps,
        negative_prompt=options.negative_prompt,
    )
    if problem := image_problem(registry.entry(recipe.model).preset, recipe):
        raise ValueError(problem)
    if options.preview_decoder is not None:
        check_preview_decoder(options.preview_decoder)
    # Importing these takes seconds; bad input is answered before.
    from pipelines.generate import Clip, generate
    from pipelines.model_cache import ModelCache
    from pipelines.models.loading import best_dtype, pick_device
    from pipelines.models.preview import load_preview_decoder

    device, preview = pick_device(options.device), None
    if options.preview_decoder is not None:
        preview = load_preview_decoder(options.preview_decoder, device, best_dtype(device))
    for event in generate(recipe, ModelCache(registry, device), options.out, preview):
        if isinstance(event, Clip):
            _report(event)
        else:
            eta = "" if event.eta_sec is None else f", ETA {event.eta_sec:.1f} s"
            print(f"{event.phase} {event.step}/{event.total}{eta}", file=sys.stderr, flush=True)


def _report(clip: "Clip") -> None:
    for note in clip.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{clip.path}: load {clip.load_sec:.2f} s, encode {clip.encode_sec:.2f} s, "
        f"denoise {clip.denoise_sec:.2f} s, decode {clip.decode_sec:.2f} s, "
        f"total {clip.total_sec:.2f} s, {clip.num_forwards} forwards"
    )


def _sigmas(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"sigmas is {text!r} but must be numbers like 1.0,0.75,0.5,0.25"
        ) from error


def _show(options: argparse.Namespace) -> None:
    print(
        json.dumps(read_recipe(options.video).model_dump(mode="json"), indent=2, ensure_ascii=False)
    )


def _models(options: argparse.Namespace) -> None:
    entries = Registry(options.models).models()
    if options.json:
        print(json.dumps([_described(entry) for entry in entries.values()], indent=2))
        return
    width = max(map(len, entries))
    for name, entry in entries.items():
        status = f"missing: {entry.missing}" if entry.missing else "available"
        print(f"{name:{width}}  {entry.preset.kind:9}  {entry.preset.sampler.text}  {status}")


def _convert(options: argparse.Namespace) -> None:
    entry = Registry(options.models).entry(options.source)
    from pipelines.formats.convert import convert  # imports torch, which takes seconds

    for note in convert(entry, options.destination, options.to):
        print(f"note: {note}", file=sys.stderr)
    print(f"{options.destination}: {options.to} layout of {entry.preset.name}")


def _described(entry: ModelEntry) -> dict[str, object]:
    return {
        "name": entry.preset.name,
        "title": entry.preset.title,
        "kind": entry.preset.kind,
        "base": entry.base,
        "available": entry.missing is None,
        "missing": entry.missing,
        "folder": None if entry.folder is None else str(entry.folder),
        "license": entry.preset.license,
        "takes_image": entry.preset.takes_image,
        "sampler": entry.preset.sampler.model_dump(mode="json"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
