import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from pipelines.catalog.registry import Registry
from pipelines.generate import Clip, Progress, generate, sample_video
from pipelines.model_cache import ModelCache
from pipelines.recipe import Adapter, Recipe, SamplerSpec
from pipelines.sampling.denoiser import Denoiser
from pipelines.video import read_comment, read_recipe, read_video

PROMPT = "a red circle moving left"


def make(recipe: Recipe, models: ModelCache, out: Path) -> Clip:
    *_, clip = generate(recipe, models, out)
    assert isinstance(clip, Clip)
    return clip


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_unipc_equals_the_stock_diffusers_pipeline(
    guidance_scale: float, registry: Registry, models: ModelCache, models_dir: Path
) -> None:
    messy = "a  red circle &amp;amp; a blue\nsquare "
    negative = "black square" if guidance_scale > 1 else None
    changes = {"num_inference_steps": 5, "guidance_scale": guidance_scale}
    recipe = registry.recipe("mini", messy, sampler=changes, negative_prompt=negative, seed=3)
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    ours = sample_video(recipe, components, components, Denoiser(components.transformer))

    pipeline = WanPipeline.from_pretrained(models_dir / "mini")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=messy,
        negative_prompt=negative,
        width=32,
        height=32,
        num_frames=5,
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=components.text_length,
        output_type="pt",
    ).frames
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_clip_holds_its_frames_its_recipe_and_what_it_cost(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    recipe = registry.recipe("mini", PROMPT, seed=1)
    clip = make(recipe, models, tmp_path / "clip.mp4")
    assert read_video(clip.path).shape == (5, 32, 32, 3)
    assert read_recipe(clip.path) == recipe == clip.recipe
    assert json.loads(read_comment(clip.path) or "")["model_fingerprint"]
    assert clip.poster.is_file()
    assert clip.num_forwards == recipe.num_forwards == 6
    parts = clip.load_sec + clip.encode_sec + clip.denoise_sec + clip.decode_sec
    assert 0 < parts <= clip.total_sec
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.jpg", "clip.mp4"]


def test_the_same_recipe_gives_the_same_frames_in_a_fresh_process_state(
    registry: Registry, tmp_path: Path
) -> None:
    recipe = registry.recipe("mini", PROMPT, sampler={"name": "lcm", "guidance_scale": 1.0}, seed=5)
    first = make(recipe, ModelCache(registry, "cpu"), tmp_path / "a.mp4")
    torch.rand(3)  # a global draw in between must not matter
    second = make(recipe, ModelCache(registry, "cpu"), tmp_path / "b.mp4")
    np.testing.assert_array_equal(read_video(first.path), read_video(second.path))
    other = registry.recipe("mini", PROMPT, sampler={"name": "lcm", "guidance_scale": 1.0}, seed=6)
    third = make(other, ModelCache(registry, "cpu"), tmp_path / "c.mp4")
    assert np.abs(read_video(first.path) - read_video(third.path)).max() > 0.01


def test_the_same_recipe_gives_the_same_file_whatever_memory_held_before(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    recipe = registry.recipe("mini", PROMPT, seed=2)
    clips = [make(recipe, models, tmp_path / f"{index}.mp4") for index in range(16)]
    assert len({clip.path.read_bytes() for clip in clips}) == 1


def test_recipes_share_the_model_the_embeddings_and_the_noise_they_agree_on(
    registry: Registry, tmp_path: Path
) -> None:
    models = ModelCache(registry, "cpu")
    samplers = (
        {},
        {"num_inference_steps": 2, "name": "euler", "guidance_scale": 3.0},
        {"num_inference_steps": 2, "guidance_scale": 1.0},
    )
    recipes = [registry.recipe("mini", PROMPT, seed=1, sampler=sampler) for sampler in samplers]
    for index, recipe in enumerate(recipes):
        make(recipe, models, tmp_path / f"{index}.mp4")
    assert (models.num_loads, models.num_encodes) == (1, 2)  # the prompt and the empty prompt
    entry = models.registry.entry(recipes[0].model)
    components = models.components(recipes[0], entry)
    inputs = [models.inputs(recipe, entry, components) for recipe in recipes]
    assert inputs[0].noise is inputs[1].noise is inputs[2].noise
    assert inputs[0].prompt.embeds is inputs[2].prompt.embeds
    assert inputs[0].negative_embeds is inputs[1].negative_embeds
    assert inputs[2].negative_embeds is None


def test_without_guidance_a_step_is_one_forward_and_no_negative_prompt_is_encoded(
    registry: Registry, tmp_path: Path
) -> None:
    models = ModelCache(registry, "cpu")
    recipe = registry.recipe("mini", PROMPT, sampler={"guidance_scale": 1.0})
    assert make(recipe, models, tmp_path / "a.mp4").num_forwards == 3
    assert models.num_encodes == 1


def test_a_lora_is_switched_without_loading_and_the_base_comes_back_bit_for_bit(
    registry: Registry, lora_file: Path, tmp_path: Path
) -> None:
    models = ModelCache(registry, "cpu")
    base = registry.recipe("mini", PROMPT, seed=2)

    def adapted(**settings: float) -> Recipe:
        adapter = Adapter.model_validate({"path": str(lora_file), **settings})
        return registry.recipe("mini", PROMPT, seed=2, adapters=[adapter])

    recipes = [base, adapted(), adapted(lora_alpha=40.0), adapted(strength=0.0), base, adapted()]
    frames = []
    for index, recipe in enumerate(recipes):
        frames.append(read_video(make(recipe, models, tmp_path / f"{index}.mp4").path))
    assert models.num_loads == 1
    assert np.abs(frames[0] - frames[1]).max() > 0.01
    assert np.abs(frames[1] - frames[2]).max() > 0.01
    np.testing.assert_array_equal(frames[0], frames[3])
    np.testing.assert_array_equal(frames[0], frames[4])
    np.testing.assert_array_equal(frames[1], frames[5])


def test_progress_names_its_phases_in_order_and_counts_down(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    recipe = registry.recipe("mini", PROMPT, sampler={"num_inference_steps": 4})
    *events, clip = generate(recipe, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert all(isinstance(event, Progress) for event in events)
    assert [e.phase for e in events] == [
        "load",
        "encode",
        *["denoise"] * 5,
        "decode",
        "save",
    ]
    denoise = [e for e in events if e.phase == "denoise"]
    assert [(e.step, e.total) for e in denoise] == [(step, 4) for step in range(5)]
    assert denoise[0].eta_sec is None
    assert denoise[1].eta_sec > 0
    assert denoise[-1].eta_sec == 0


def test_what_is_done_between_two_steps_does_not_count(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    recipe = registry.recipe("mini", PROMPT, sampler={"num_inference_steps": 3})
    began, paused_sec = time.perf_counter(), 0.0
    for event in generate(recipe, models, tmp_path / "clip.mp4"):
        pause_began = time.perf_counter()
        if isinstance(event, Progress) and event.phase == "denoise" and event.step:
            time.sleep(1)
            paused_sec += time.perf_counter() - pause_began
    assert isinstance(event, Clip)
    whole_sec = time.perf_counter() - began
    assert event.denoise_sec < event.total_sec < whole_sec - paused_sec


@pytest.mark.parametrize("phase", ["load", "denoise", "decode", "save"])
def test_closing_between_steps_cancels_and_leaves_nothing(
    phase: str, registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    events = generate(registry.recipe("mini", PROMPT), models, tmp_path / "clip.mp4")
    while next(events).phase != phase:
        pass
    events.close()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_saving_leaves_the_older_clip_whole(
    registry: Registry, models: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "clip.mp4"
    old = make(registry.recipe("mini", PROMPT, seed=1), models, out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    events = generate(registry.recipe("mini", PROMPT, seed=2), models, out)
    while next(events).phase != "save":
        pass
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert old.path == out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_guidance_on_a_model_distilled_to_run_without_it_is_refused(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    spec = SamplerSpec.model_validate({"guidance_mode": "off", "guidance_scale": 5.0})
    recipe = registry.recipe("mini", PROMPT).model_copy(update={"sampler": spec})
    with pytest.raises(ValueError, match=r"guidance_scale is 5 .* set guidance_scale to 1"):
        next(generate(recipe, models, tmp_path / "clip.mp4"))


def test_weights_that_changed_since_the_recipe_was_made_are_refused(
    models_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models_dir / "mini", tmp_path / "models" / "mini"))
    registry = Registry([tmp_path / "models"])
    recipe = registry.recipe("mini", PROMPT)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match=r"model .* has changed since this recipe was made"):
        next(generate(recipe, ModelCache(registry, "cpu"), tmp_path / "clip.mp4"))


@pytest.mark.parametrize("name", ["clip.avi", "clip", "folder.mp4"])
def test_an_out_that_is_no_mp4_is_refused_before_anything_is_loaded(
    name: str, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    models = ModelCache(registry, "cpu")
    with pytest.raises(ValueError, match=r"out is .* must be the name of an \.mp4 file"):
        next(generate(registry.recipe("mini", PROMPT), models, tmp_path / name))
    assert models.num_loads == 0


def test_a_prompt_longer_than_the_model_reads_is_noted(
    registry: Registry, models: ModelCache, tmp_path: Path
) -> None:
    recipe = registry.recipe(
        "mini", "red " * 20, sampler={"num_inference_steps": 1, "guidance_scale": 1.0}
    )
    clip = make(recipe, models, tmp_path / "clip.mp4")
    assert clip.notes == ("the prompt has 21 tokens, and the model reads the first 12",)


def test_a_machine_without_room_keeps_the_model_used_last(models_dir: Path, tmp_path: Path) -> None:
    class FullMachine(ModelCache):
        def _free_bytes(self) -> int:
            return 0

    for name in ("one", "two"):
        shutil.copytree(models_dir / "mini", tmp_path / name)
    registry = Registry([tmp_path])
    models = FullMachine(registry, "cpu")
    for name in ("one", "one", "two", "one"):
        models.components(registry.recipe(name, PROMPT), registry.entry(name))
    assert models.num_loads == 3
