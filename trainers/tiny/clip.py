"""A small CLIP of the shapes world: open_clip's own classes, trained on rendered clips.

    python -m trainers.tiny.clip train assets/tiny-clip --num-steps 1200
    python -m trainers.tiny.clip measure assets/tiny-clip CLIPS.npz ...

It reads a clip as one picture (`contact_sheet`): the mean of the frames' features would not tell
left from right. Two losses of Radford et al. 2021 (arXiv:2103.00020):

    pictures -> texts   against each caption with one slot changed, the captions hardest to refuse
    texts -> pictures   against the batch and against pictures that no caption describes: two clips
                        laid over each other, because what a reward has to refuse in students is
                        the broken clip more often than the wrong one

and, as contrast alone learns motion slowly, five linear readers of the slots, later thrown away.
The logit scale is fixed and low: cosines have to lie apart, because they are the reward. Training
sees no held-out triple, and its clips are blurred, tinted and grainy, as decoded ones are.
`measure` holds the reward against the exact checker on the clips that `evaluate` keeps.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from open_clip import CLIP, get_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from trainers.evaluation.clips import Clips
from trainers.evaluation.measure import observations, verdicts
from trainers.evaluation.tables import rewards
from trainers.networks.optimizer import learning_rate
from trainers.scoring.clip import ClipScorer, contact_sheet, prepare
from trainers.settings.roles import Trainable
from trainers.tiny.wan import build_tokenizer
from trainers.worlds.shapes import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SLOTS,
    Caption,
    render,
    training_captions,
)

SIDE = 128  # of the contact sheet: frames of 64x64 as they are
NUM_FRAMES = 3
EMBED_DIM = 64
LOGIT_SCALE = 20.0
BATCH_SIZE = 32
NUM_OVERLAID = 16
NUM_CHANGED = 8  # of the 16 captions with one slot changed
Random = np.random.Generator
Tokenize = Callable[[list[str]], Tensor]
# Typed, as what mypy finds that five different types have in common depends on its hash seed.
CHOICES: tuple[Iterable[str], ...] = (SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
VALUES = {slot: tuple(values) for slot, values in zip(SLOTS, CHOICES, strict=True)}


def model_settings(vocab_size: int) -> dict[str, object]:
    """open_clip's `model_cfg`: half a million parameters."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": SIDE,
            "patch_size": 16,
            "width": 96,
            "layers": 3,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 14,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tokenizer of this folder",  # open_clip asks only that it is set
            "width": 64,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": 1,
        },
    }


