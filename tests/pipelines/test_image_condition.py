"""Image-to-video: what the network reads of an image, and that it equals stock diffusers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.generate import Clip, generate, sample_video
from pipelines.model_cache import ModelCache
from pipelines.models.first_frame import ImageConditioner
from pipelines.recipe import FirstFrame, Recipe
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.guidance import guided
from pipelines.sampling.prompt import Prompt
from pipelines.video import read_recipe
from tests.pipelines.conftest import build_pipeline

PROMPT = "a red circle moving left"
TEXT_LENGTH = 512  # diffusers' attention takes all tokens but the last 512 for those of the image


def build_transformer(**image: int) -> WanTransformer3DModel:
    torch.manual_seed(1)
    size = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "ffn_dim": 48}
    return WanTransformer3DModel(in_channels=36, text_dim=16, freq_dim=32, **size, **image)


def save_image_model(folder: Path, with_clip: bool) -> None:
    """Random image-to-video Wan: with CLIP like Wan2.1, or without."""
    parts = dict(build_pipeline().components)
    clip = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    size = {"height": 28, "width": 28}
    parts["image_encoder"] = CLIPVisionModel(clip).eval() if with_clip else None
    parts["image_processor"] = (
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size) if with_clip else None
    )
    dims = {"image_dim": 8, "added_kv_proj_dim": 32} if with_clip else {}
    parts["transformer"] = build_transformer(**dims)
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    images = ("image_encoder", "image_processor") if with_clip else ()
    pipeline = WanImageToVideoPipeline(**{name: parts[name] for name in (*names, *images)})
    pipeline.save_pretrained(folder)
    sampler = {"num_inference_steps": 3, "flow_shift": 3.0, "guidance_scale": 5.0}
    spec = {"sampler": sampler, "text_length": TEXT_LENGTH, "num_frames": 5, "fps": 8}
    spec |= {"width": 48, "height": 32, "image_preprocessing": "diffusers"}
    (folder / "sampler.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that continue images: `clip` and `plain`."""
    folder = tmp_path_factory.mktemp("image-models")
    save_image_model(folder / "clip", with_clip=True)
    save_image_model(folder / "plain", with_clip=False)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> ModelCache:
    return ModelCache(Registry([folder]), "cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96x64 pixels, the ratio of the models' 48x32."""
    path = tmp_path_factory.mktemp("images") / "photo.png"
    smooth = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return path


def stock_frames(folder: Path, photo: Path, recipe: Recipe) -> Tensor:
    pipeline = WanImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    frames: Tensor = pipeline(
        image=Image.open(photo),
        prompt=recipe.prompt,
        width=recipe.width,
        height=recipe.height,
        num_frames=recipe.num_frames,
        num_inference_steps=recipe.sampler.num_inference_steps,
        guidance_scale=recipe.sampler.guidance_scale,
        generator=torch.Generator().manual_seed(recipe.seed),
        max_sequence_length=TEXT_LENGTH,
        output_type="pt",
    ).frames
    return frames


@pytest.mark.parametrize(("name", "guidance_scale"), [("clip", 5.0), ("plain", 5.0), ("clip", 1.0)])
def test_a_continued_image_equals_the_stock_diffusers_pipeline(
    name: str, guidance_scale: float, folder: Path, models: ModelCache, photo: Path
) -> None:
    recipe = models.registry.recipe(
        name, PROMPT, image=photo, seed=3, sampler={"guidance_scale": guidance_scale}
    )
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    condition = models.inputs(recipe, entry, components).prompt.image
    model = Denoiser(components.transformer)
    ours = sample_video(recipe, components, components, model, condition)
    assert ours.std() > 0.01
    theirs = stock_frames(folder / name, photo, recipe)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_input_is_noise_then_mask_then_image(models: ModelCache, photo: Path) -> None:
    recipe = models.registry.recipe("plain", PROMPT, image=photo)
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    condition = models.inputs(recipe, entry, components).prompt.image
    assert condition is not None
    noise = torch.randn(2, 16, 2, 4, 6)
    channels = condition.beside(noise)
    assert channels.shape == (2, 36, 2, 4, 6)
    assert torch.equal(channels[:, :16], noise)
    assert torch.equal(channels[:, 16:20, 0], torch.ones(2, 4, 4, 6))
    assert not channels[:, 16:20, 1].any()
    assert torch.equal(channels[0, 20:], condition.image_latents[0])
    assert torch.equal(channels[1, 20:], condition.image_latents[0])


def test_the_forward_without_the_prompt_still_sees_the_image(models: ModelCache) -> None:
    recipe = models.registry.recipe("plain", PROMPT)
    components = models.components(recipe, models.registry.entry("plain"))
    model = Denoiser(components.transformer)
    conditions = [ImageCondition(torch.full((1, 16, 2, 4, 4), level)) for level in (-1.0, 1.0)]
    noise, sigma = torch.randn(1, 16, 2, 4, 4), torch.ones(1)
    embeds, negative = torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    with torch.no_grad():
        only_negative = [
            guided(model, negative, 1e6)(noise, sigma, Prompt(embeds, image=c)) for c in conditions
        ]
    assert not torch.allclose(only_negative[0], only_negative[1])


@pytest.mark.parametrize("preprocessing", ["diffusers", "native"])
def test_an_image_of_another_ratio_is_cut_and_not_squashed(
    preprocessing: str, models: ModelCache, photo: Path, tmp_path: Path
) -> None:
    whole = Image.open(photo)
    wide = Image.new("RGB", (196, 64), "white")  # borders to the left and right
    wide.paste(whole, (50, 0))
    wide.save(tmp_path / "wide.png")
    registry = models.registry
    components = models.components(registry.recipe("clip", PROMPT), registry.entry("clip"))
    conditioner = ImageConditioner(components, components.image_encoder, preprocessing)
    cut, same = (conditioner.condition(path, 48, 32, 5) for path in (tmp_path / "wide.png", photo))
    torch.testing.assert_close(cut.image_latents, same.image_latents)
    torch.testing.assert_close(cut.image_embeds, same.image_embeds)


def test_wan_itself_squashes_the_image_for_clip_and_diffusers_cuts_it(
    models: ModelCache, photo: Path, tmp_path: Path
) -> None:
    edges = np.asarray(Image.open(photo)).copy()
    edges[:, :8] = 255 - edges[:, :8]  # what lies outside of the middle square
    Image.fromarray(edges).save(tmp_path / "edges.png")
    registry = models.registry
    components = models.components(registry.recipe("clip", PROMPT), registry.entry("clip"))

    def difference(preprocessing: str) -> float:
        conditioner = ImageConditioner(components, components.image_encoder, preprocessing)
        embeds = [
            conditioner.condition(path, 48, 32, 5).image_embeds
            for path in (photo, tmp_path / "edges.png")
        ]
        assert embeds[0].shape == (1, 5, 8)  # a class token and 2x2 patches
        return (embeds[0] - embeds[1]).abs().max().item()

    assert difference("diffusers") < 1e-6
    assert difference("native") > 1e-3


def make(recipe: Recipe, models: ModelCache, out: Path) -> Clip:
    *_, clip = generate(recipe, models, out)
    assert isinstance(clip, Clip)
    return clip


def test_the_recipe_in_a_clip_names_the_image_and_its_content(
    models: ModelCache, photo: Path, tmp_path: Path
) -> None:
    recipe = models.registry.recipe("plain", PROMPT, image=photo)
    clip = make(recipe, models, tmp_path / "clip.mp4")
    image = read_recipe(clip.path).image
    assert image is not None
    assert (image.path, len(image.fingerprint or "")) == (str(photo), 16)
    other = tmp_path / "other.png"
    Image.open(photo).rotate(180).save(other)
    assert models.registry.recipe("plain", PROMPT, image=other).key() != recipe.key()


def test_an_image_that_changed_since_the_recipe_was_made_is_refused(
    models: ModelCache, photo: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    recipe = models.registry.recipe("plain", PROMPT, image=copy)
    Image.open(photo).rotate(180).save(copy)
    with pytest.raises(ValueError, match=r"image .* has changed since this recipe was made"):
        next(generate(recipe, models, tmp_path / "clip.mp4"))


def test_recipes_without_an_image_keep_the_keys_they_had() -> None:
    recipe = Recipe(model="m", prompt="a")
    assert '"image"' not in recipe.to_json()
    assert Recipe.model_validate_json(recipe.to_json()) == recipe
    other = recipe.model_copy(update={"image": FirstFrame(path="a.png")})
    assert '"image"' in other.to_json()


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        ("plain", (), r"image is missing: plain continues an image; give it one"),
        ("mini", ("--image", "PHOTO"), r"image is given but mini makes videos from the prompt"),
        ("plain", ("--image", "nothing.png"), r"image nothing\.png does not exist"),
        ("plain", ("--image", "TEXT"), r"image text\.png cannot be read; give a PNG, JPEG or WebP"),
    ],
)
def test_the_command_line_says_in_one_sentence_what_is_wrong_with_an_image(
    model: str,
    arguments: tuple[str, ...],
    sentence: str,
    folder: Path,
    models_dir: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, out = tmp_path / "text.png", tmp_path / "clip.mp4"
    text.write_text("no image")
    named = {"PHOTO": str(photo), "TEXT": str(text)}
    words = [named.get(word, word) for word in arguments]
    folders = ["--models", str(folder), "--models", str(models_dir)]
    command = ["generate", "--model", model, "--prompt", PROMPT, "--out", str(out)]
    assert main([*command, *folders, *words]) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error")]
    assert re.search(sentence, line)
    assert not out.exists()


def test_a_model_that_reads_clip_needs_its_image_encoder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    copy.mkdir()
    for part in (folder / "clip").iterdir():
        if part.name != "image_encoder":
            (copy / part.name).symlink_to(part)
    entry = Registry([tmp_path]).entry("broken")
    assert entry.missing is not None
    assert "image_encoder/ folder" in entry.missing


def test_a_folder_from_the_hub_says_by_its_pipeline_that_it_continues_images(
    folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    for name, source in (("images", folder / "plain"), ("text", models_dir / "mini")):
        (tmp_path / name).mkdir()
        for part in source.iterdir():
            if part.name != "sampler.json":
                (tmp_path / name / part.name).symlink_to(part)
    registry = Registry([tmp_path])
    assert registry.entry("images").preset.image_preprocessing == "diffusers"
    assert registry.entry("text").preset.image_preprocessing is None


def test_a_text_length_at_which_diffusers_would_mix_up_text_and_image_is_refused(
    models: ModelCache,
) -> None:
    registry = models.registry
    components = models.components(registry.recipe("clip", PROMPT), registry.entry("clip"))
    model = Denoiser(components.transformer)
    latents = torch.zeros(1, 16, 2, 4, 4)
    condition = ImageCondition(latents, torch.zeros(1, 5, 8))
    with pytest.raises(ValueError, match=r"text_length is 64 but .* need 512"):
        model(latents, torch.ones(1), Prompt(torch.zeros(1, 64, 16), image=condition))
