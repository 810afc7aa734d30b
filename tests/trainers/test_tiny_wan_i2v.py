"""The image-to-video TinyWan that is shipped: its size, its start, its keeping to the image."""

from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from pipelines.catalog.overrides import Overrides
from pipelines.catalog.registry import Registry
from pipelines.generate import sample_video
from pipelines.model_cache import ModelCache
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.prompt import Prompt
from trainers.evaluation.first_frames import continuation_rows, with_first_frames
from trainers.evaluation.tables import clip_recipes
from trainers.tiny.wan import build_transformer, continue_images

FOLDER = Path("assets/tiny-wan-i2v")
STUDENTS = Path("assets/students")
SMALL: Overrides = {
    "sampler": {"num_inference_steps": 2},
    "num_frames": 5,
    "width": 32,
    "height": 32,
}


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache(Registry(), "cpu")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_model_and_students_stay_small() -> None:
    assert size(FOLDER) <= 15e6
    assert size(STUDENTS) <= 20e6


def test_new_channels_start_without_an_effect() -> None:
    text = build_transformer().eval()
    image = continue_images(text)
    assert image.config.in_channels == 36
    noise, sigma, embeds = torch.randn(2, 16, 2, 4, 4), torch.rand(2), torch.randn(2, 7, 128)
    condition = ImageCondition(torch.randn(2, 16, 2, 4, 4))
    with torch.no_grad():
        expected = Denoiser(text).velocity(noise, sigma, Prompt(embeds))
        given = Denoiser(image).velocity(noise, sigma, Prompt(embeds, image=condition))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


def test_stock_diffusers_continues_the_image_to_the_same_frames(models: ModelCache) -> None:
    photo = Path("assets/first-frames/00000.png")
    prompt = "a large red circle moving right on a navy background"
    recipe = models.registry.recipe("tiny-wan-i2v", prompt, image=photo, seed=4, **SMALL)
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    condition = models.inputs(recipe, entry, components).prompt.image
    model = Denoiser(components.transformer)
    ours = sample_video(recipe, components, components, model, condition)

    transformer = WanTransformer3DModel.from_pretrained(FOLDER / "transformer")
    pipeline = WanImageToVideoPipeline.from_pretrained("assets/tiny-wan", transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=Image.open(photo),
        prompt=prompt,
        width=32,
        height=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        max_sequence_length=64,
        output_type="pt",
    ).frames
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_a_clip_of_a_batch_starts_from_its_own_image(models: ModelCache, tmp_path: Path) -> None:
    prompts = models.registry.prompts("shapes_test")[:4]
    recipes = clip_recipes(
        models.registry, "tiny-wan-i2v", prompts, [0], {"sampler": {"num_inference_steps": 8}}
    )
    images = [recipe.image for recipe in with_first_frames(recipes, tmp_path, 100)]
    assert len({image.fingerprint for image in images if image is not None}) == 4
    ceiling, model = continuation_rows(models, [recipes], tmp_path, 100)
    assert ceiling["first_frame_db"] > 30
    assert model["first_frame_db"] > 22  # in 8 steps; another image would give 14 to 19
    assert model["slot_accuracy"] > 0.7
