"""Videos drawn while training, as the studio would draw them, and what is remembered of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.files.disk import atomic_path
from pipelines.generate import sample_video
from pipelines.recipe import Recipe
from pipelines.video import write_video
from trainers.networks.models import Codecs
from trainers.networks.role import BuiltRole
from trainers.ranks.ranks import Ranks, any_rank
from trainers.scoring.figures import FIGURES, Figures, diversity, thumbnail
from trainers.scoring.reward import LatentScore
from trainers.worlds.checker import observe
from trainers.worlds.shapes import Caption


@dataclass(frozen=True)
class DrawnVideo:
    """A drawn video by its figures; the thumbnail [3, 8, 16, 16] is what diversity compares."""

    recipe: Recipe
    figures: Figures
    thumbnail: Tensor

    def save(self, path: Path) -> None:
        """Writes what `load` reads; atomic."""
        metadata = {"recipe": self.recipe.to_json(), "figures": json.dumps(self.figures)}
        with atomic_path(path) as partial:
            save_file({"thumbnail": self.thumbnail.contiguous()}, partial, metadata)

    @classmethod
    def load(cls, path: Path) -> "DrawnVideo":
        """Reads what `save` wrote."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            recipe = Recipe.model_validate_json(metadata["recipe"])
            return cls(recipe, json.loads(metadata["figures"]), file.get_tensor("thumbnail"))


class VideoDrawer:
    """Draws videos into one folder. Every rank takes part, the main one writes.

    With `check_captions` prompts are captions of the shapes world, and accuracy is a figure too.
    Each of the `rewards` is one as well, under its name.
    """

    def __init__(
        self, codecs: Codecs, folder: Path, ranks: Ranks, rewards: Mapping[str, LatentScore]
    ):
        self.codecs, self.folder, self.ranks, self.rewards = codecs, folder, ranks, rewards
        self.check_captions = False

    def draw(self, recipe: Recipe, role: BuiltRole, name: str) -> DrawnVideo:
        """Samples the role, writes NAME.mp4 and measures the video."""
        model, training = role.denoiser, role.call.training
        model.eval()
        prompts, codec = self.codecs.prompts, self.codecs.video
        video = sample_video(recipe, prompts, codec, model, self.codecs.condition(recipe))
        model.train(training)
        if self.ranks.is_main:
            frames = video[0].permute(0, 2, 3, 1).cpu().numpy()
            write_video(self.folder / f"{name}.mp4", frames, recipe.fps, recipe.to_json())
        return DrawnVideo(recipe, self._figures(recipe, video), thumbnail(video)[0].cpu())

    def draw_once(self, recipe: Recipe, role: BuiltRole, name: str) -> DrawnVideo:
        """As `draw`, but what an earlier start has drawn of this very recipe is not drawn again."""
        path = self.folder / f"{name}.safetensors"
        known = self.ranks.is_main and path.is_file() and DrawnVideo.load(path).recipe == recipe
        if any_rank(known, self.ranks):
            return DrawnVideo.load(path)
        sample = self.draw(recipe, role, name)
        if self.ranks.is_main:
            sample.save(path)
        return sample

    def _figures(self, recipe: Recipe, video: Tensor) -> Figures:
        figures = {name: float(measure(video)) for name, measure in FIGURES.items()}
        if self.check_captions:
            seen = observe(video[0].permute(0, 2, 3, 1).cpu().numpy())
            matches = list(seen.matches(Caption.parse(recipe.prompt)).values())
            figures["prompt_accuracy"] = float(all(matches))
            figures["slot_accuracy"] = sum(matches) / len(matches)
        for name, reward in self.rewards.items():
            figures[name] = float(reward.of_video(video, (recipe.prompt,)))
        return figures


def summary(samples: Sequence[DrawnVideo]) -> Figures:
    """The mean of every figure; with several seeds a prompt also their diversity."""
    figures = {
        name: sum(sample.figures[name] for sample in samples) / len(samples)
        for name in samples[0].figures
    }
    by_prompt: dict[str, list[Tensor]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.recipe.prompt, []).append(sample.thumbnail)
    groups = [torch.stack(thumbnails) for thumbnails in by_prompt.values()]
    if all(len(group) > 1 for group in groups):
        figures["diversity"] = float(torch.stack([diversity(g) for g in groups]).mean())
    return figures
