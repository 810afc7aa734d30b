"""Measures models of the shapes world: students beside their teacher, prompts, the autoencoder.

    python -m trainers.evaluation students tiny-dmd4 tiny-cfg --out runs/evaluation.json
    python -m trainers.evaluation sizes tiny-dmd4 --sizes 64x64 96x96 --frames 17 33
    python -m trainers.evaluation guidance tiny-cfg --scales 1 2 3 4 5 6 7 8
    python -m trainers.evaluation images tiny-wan-i2v tiny-i2v-dmd4
    python -m trainers.evaluation lora-alpha tiny-draft --factors 0 0.5 1 1.5
    python -m trainers.evaluation prompts --model tiny-wan
    python -m trainers.evaluation autoencoder --model tiny-wan

All but the last two print a markdown table and write every figure to --out. What the columns mean
is said in `measure`, `features`, `adherence` and `first_frames`; seconds are those of a clip in a
batch of a seed's.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.catalog.overrides import Overrides
from pipelines.catalog.registry import Registry
from pipelines.catalog.students import SPEC_FILE, StudentSpec
from pipelines.geometry import read_size
from pipelines.lora.file import read_lora
from pipelines.model_cache import ModelCache
from pipelines.models.loading import load_components
from pipelines.recipe import Adapter, Recipe
from trainers.evaluation import tables
from trainers.evaluation.first_frames import continuation_rows
from trainers.evaluation.measure import evaluate_autoencoder, judge, summarise
from trainers.evaluation.plot import write_curves
from trainers.scoring.clip import ClipScorer

MIN_PASSING = 0.98  # below this the autoencoder loses what no transformer can mend
MIN_PSNR_DB = 30.0
FACTORS = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
TINY_CLIP = Path("assets/tiny-clip")


def main(arguments: list[str] | None = None) -> int:
    """The command line; exits 1 where the autoencoder misses its bounds, 2 on bad input."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options, ModelCache(Registry(), "cpu"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers.evaluation")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    captions = _captions([0, 1, 2, 3])
    sampling = argparse.ArgumentParser(add_help=False)
    sampling.add_argument("--steps", type=int)
    sampling.add_argument("--guidance", type=float)
    sampling.add_argument("--shift", type=float)

    students = commands.add_parser(
        "students", parents=[captions, sampling], help="students beside their teacher"
    )
    students.set_defaults(run=_students)
    students.add_argument("names", nargs="*", metavar="NAME")
    students.add_argument("--out", type=Path, default=Path("runs/evaluation.json"))

    sizes = commands.add_parser(
        "sizes", parents=[captions, sampling], help="the shift report: sizes it was not trained on"
    )
    sizes.set_defaults(run=_sizes)
    sizes.add_argument("name", metavar="NAME")
    sizes.add_argument("--sizes", nargs="+", default=["64x64", "96x96"], metavar="WxH")
    sizes.add_argument("--frames", type=int, nargs="+", default=[17, 33], help="4n+1 each")
    sizes.add_argument("--out", type=Path, default=Path("runs/sizes.json"))

    guidance = commands.add_parser("guidance", parents=[captions], help="over guidance scales")
    guidance.set_defaults(run=_guidance)
    guidance.add_argument("name", metavar="NAME")
    guidance.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    guidance.add_argument("--out", type=Path, default=Path("runs/guidance.json"))

    images = commands.add_parser(
        "images", parents=[captions, sampling], help="models that continue an image"
    )
    images.set_defaults(run=_images)
    images.add_argument("names", nargs="+", metavar="NAME")
    images.add_argument("--out", type=Path, default=Path("runs/images.json"))

    _add_lora_alpha(commands, [captions, sampling])
    prompts = commands.add_parser(
        "prompts", parents=[_captions([0]), sampling], help="how well prompts are obeyed"
    )
    prompts.set_defaults(run=_prompts)
    autoencoder = commands.add_parser("autoencoder", help="reconstruction quality")
    autoencoder.set_defaults(run=_autoencoder)
    for command in (prompts, autoencoder):
        command.add_argument("--model", default="tiny-wan")
    return parser


def _add_lora_alpha(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    alpha = commands.add_parser(
        "lora-alpha", parents=parents, help="a reward's LoRA, weaker and stronger"
    )
    alpha.set_defaults(run=_lora_alpha)
    alpha.add_argument("name", metavar="NAME", help="a student that stands on another student")
    alpha.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="of its own alpha")
    alpha.add_argument("--out", type=Path, default=Path("runs/lora-alpha.json"))
    alpha.add_argument("--plot", type=Path, help="an .svg file for the curves")


