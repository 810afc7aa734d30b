"""Videos drawn while training, the way the studio would: same prompts, same seed, every time."""

from pathlib import Path
from typing import Any, cast

from pipelines.denoiser import Denoiser
from pipelines.generate import sample_video
from pipelines.loading import load_components
from pipelines.registry import Registry
from pipelines.video import write_video
from trainers.config import TrainConfig
from trainers.distributed import World
from trainers.roles import BuiltRole


class SampleWriter:
    """Keeps the VAE and text encoder at hand and draws `config.samples` from a role."""

    def __init__(self, config: TrainConfig[Any], run_dir: Path, world: World):
        self.run_dir, self.world = run_dir, world
        registry = Registry()
        wanted = config.samples
        self.recipes = [
            registry.recipe(
                config.model,
                prompt,
                seed=wanted.seed,
                steps=wanted.num_inference_steps,
                guidance_scale=wanted.guidance_scale,
            )
            for prompt in wanted.prompts
        ]
        entry = registry.entry(config.model)
        assert entry.folder is not None  # `registry.recipe` has refused a model that is not here
        device = str(world.device)
        self.components = load_components(entry.folder, entry.preset.text_length, device)

    def write(self, step: int, role: BuiltRole) -> Path:
        """Writes samples/step_NNNNNN/NN.mp4. Every rank takes part, the main one writes."""
        folder = self.run_dir / "samples" / f"step_{step:06d}"
        role.call.eval()
        for number, recipe in enumerate(self.recipes):
            video = sample_video(recipe, self.components, cast(Denoiser, role.call))
            if self.world.is_main:
                frames = video[0].permute(0, 2, 3, 1).cpu().numpy()
                write_video(folder / f"{number:02d}.mp4", frames, recipe.fps, recipe.to_json())
        role.call.train()
        return folder
