"""One geometry a model: latents, tokens and refusals follow from its preset."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from pipelines.catalog.entries import CheckpointSpec
from pipelines.catalog.registry import Registry, resolved
from pipelines.catalog.steps import step_name, step_of
from pipelines.generate import Clip, generate
from pipelines.geometry import WAN21, Geometry, read_size
from pipelines.model_cache import ModelCache
from pipelines.models.placement import sizes
from pipelines.video import read_video
from tests.pipelines.conftest import build_pipeline

WAN22 = Geometry(spatial_stride=16, num_channels=48)  # of Wan2.2's TI2V-5B


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder: `coarse`, a small model of Wan2.2's geometry, and `few`, a student of it."""
    folder = tmp_path_factory.mktemp("coarse")
    pipeline = build_pipeline()
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 16, "freq_dim": 32}
    pipeline.register_modules(
        vae=AutoencoderKLWan(
            base_dim=8,
            z_dim=48,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1] * 48,
            latents_std=[0.5] * 48,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
        ),
        transformer=WanTransformer3DModel(
            **small, in_channels=48, out_channels=48, ffn_dim=48, num_layers=2
        ),
    )
    pipeline.save_pretrained(folder / "coarse")
    sampler = {"num_inference_steps": 2, "guidance_scale": 1.0}
    spec = {"sampler": sampler, "text_length": 12, "width": 64, "height": 96, "num_frames": 5}
    spec |= {"geometry": {"spatial_stride": 16, "num_channels": 48}}
    (folder / "coarse" / "sampler.json").write_text(json.dumps(spec))
    shutil.copytree(folder / "coarse" / "transformer", folder / "few" / "transformer")
    (folder / "few" / "sampler.json").write_text(json.dumps({"base": "coarse", "num_frames": 5}))
    return folder


def test_latents_and_tokens_follow_from_strides_channels_and_patch() -> None:
    assert WAN21.latent_shape(832, 480, 81) == (16, 21, 60, 104)
    assert WAN21.num_tokens(832, 480, 81) == 32_760
    assert WAN21.size_multiple == 16
    assert WAN22.latent_shape(1280, 704, 121) == (48, 31, 44, 80)
    assert WAN22.num_tokens(1280, 704, 121) == 27_280
    assert WAN22.size_multiple == 32


@pytest.mark.parametrize("size", [(64, 64, 17), (832, 480, 1), (1280, 704, 121)])
def test_latents_tell_the_size_of_their_video(size: tuple[int, int, int]) -> None:
    for geometry in (WAN21, WAN22):
        assert geometry.video_size(geometry.latent_shape(*size)) == size


def test_a_size_that_cannot_be_is_said_with_the_nearest_that_can() -> None:
    assert WAN22.problem(1280, 704, 121) is None
    said = "height is 720 but must be a multiple of 32; try 704"
    assert WAN22.problem(1280, 720, 121) == said
    assert WAN21.problem(1280, 720, 121) is None
    assert WAN22.problem(0, 64, 5) == "width is 0 but must be a multiple of 32; try 32"
    assert WAN21.problem(64, 64, 0) == "num_frames is 0 but must be 4n+1; try 1"
    eights = Geometry(temporal_stride=8)
    assert eights.problem(64, 64, 13) == "num_frames is 13 but must be 8n+1; try 17"


def test_a_size_is_read_in_one_way() -> None:
    assert read_size("832x480") == read_size(" 832 x 480 ") == (832, 480)
    for text in ("832", "832x", "64x-64", "axb"):
        with pytest.raises(ValueError, match=f"^sizes is '{text}' but must be WIDTHxHEIGHT"):
            read_size(text, "sizes")


def test_a_checkpoint_says_its_geometry_only_where_it_is_not_wans() -> None:
    before = (
        '{"sampler":{"name":"unipc","num_inference_steps":50,"flow_shift":5.0,"guidance_scale":5.0,'
        '"sigmas":null,"guidance_mode":"two_pass"},"text_length":512,"width":832,"height":480,'
        '"num_frames":81,"fps":16,"negative_prompt":"","image_preprocessing":null}'
    )
    assert CheckpointSpec().model_dump_json() == before
    assert CheckpointSpec.model_validate_json(before).geometry == WAN21
    other = CheckpointSpec(geometry=WAN22)
    assert CheckpointSpec.model_validate_json(other.model_dump_json()) == other


def test_a_recipe_keeps_to_its_models_geometry_and_a_student_to_its_bases(coarse: Path) -> None:
    registry = Registry([coarse])
    assert registry.recipe("coarse", "a").latent_shape(WAN22) == (48, 2, 6, 4)
    for model in ("coarse", "few"):
        assert registry.entry(model).preset.geometry == WAN22
        with pytest.raises(ValueError, match=r"^width is 48 but must be a multiple of 32; try 64$"):
            registry.recipe(model, "a", width=48, height=64)
    older = registry.recipe("coarse", "a").model_copy(update={"height": 80})
    with pytest.raises(ValueError, match=r"^height is 80 but must be a multiple of 32"):
        resolved(older, registry.entry("coarse"))
    with pytest.raises(ValueError, match=r"^width is 40 but must be a multiple of 16"):
        registry.recipe("coarse", "a", width=40)


def test_a_model_of_another_geometry_makes_a_clip(coarse: Path, tmp_path: Path) -> None:
    models = ModelCache(Registry([coarse]), "cpu")
    recipe = models.registry.recipe("coarse", "a red circle")
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    assert models.inputs(recipe, entry, components).noise.shape == (1, 48, 2, 6, 4)
    assert sizes(components, recipe).num_tokens == 2 * 3 * 2
    *_, clip = generate(recipe, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert read_video(clip.path).shape == (5, 96, 64, 3)


def test_a_vae_that_contradicts_the_settings_is_refused(coarse: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(coarse / "coarse", tmp_path / "models" / "coarse")
    spec = json.loads((folder / "sampler.json").read_text())
    del spec["geometry"]
    (folder / "sampler.json").write_text(json.dumps(spec))
    models = ModelCache(Registry([folder.parent]), "cpu")
    recipe = models.registry.recipe("coarse", "a red circle")
    with pytest.raises(ValueError, match=r"^model: the VAE in .* num_channels=48.*geometry in its"):
        models.components(recipe, models.registry.entry("coarse"))


def test_a_step_has_one_name_and_nothing_else_is_a_step(tmp_path: Path) -> None:
    assert step_name(500) == "step_000500"
    assert [step_of(step_name(step)) for step in (0, 500, 1_234_567)] == [0, 500, 1_234_567]
    others = ("teacher", "step_", "step_abcdef", "step_000500.partial", "step_5")
    assert [step_of(name) for name in others] == [None] * len(others)
    for name in ("step_abcdef", "step_000500"):
        (tmp_path / "my-run" / "exports" / name).mkdir(parents=True)
    assert "my-run@500" in Registry(runs_dir=tmp_path).models()
