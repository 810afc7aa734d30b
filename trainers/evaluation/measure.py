"""What a model of the shapes world is worth: obedience, distance to rendered clips, diversity.

Prompt accuracy is the share of clips in which all five slots hold, slot accuracy the share of
slots.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.model_cache import ModelCache
from pipelines.models.loading import Components
from pipelines.recipe import Recipe
from trainers.evaluation.clips import Clips, sample_clips
from trainers.evaluation.features import clip_features, frechet_distance
from trainers.worlds.checker import Observation, observe
from trainers.worlds.shapes import DIRECTIONS, SIZES, SLOTS, Caption, all_captions, render

# Training renders with seeds below 2^31: none of its clips is a reference.
REFERENCE_SEED = 2**32
NUM_REFERENCES = 8  # rendered clips a caption
UNSTATED = ("position", "path_length", "radius")


@dataclass(frozen=True)
class Verdict:
    """One generated clip: what was asked, and which slots hold."""

    caption: Caption
    matches: dict[str, bool]


def judge(recipes: Sequence[Recipe], models: ModelCache) -> list[Verdict]:
    """Generates every recipe and reads the slots out of the frames."""
    clips = sample_clips(recipes, models)
    return verdicts(clips.captions, observations(clips.videos))


def observations(videos: NDArray[np.uint8]) -> list[Observation]:
    """What the checker sees in every clip. videos uint8 [N, F, H, W, 3]."""
    return [observe(video / 255) for video in videos]


def verdicts(captions: Sequence[Caption], seen: Sequence[Observation]) -> list[Verdict]:
    """Each clip held against its caption."""
    return [Verdict(c, o.matches(c)) for c, o in zip(captions, seen, strict=True)]


def summarise(judged: Sequence[Verdict]) -> dict[str, float]:
    """Prompt and slot accuracy, over all clips and over seen and held-out triples apart."""

    def accuracy(chosen: Sequence[Verdict]) -> float:
        return float(np.mean([all(v.matches.values()) for v in chosen])) if chosen else float("nan")

    slots = {slot: float(np.mean([v.matches[slot] for v in judged])) for slot in SLOTS}
    summary = {
        "num_clips": len(judged),
        "prompt_accuracy": accuracy(judged),
        "prompt_accuracy_seen": accuracy([v for v in judged if not v.caption.held_out]),
        "prompt_accuracy_held_out": accuracy([v for v in judged if v.caption.held_out]),
        "slot_accuracy": float(np.mean(list(slots.values()))),
        **{f"slot_accuracy_{slot}": share for slot, share in slots.items()},
    }
    return {name: round(figure, 4) for name, figure in summary.items()}


def measure(clips: Clips, teacher: Clips) -> dict[str, float]:
    """All figures of a model's clips beside those of the teacher on the same captions and seeds.

    `frechet` is to rendered clips of the same captions, size and length; `diversity` is the mean
    of `diversity_ratios`.
    """
    assert clips.captions == teacher.captions
    seen, by_teacher = observations(clips.videos), observations(teacher.videos)
    summary = summarise(verdicts(clips.captions, seen))
    of_teacher = summarise(verdicts(teacher.captions, by_teacher))
    reference = reference_features(clips.captions, clips.videos.shape[1:4])
    frechet = frechet_distance(clip_features(clips.videos), reference)
    ratios = diversity_ratios(clips.captions, seen, by_teacher)
    return {
        "num_forwards": clips.num_forwards,
        **summary,
        "accuracy_difference": summary["prompt_accuracy"] - of_teacher["prompt_accuracy"],
        "frechet": frechet,
        "frechet_ratio": frechet / frechet_distance(clip_features(teacher.videos), reference),
        "diversity": float(np.mean(list(ratios.values()))),
        **{f"diversity_{name}": ratio for name, ratio in ratios.items()},
        "denoise_sec": clips.denoise_sec,
    }


def rendered_clips(captions: Sequence[Caption], shape: Sequence[int], seed: int) -> Clips:
    """What a perfect model would generate: each caption drawn anew. shape is (F, H, W)."""
    num_frames, height, width = shape
    videos = (render(c, seed + i, num_frames, height, width) for i, c in enumerate(captions))
    pixels = np.stack([np.rint(video * 255).astype(np.uint8) for video in videos])
    return Clips(tuple(captions), torch.empty(0), pixels, num_forwards=0, denoise_sec=0.0)


def reference_features(captions: Sequence[Caption], shape: Sequence[int]) -> NDArray[np.float64]:
    """Features [NUM_REFERENCES * C, 54] of rendered clips of the C different captions."""
    return _reference_features(tuple(dict.fromkeys(captions)), tuple(shape))


@functools.lru_cache(maxsize=1)  # a table compares many models with the same clips
def _reference_features(
    captions: tuple[Caption, ...], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    seeds = range(REFERENCE_SEED, REFERENCE_SEED + NUM_REFERENCES * len(captions), len(captions))
    return np.concatenate(
        [clip_features(rendered_clips(captions, shape, seed).videos) for seed in seeds]
    )


def diversity_ratios(
    captions: Sequence[Caption], seen: Sequence[Observation], by_teacher: Sequence[Observation]
) -> dict[str, float]:
    """Spread of what captions leave open, over the seeds of a caption; 1 is the teacher's own.

    Only clips that both models got right count, so that a broken clip is not taken for a varied
    one; nan where no caption has two of them.
    """
    both = zip(captions, seen, by_teacher, strict=True)
    right = np.array([all((*o.matches(c).values(), *b.matches(c).values())) for c, o, b in both])
    own, teachers = (_spreads(captions, observed, right) for observed in (seen, by_teacher))
    return {name: own[name] / teachers[name] for name in UNSTATED}


def _spreads(
    captions: Sequence[Caption], seen: Sequence[Observation], right: NDArray[np.bool_]
) -> dict[str, float]:
    """Standard deviation within captions, pooled over captions, of each unstated attribute."""
    squares, freedom = dict.fromkeys(UNSTATED, 0.0), dict.fromkeys(UNSTATED, 0)
    for caption in dict.fromkeys(captions):
        clips = [o for o, c, r in zip(seen, captions, right, strict=True) if r and c == caption]
        if len(clips) < 2:
            continue
        for name in UNSTATED:
            if name == "path_length" and caption.motion not in DIRECTIONS:
                continue  # growing and shrinking go nowhere
            values = np.array([_attribute(o, caption, name) for o in clips])
            squares[name] += float(((values - values.mean(0)) ** 2).sum())
            freedom[name] += len(clips) - 1
    return {n: float(np.sqrt(squares[n] / freedom[n])) if freedom[n] else np.nan for n in UNSTATED}


def _attribute(seen: Observation, caption: Caption, name: str) -> tuple[float, ...]:
    """Position in shares of the frame, path length of the side, radius of its nominal size."""
    assert seen.start is not None
    assert seen.path_length is not None
    assert seen.radius is not None
    return {
        "position": seen.start,
        "path_length": (seen.path_length,),
        "radius": (seen.radius / SIZES[caption.size],),
    }[name]


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
