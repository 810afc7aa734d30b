"""Measures a model of the shapes world: how prompts are obeyed, how the autoencoder keeps clips.

    python -m trainers.worlds.evaluate prompts --model tiny-wan
    python -m trainers.worlds.evaluate autoencoder --model tiny-wan

Prompt accuracy is the share of clips in which all five slots hold, slot accuracy the share of
slots.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.denoiser import Denoiser
from pipelines.generate import sample_video
from pipelines.loading import Components, load_components
from pipelines.recipe import Recipe
from pipelines.registry import Registry
from trainers.worlds.shapes import SLOTS, Caption, all_captions, render
from trainers.worlds.shapes_checker import observe

MIN_PASSING = 0.98  # below this the autoencoder loses what no transformer can mend
MIN_PSNR_DB = 30.0


@dataclass(frozen=True)
class Verdict:
    """One generated clip: what was asked, and which slots hold."""

    caption: Caption
    matches: dict[str, bool]


def judge(recipes: Sequence[Recipe], components: Components) -> list[Verdict]:
    """Generates every recipe and reads the slots out of the frames."""
    verdicts = []
    for recipe in recipes:
        video = sample_video(recipe, components, Denoiser(components.transformer))
        caption = Caption.parse(recipe.prompt)
        observation = observe(video[0].permute(0, 2, 3, 1).cpu().numpy())
        verdicts.append(Verdict(caption, observation.matches(caption)))
    return verdicts


def summarise(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Prompt and slot accuracy, over all clips and over seen and held-out triples apart."""

    def accuracy(chosen: Sequence[Verdict]) -> float:
        return float(np.mean([all(v.matches.values()) for v in chosen])) if chosen else float("nan")

    summary = {
        "num_clips": len(verdicts),
        "prompt_accuracy": accuracy(verdicts),
        "prompt_accuracy_seen": accuracy([v for v in verdicts if not v.caption.held_out]),
        "prompt_accuracy_held_out": accuracy([v for v in verdicts if v.caption.held_out]),
    }
    for slot in SLOTS:
        summary[f"slot_accuracy_{slot}"] = float(np.mean([v.matches[slot] for v in verdicts]))
    return {name: round(figure, 4) for name, figure in summary.items()}


def evaluate_autoencoder(components: Components, num_clips: int = 200) -> dict[str, float]:
    """PSNR in dB and the share of reconstructed clips that pass the checker."""
    captions = all_captions()
    psnr, passing = [], []
    for seed in range(num_clips):
        caption = captions[seed * 13 % len(captions)]
        clip = render(caption, 10_000_000 + seed)  # training draws its seeds below 2^31 at random
        video = torch.from_numpy(clip).permute(0, 3, 1, 2)[None]
        decoded = components.decode(components.encode(video))[0].permute(0, 2, 3, 1).numpy()
        psnr.append(-10 * np.log10(np.mean((decoded - clip) ** 2)))
        passing.append(all(observe(decoded).matches(caption).values()))
    return {
        "num_clips": num_clips,
        "psnr_db": round(float(np.mean(psnr)), 2),
        "passing": round(float(np.mean(passing)), 4),
    }


def main() -> int:
    """The command line; exits 1 where the autoencoder misses its bounds, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m trainers.worlds.evaluate")
    commands = parser.add_subparsers(dest="command", required=True)
    prompts = commands.add_parser("prompts", help="how well prompts are obeyed")
    prompts.add_argument("--prompts", default="shapes_test", help="a file of presets/prompts/")
    prompts.add_argument("--seeds", type=int, nargs="+", default=[0])
    prompts.add_argument("--steps", type=int)
    prompts.add_argument("--guidance", type=float)
    prompts.add_argument("--shift", type=float)
    for command in (prompts, commands.add_parser("autoencoder", help="reconstruction quality")):
        command.add_argument("--model", default="tiny-wan")
    options = parser.parse_args()
    registry = Registry()
    try:
        entry = registry.entry(options.model)
        if entry.folder is None:
            raise ValueError(f"model: {entry.missing}")
        components = load_components(entry.folder, entry.preset.text_length, "cpu")
        if options.command == "autoencoder":
            figures = evaluate_autoencoder(components)
        else:
            figures = summarise(judge(_recipes(registry, options), components))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=2))
    too_poor = figures.get("passing", 1) < MIN_PASSING or figures.get("psnr_db", 99) < MIN_PSNR_DB
    return int(too_poor)


def _recipes(registry: Registry, options: argparse.Namespace) -> list[Recipe]:
    return [
        registry.recipe(
            options.model,
            prompt,
            seed=seed,
            steps=options.steps,
            guidance_scale=options.guidance,
            flow_shift=options.shift,
        )
        for seed in options.seeds
        for prompt in registry.prompts(options.prompts)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