def _captions(seeds: list[int]) -> argparse.ArgumentParser:
    """The options that say which clips; `seeds` is their default."""
    captions = argparse.ArgumentParser(add_help=False)
    captions.add_argument("--prompts", default="shapes_test", help="a file of presets/prompts/")
    captions.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return captions


def _students(options: argparse.Namespace, models: ModelCache) -> int:
    teacher = _recipes(models, tables.TEACHER, options, tables.TEACHER_SAMPLING)
    students = {n: _recipes(models, n, options, _sampling(options)) for n in options.names}
    rows = tables.student_rows(models, teacher, students, _cache(options))
    return _finish(rows, tables.STUDENT_COLUMNS, options)


def _sizes(options: argparse.Namespace, models: ModelCache) -> int:
    rounds = []
    for text in options.sizes:
        width, height = read_size(text, "sizes")
        for num_frames in options.frames:
            size: Overrides = {"width": width, "height": height, "num_frames": num_frames}
            teacher = _recipes(models, tables.TEACHER, options, tables.TEACHER_SAMPLING | size)
            student = _recipes(models, options.name, options, _sampling(options) | size)
            rounds.append((teacher, student))
    rows = tables.size_rows(models, rounds, _cache(options))
    return _finish(rows, tables.SIZE_COLUMNS, options)


def _guidance(options: argparse.Namespace, models: ModelCache) -> int:
    sweep = [
        _recipes(models, options.name, options, {"sampler": {"guidance_scale": scale}})
        for scale in options.scales
    ]
    scorer = models.registry.recipe(tables.TEACHER, "")
    rows = tables.guidance_rows(models, scorer, sweep)
    return _finish(rows, tables.GUIDANCE_COLUMNS, options)


def _images(options: argparse.Namespace, models: ModelCache) -> int:
    sweep = [_recipes(models, name, options, _sampling(options)) for name in options.names]
    folder = options.out.parent / "first-frames"
    rows = continuation_rows(models, sweep, folder, tables.RENDERED_SEED)
    return _finish(rows, tables.IMAGE_COLUMNS, options)


def _lora_alpha(options: argparse.Namespace, models: ModelCache) -> int:
    entry = models.registry.entry(options.name)
    if entry.own_folder is None or not entry.adapters:
        raise ValueError(f"name: {options.name} is no student with a LoRA")
    spec = StudentSpec.model_validate_json((entry.own_folder / SPEC_FILE).read_text())
    lora = read_lora(entry.adapters[-1])
    (alpha,) = set(lora.alphas.values())
    sweep = {}
    for factor in sorted({0.0, *options.factors}):
        adapter = Adapter(path=str(entry.adapters[-1]), lora_alpha=factor * alpha)
        used = (adapter,) if factor else ()
        sweep[factor] = _recipes(models, spec.base, options, _sampling(options), used)
    scorer = ClipScorer.from_folder(TINY_CLIP, "pad", torch.device("cpu"))
    rows = tables.lora_alpha_rows(models, sweep, scorer, _cache(options))
    if options.plot is not None:
        write_curves(rows, "factor", tables.LORA_ALPHA_CURVES, options.plot)
    return _finish(rows, tables.LORA_ALPHA_COLUMNS, options)


def _prompts(options: argparse.Namespace, models: ModelCache) -> int:
    recipes = _recipes(models, options.model, options, _sampling(options))
    print(json.dumps(summarise(judge(recipes, models)), indent=2))
    return 0


def _autoencoder(options: argparse.Namespace, models: ModelCache) -> int:
    entry = models.registry.entry(options.model)
    if entry.folder is None:
        raise ValueError(f"model: {entry.missing}")
    own = entry.preset
    components = load_components(entry.folder, own.text_length, "cpu", geometry=own.geometry)
    figures = evaluate_autoencoder(components)
    print(json.dumps(figures, indent=2))
    return int(figures["passing"] < MIN_PASSING or figures["psnr_db"] < MIN_PSNR_DB)


def _recipes(
    models: ModelCache,
    model: str,
    options: argparse.Namespace,
    overrides: Overrides,
    adapters: Sequence[Adapter] = (),
) -> list[Recipe]:
    prompts = models.registry.prompts(options.prompts)
    given = prompts, options.seeds, overrides, adapters
    return tables.clip_recipes(models.registry, model, *given)


def _sampling(options: argparse.Namespace) -> Overrides:
    return {
        "sampler": {
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
            "flow_shift": options.shift,
        }
    }


def _cache(options: argparse.Namespace) -> Path:
    """Where the teacher's clips are kept: beside the results, for all commands."""
    folder: Path = options.out.parent / "evaluation"
    return folder


def _finish(rows: list[tables.Row], columns: tables.Columns, options: argparse.Namespace) -> int:
    tables.write_json(rows, options.out)
    print(tables.markdown(rows, columns))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
