"""A variant, its recipe and its command say the same thing."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.files.tensors import Header
from pipelines.recipe import Adapter, Recipe, SamplerSpec
from pipelines.video import read_recipe
from studio.clips.store import ClipInfo
from studio.compare.cost import estimate_sec, metric_lines
from studio.compare.hints import (
    FIRST_HINT,
    FIT_HINT,
    MOVED_HINT,
    PLAIN_HINT,
    lora_hint,
    memory_hint,
)
from studio.compare.panels import model_choices
from studio.compare.variants import (
    NO_HINT,
    Variant,
    alpha_sweep,
    cli_command,
    differing_fields,
    from_recipe,
    lora_name,
    lost_fields,
    own_variant,
    to_recipe,
)
from studio.studio import Studio

PROMPT = """--seed=3 a "large" red circle's $HOME `path` moving right; on a \\ background"""


@pytest.fixture
def registry(models_dir: Path) -> Registry:
    return Registry([models_dir])


def test_the_command_line_makes_exactly_the_recipe(registry: Registry, tmp_path: Path) -> None:
    lora = str(registry.loras()[0])
    variant = Variant(
        model="student", lora=lora, lora_alpha=0.5, strength=-1.25, num_frames=5, flow_shift=2.7
    )
    recipe = to_recipe(registry, variant, PROMPT, memory="offload=true")
    out = tmp_path / "a clip.mp4"
    command = cli_command(registry, recipe, str(out))
    python, dash_m, pipelines, *words = shlex.split(command)
    assert (python, dash_m, pipelines) == ("python", "-m", "pipelines")
    assert main(words) == 0
    assert read_recipe(out) == recipe


def test_a_recipe_survives_the_way_through_a_panel(registry: Registry) -> None:
    lora = str(registry.loras()[0])
    variant = Variant(model="tiny-wan", lora=lora, lora_alpha=2, strength=0.3, seed=2**40)
    recipe = to_recipe(registry, variant, "a red circle")
    again = to_recipe(registry, from_recipe(recipe), recipe.prompt)
    assert again == recipe
    assert lost_fields(recipe, again) == []


def test_several_loras_survive_the_way_through_a_panel_and_the_command_line(
    registry: Registry, tmp_path: Path
) -> None:
    shutil.copy(registry.loras()[0], tmp_path / "one.safetensors")
    second = Header(registry.loras()[0]).shapes
    arrays = {name: np.ones(shape, np.float32) for name, shape in second.items()}
    save_file(arrays, tmp_path / "two.safetensors")
    found = Registry([tmp_path])
    one, two = map(str, found.loras()[:2])
    variant = Variant(model="tiny-wan", lora=one, strength=0.5, lora_3=two, strength_3=-2)
    recipe = to_recipe(found, variant, "a red circle")
    assert [(a.path, a.strength) for a in recipe.adapters] == [(one, 0.5), (two, -2)]
    again = from_recipe(recipe)
    assert (again.lora, again.lora_2, again.strength_2, again.lora_3) == (one, two, -2, None)
    assert to_recipe(found, again, "a red circle") == recipe
    words = shlex.split(cli_command(found, recipe, "a.mp4"))
    assert [words[i + 1] for i, w in enumerate(words) if w == "--lora"] == [
        f"{one}:0.5",
        f"{two}:-2",
    ]
    with pytest.raises(ValueError, match="chosen twice"):
        to_recipe(found, variant.model_copy(update={"lora_3": one}), "a red circle")


def test_the_hint_beside_a_lora_says_what_fits(registry: Registry, tmp_path: Path) -> None:
    lora = registry.loras()[0]
    assert lora_hint(registry, "tiny-wan", str(lora)) == "diffusers: 1 of 1 layers, rank 4"
    assert lora_hint(registry, "tiny-wan", None) == NO_HINT
    wide = {name: np.ones([64, 64], np.float32) for name in Header(lora).shapes}
    save_file(wide, tmp_path / "wide.safetensors")
    hint = lora_hint(registry, "tiny-wan", str(tmp_path / "wide.safetensors"))
    assert hint.startswith("It was made for another model: blocks.0.attn1.to_q is 64x64")


def test_what_a_panel_cannot_show_is_named(registry: Registry) -> None:
    recipe = to_recipe(registry, Variant(model="tiny-wan"), "a red circle")
    other = recipe.model_copy(update={"negative_prompt": "blur", "fps": 12, "memory": "fit"})
    other = other.model_copy(
        update={"sampler": SamplerSpec(**recipe.sampler.model_dump() | {"guidance_scale": 7})}
    )
    assert lost_fields(other, recipe) == [
        "negative_prompt",
        "fps",
        "memory",
        "sampler.guidance_scale",
    ]


def test_a_checkpoint_brings_its_own_settings(registry: Registry) -> None:
    own = own_variant(registry, "student")
    assert (own.num_inference_steps, own.guidance_scale, own.size) == (2, 1.0, "64x64")
    assert own_variant(registry, "wan2.1-t2v-1.3b").size == "832x480"


def test_a_variant_is_swept_over_shares_of_its_loras_own_alpha(registry: Registry) -> None:
    loras = {lora_name(registry, path): str(path) for path in registry.loras()}
    variant = Variant(model="tiny-weak4", lora=loras["tiny-draft/lora"], lora_alpha=3, seed=5)
    swept = alpha_sweep(registry, variant)
    assert [each.lora_alpha for each in swept] == [0, 4, 6, 8]
    assert {each.model_copy(update={"lora_alpha": 3}) for each in swept} == {variant}
    for others in ({"lora": None}, {"lora_2": loras["style"]}):  # style has rank 4 and no alpha
        with pytest.raises(ValueError, match=r"^lora_alpha .*; choose one LoRA$"):
            alpha_sweep(registry, variant.model_copy(update=others))
    with pytest.raises(ValueError, match="is not in the models folders"):
        alpha_sweep(registry, variant.model_copy(update={"lora": "/etc/passwd"}))