def train(folder: Path, num_steps: int, seed: int) -> None:
    """Trains from random weights and writes the folder in open_clip's layout."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    words = build_tokenizer()
    words.save_pretrained(folder)
    settings = model_settings(len(words))
    layout = {"model_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(layout, indent=2) + "\n")
    tokenize = get_tokenizer(f"local-dir:{folder}")
    model = CLIP(**settings).train()
    heads = {slot: nn.Linear(EMBED_DIM, len(v)) for slot, v in VALUES.items()}
    readers = nn.ModuleDict(heads)  # of the slots; they are thrown away in the end
    captions = training_captions()
    schedule = Trainable(learning_rate=1.5e-3, final_learning_rate=1e-5, warmup_steps=50)
    trained = [*model.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.01)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, num_steps)
        chosen = [captions[i] for i in rng.choice(len(captions), BATCH_SIZE, replace=False)]
        loss = _loss(model, readers, tokenize, chosen, rng)
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1}/{num_steps}  {loss.tolist()}", flush=True)
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def _loss(
    model: CLIP,
    readers: nn.ModuleDict,
    tokenize: Tokenize,
    chosen: Sequence[Caption],
    rng: Random,
) -> Tensor:
    """Both directions of one batch of clips drawn anew, and the five slots. [7]."""
    clips = _clips(chosen, rng)
    share = torch.empty(NUM_OVERLAID, 1, 1, 1, 1).uniform_(0.25, 0.75)
    overlaid = torch.lerp(clips[:NUM_OVERLAID], clips[-NUM_OVERLAID:], share)
    sheets = contact_sheet(_degrade(torch.cat([clips, overlaid])))
    texts = []
    for caption in chosen:
        changed = one_slot_changed(caption)
        picked = rng.choice(len(changed), NUM_CHANGED, replace=False)
        texts += [str(caption), *(str(changed[i]) for i in picked)]
    pictures = model.encode_image(prepare(sheets, SIDE, "pad"))
    images = functional.normalize(pictures, dim=-1)
    words = functional.normalize(model.encode_text(tokenize(texts)), dim=-1)
    words = words.view(len(chosen), 1 + NUM_CHANGED, -1)  # the first of each row is the caption
    to_texts = torch.einsum("nd,nkd->nk", images[: len(chosen)], words) * LOGIT_SCALE
    to_pictures = words[:, 0] @ images.T * LOGIT_SCALE
    first, own = torch.zeros(len(chosen), dtype=torch.long), torch.arange(len(chosen))
    cross_entropy = functional.cross_entropy
    losses = [cross_entropy(to_texts, first), cross_entropy(to_pictures, own)]
    for slot, values in VALUES.items():
        labels = torch.tensor([values.index(getattr(c, slot)) for c in chosen])
        losses.append(cross_entropy(readers[slot](pictures[: len(chosen)]), labels))
    return torch.stack(losses)


def one_slot_changed(caption: Caption) -> list[Caption]:
    """The 16 captions that differ from this one in one slot."""
    return [
        replace(caption, **{slot: value})
        for slot, values in VALUES.items()
        for value in values
        if value != getattr(caption, slot)
    ]


def _clips(captions: Sequence[Caption], rng: Random) -> Tensor:
    clips = [render(c, int(rng.integers(2**31)), NUM_FRAMES) for c in captions]
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)


def _degrade(clips: Tensor) -> Tensor:
    """Blur for a third of the clips, a tint and grain for all: what decoding does, and more."""
    count = len(clips)
    blurred = functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    clips = torch.where((torch.rand(count) < 1 / 3).view(-1, 1, 1, 1, 1), blurred, clips)
    tint = 1 + 0.08 * torch.randn(count, 1, 3, 1, 1)
    grain = torch.rand(count, 1, 1, 1, 1) * 0.05 * torch.randn_like(clips)
    return (clips * tint + grain).clamp(0, 1)


# ---------------------------------------------------------------- against the checker


def measure(folder: Path, files: Sequence[Path]) -> None:
    """Prints, for each file of clips, how the reward ranks what the checker passes and fails."""
    scorer = ClipScorer.from_folder(folder, "pad", torch.device("cpu"))
    for file in files:
        clips = Clips.load(file)
        passed = np.array(
            [all(v.matches.values()) for v in verdicts(clips.captions, observations(clips.videos))]
        )
        scores = rewards(scorer, clips)
        print(
            f"{file.stem}: {len(passed)} clips, {passed.mean():.3f} pass; reward "
            f"{scores[passed].mean():.3f} where they pass, {scores[~passed].mean():.3f} where not; "
            f"a passing clip is above a failing one in {ranked(scores, passed):.3f} of pairs"
        )


def ranked(scores: np.ndarray, passed: np.ndarray) -> float:
    """Share of (passing, failing) pairs in which the passing clip has the higher score (AUC)."""
    return float((scores[passed][:, None] > scores[~passed][None]).mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers.tiny.clip")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train from random weights")
    command.add_argument("folder", type=Path)
    command.add_argument("--num-steps", type=int, default=1200)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("measure", help="hold it against the exact checker")
    command.add_argument("folder", type=Path)
    command.add_argument("clips", type=Path, nargs="+", help="files that evaluate keeps")
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder, options.num_steps, options.seed)
    else:
        measure(options.folder, options.clips)


if __name__ == "__main__":
    main()