def test_only_what_the_registry_lists_is_opened(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora"):
        to_recipe(registry, Variant(model="tiny-wan", lora=str(tmp_path)), "a red circle")
    with pytest.raises(ValueError, match="model"):
        to_recipe(registry, Variant(model="assets/tiny-wan"), "a red circle")
    with pytest.raises(ValueError, match="prompt"):
        to_recipe(registry, Variant(model="tiny-wan"), "  ")
    with pytest.raises(ValueError, match="memory: ofload"):
        to_recipe(registry, Variant(model="tiny-wan"), "a red circle", memory="ofload=true")


def test_guidance_on_a_distilled_model_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="guidance_scale is 5"):
        to_recipe(registry, Variant(model="student", guidance_scale=5), "a red circle")


def test_fields_that_differ_are_found() -> None:
    first = Variant(model="tiny-wan", num_inference_steps=30)
    second = first.model_copy(update={"num_inference_steps": 4, "seed": 1})
    assert differing_fields([first, second, first]) == ["num_inference_steps", "seed"]
    assert differing_fields([first]) == []


def test_an_estimate_scales_with_the_forwards_of_a_like_clip() -> None:
    sampler = SamplerSpec(num_inference_steps=30, guidance_scale=5)
    earlier = Recipe(model="m", prompt="a", sampler=sampler)
    info = ClipInfo(num_forwards=60, denoise_sec=6, decode_sec=0.5, load_sec=3, total_sec=10)
    few = SamplerSpec(num_inference_steps=4, guidance_scale=1)
    assert estimate_sec(Recipe(model="m", prompt="b", sampler=few), [(earlier, info)]) == 0.9
    assert estimate_sec(Recipe(model="m", prompt="b", memory="fit"), [(earlier, info)]) is None
    assert estimate_sec(Recipe(model="other", prompt="b"), [(earlier, info)]) is None


def test_metrics_compare_with_a_and_leave_out_loading() -> None:
    first = ClipInfo(60, load_sec=4, encode_sec=0, denoise_sec=6, decode_sec=1, total_sec=12)
    second = ClipInfo(4, load_sec=0, encode_sec=0, denoise_sec=0.5, decode_sec=1, total_sec=2)
    assert metric_lines(first, None)[2:] == [["total", "8.00 s"], ["forwards", "60"]]
    assert metric_lines(second, first)[-2:] == [["denoise vs A", "12.0x"], ["total vs A", "4.0x"]]


def test_a_lora_keeps_its_own_alpha_when_none_is_given(registry: Registry) -> None:
    lora = str(registry.loras()[0])
    recipe = to_recipe(registry, Variant(model="tiny-wan", lora=lora), "a red circle")
    (adapter,) = recipe.adapters
    assert adapter == Adapter(path=lora, fingerprint=adapter.fingerprint)
    assert adapter.fingerprint is not None


def test_a_student_is_a_choice_with_its_own_settings_and_one_forward_a_step(
    registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "guided"
    folder.mkdir()
    sampler = {"num_inference_steps": 6, "guidance_scale": 3.0, "guidance_mode": "embedded"}
    spec = {"base": "tiny-wan", "title": "Guided", "sampler": sampler}
    (folder / "sampler.json").write_text(json.dumps(spec))
    shutil.copy(registry.loras()[0], folder / "lora.safetensors")
    found = Registry([*registry.model_dirs, tmp_path])
    assert ("Guided (distilled)", "guided") in model_choices(found)
    variant = own_variant(found, "guided")
    assert (variant.num_inference_steps, variant.guidance_scale) == (6, 3)
    recipe = to_recipe(found, variant.model_copy(update={"guidance_scale": 7}), "a red circle")
    assert recipe.num_forwards == 6
    assert "--negative-prompt" not in cli_command(found, recipe, "a.mp4")


def test_the_hint_beside_memory_says_what_fit_chose_last_time(tmp_path: Path) -> None:
    studio = Studio(tmp_path, Registry(), viewer=False)

    def hint(memory: str) -> str:
        return memory_hint(studio.registry, studio.store, memory, ["tiny-wan", "tiny-dmd4"])

    assert hint("fit") == FIRST_HINT
    for seed, (model, words) in enumerate((("tiny-wan", "1 GB."), ("tiny-wan", "2 GB. So it."))):
        made = to_recipe(studio.registry, Variant(model=model, seed=seed), "a", memory="fit")
        notes = f"another note\nMemory: {words}"
        studio.store.add_clip(made, ClipInfo(num_forwards=1, denoise_sec=1, notes=notes))
    assert hint("fit") == f"{FIT_HINT}. Last time: 2 GB. So it."
    made = to_recipe(studio.registry, Variant(model="tiny-dmd4"), "a", memory="fit")
    studio.store.add_clip(made, ClipInfo(num_forwards=1, denoise_sec=1, notes="Memory: 3 GB."))
    assert "TinyWan: 2 GB. So it." in hint("fit")
    assert hint("plain") == PLAIN_HINT
    assert hint("offload=true") == MOVED_HINT
    assert hint("vae=bf16") == "With the VAE in bf16, which changes videos a little"
