"""Students by name: found, refused with a reason, and sampled their own way on a shared base."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry, resolved
from pipelines.catalog.students import LORA_FILE
from pipelines.generate import Clip, generate
from pipelines.model_cache import ModelCache
from pipelines.recipe import Adapter, Recipe, SamplerSpec
from pipelines.video import read_recipe, read_video
from tests.pipelines.conftest import guidance_tensors, lora_tensors

PROMPT = "a red circle"
FEW = {"name": "lcm", "num_inference_steps": 2, "guidance_scale": 1.0, "guidance_mode": "off"}
EMBEDDED = {"num_inference_steps": 2, "guidance_scale": 4.0, "guidance_mode": "embedded"}
TWO_PASS = SamplerSpec(num_inference_steps=30, guidance_scale=6)


def write_student(folder: Path, sampler: dict[str, Any], **changes: Any) -> Path:
    """A student of `mini` without weights."""
    folder.mkdir(parents=True)
    spec = {"base": "mini", "sampler": sampler, "text_length": 12, "width": 32, "height": 32}
    spec |= {"num_frames": 5, "fps": 8}
    (folder / "sampler.json").write_text(json.dumps(spec | changes))
    return folder


def write_lora(folder: Path, seed: int, guided: bool = False) -> None:
    tensors = lora_tensors(seed) | (guidance_tensors(seed) if guided else {})
    named = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / LORA_FILE)


@pytest.fixture
def own_models(models_dir: Path, tmp_path: Path) -> Path:
    """A models folder with `mini` and its students `few`, `guided` and `whole`."""
    folder = tmp_path / "models"
    shutil.copytree(models_dir, folder)
    write_lora(write_student(folder / "few", FEW, title="Few steps"), seed=1)
    write_lora(write_student(folder / "guided", EMBEDDED), seed=2, guided=True)
    whole = write_student(folder / "whole", FEW) / "transformer"
    shutil.copytree(folder / "mini" / "transformer", whole)
    return folder


@pytest.fixture
def registry(own_models: Path, tmp_path: Path) -> Registry:
    return Registry([own_models], runs_dir=tmp_path / "runs")


def make(registry: Registry, models: ModelCache, recipe: Recipe, out: Path) -> Clip:
    *_, clip = generate(recipe, models, out)
    assert isinstance(clip, Clip)
    return clip


def test_a_student_is_a_distilled_model_that_uses_its_bases_folder(
    registry: Registry, own_models: Path
) -> None:
    entries = registry.models()
    few, whole = entries["few"], entries["whole"]
    assert (few.missing, few.preset.kind, few.preset.title) == (None, "distilled", "Few steps")
    assert few.folder == whole.folder == own_models / "mini"
    assert (few.base, few.transformer) == ("mini", None)
    assert few.adapters == (own_models / "few" / LORA_FILE,)
    assert (whole.transformer, whole.adapters) == (own_models / "whole" / "transformer", ())
    assert (whole.preset.title, entries["mini"].base) == ("whole", None)


def test_runs_and_folders_are_named_and_come_after_the_presets(
    own_models: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for run in ("my-run", "tiny-wan"):
        write_lora(write_student(runs / run / "export", FEW), seed=3)
    write_student(runs / "half" / "export", FEW)
    (runs / "just-started").mkdir()
    (runs / "autoencoder" / "export" / "vae").mkdir(parents=True)
    entries = Registry([own_models, runs], runs_dir=runs).models()
    presets = ["tiny-wan", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"]
    found = ["half", "my-run", "runs/tiny-wan", "few", "guided", "mini", "whole"]
    assert [name for name in entries if name in presets + found] == presets + found
    assert not {"just-started", "autoencoder", "my-run/export"} & set(entries)
    assert "neither of lora.safetensors and transformer/" in (entries["half"].missing or "")
    assert entries["runs/tiny-wan"].missing is None


def test_a_student_is_found_by_its_folder(registry: Registry, own_models: Path) -> None:
    assert registry.entry(str(own_models / "few")) == registry.models()["few"]
    assert registry.entry(str(own_models / "mini")) == registry.models()["mini"]
    outside = own_models.parent / "outside"
    write_lora(write_student(outside, FEW), seed=5)
    entry = registry.entry(str(outside))
    assert (entry.missing, entry.base, entry.preset.name) == (None, "mini", str(outside))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "student"}, "base 'student' is not among the models here"),
        ({"base": "absent"}, "base 'absent' is not among the models here .*mini"),
        ({"base": "wan2.1-t2v-14b"}, "base 'wan2.1-t2v-14b' cannot be used: .* is not here"),
        ({"bass": "mini"}, r"sampler.json: bass: is not a known setting"),
        ({"sampler": {"num_inference_steps": 0}}, "sampler.num_inference_steps: Input should be"),
    ],
)
def test_a_student_that_cannot_work_is_listed_with_the_reason(
    changes: dict[str, Any], message: str, registry: Registry, own_models: Path
) -> None:
    folder = write_student(own_models / "student", **({"sampler": FEW} | changes))
    write_lora(folder, seed=4)
    for entry in (registry.models()["student"], registry.entry(str(folder))):
        assert re.search(message, entry.missing or "")
        assert entry.folder is None
    with pytest.raises(ValueError, match="model student cannot be used"):
        registry.recipe("student", PROMPT)


def test_a_lora_on_top_of_a_lora_student_has_both(registry: Registry, own_models: Path) -> None:
    folder = write_student(own_models / "rewarded", sampler=FEW, base="few")
    write_lora(folder, seed=4)
    entry = registry.entry("rewarded")
    assert (entry.missing, entry.base, entry.folder) == (None, "mini", own_models / "mini")
    assert entry.adapters == (own_models / "few" / LORA_FILE, folder / LORA_FILE)
    assert folder / LORA_FILE in registry.loras()  # and so a choice on `few`, at any alpha
    recipe = registry.recipe("rewarded", PROMPT)
    write_lora(own_models / "few", seed=9)
    with pytest.raises(ValueError, match="has changed since this recipe was made"):
        resolved(recipe, registry.entry(recipe.model))


def test_weights_that_are_not_whole_are_named(registry: Registry, own_models: Path) -> None:
    (own_models / "few" / LORA_FILE).write_bytes(b"\x10" + bytes(20))
    weights = own_models / "whole" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (own_models / "guided" / "transformer").mkdir()
    entries = registry.models()
    assert "few/lora.safetensors are damaged" in (entries["few"].missing or "")
    assert f"{weights} is missing; export the run again" == entries["whole"].missing
    assert "holds both of lora.safetensors" in (entries["guided"].missing or "")


def test_a_recipe_changes_with_the_students_weights_and_with_its_bases(
    registry: Registry, own_models: Path
) -> None:
    names = ("mini", "few", "guided", "whole")

    def keys() -> dict[str, str | None]:
        return {name: registry.recipe(name, PROMPT).model_fingerprint for name in names}

    before = keys()
    assert len(set(before.values())) == len(names)
    stale = registry.recipe("few", PROMPT)
    write_lora(own_models / "few", seed=9)
    after = keys()
    assert [name for name in names if before[name] != after[name]] == ["few"]
    with pytest.raises(ValueError, match=r"model .*few.* has changed since this recipe was made"):
        resolved(stale, registry.entry(stale.model))
    config = own_models / "mini" / "transformer" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert not set(after.values()) & set(keys().values())


def test_lora_students_share_one_base_and_the_base_stays_itself(
    registry: Registry, tmp_path: Path
) -> None:
    models = ModelCache(registry, "cpu")
    names = ["mini", "few", "guided", "mini", "few", "guided"]
    frames = []
    for index, name in enumerate(names):
        recipe = registry.recipe(name, PROMPT, seed=1)
        clip = make(registry, models, recipe, tmp_path / f"{index}.mp4")
        assert clip.num_forwards == recipe.num_forwards == (6 if name == "mini" else 2)
        frames.append(read_video(clip.path))
    assert (models.num_loads, models.num_encodes) == (1, 2)
    for index in range(3):
        np.testing.assert_array_equal(frames[index], frames[index + 3])
        assert np.abs(frames[index] - frames[(index + 1) % 3]).max() > 0.01


def test_a_student_with_its_own_transformer_is_sampled_with_it(
    registry: Registry, own_models: Path, tmp_path: Path
) -> None:
    weights = own_models / "whole" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"] = torch.full_like(tensors["proj_out.bias"], 2)
    save_file(tensors, weights, metadata={"format": "pt"})
    models = ModelCache(registry, "cpu")
    recipe = registry.recipe("whole", PROMPT)
    own = models.components(recipe, registry.entry(recipe.model)).transformer
    assert torch.equal(own.proj_out.bias.cpu(), tensors["proj_out.bias"])
    assert make(registry, models, recipe, tmp_path / "clip.mp4").num_forwards == 2


def test_guidance_as_an_input_changes_the_video_at_one_forward_a_step(
    registry: Registry, tmp_path: Path
) -> None:
    models = ModelCache(registry, "cpu")
    clips = [
        make(
            registry,
            models,
            registry.recipe("guided", PROMPT, sampler={"guidance_scale": scale}),
            tmp_path / f"{scale}.mp4",
        )
        for scale in (1.0, 4.0, 8.0)
    ]
    assert [clip.num_forwards for clip in clips] == [2, 2, 2]
    videos = [read_video(clip.path) for clip in clips]
    assert np.abs(videos[0] - videos[1]).max() > 0.01
    assert np.abs(videos[1] - videos[2]).max() > 0.01


def test_a_users_lora_goes_on_top_of_a_student_that_keeps_its_own_sampler(
    registry: Registry, tmp_path: Path
) -> None:
    style = tmp_path / "style.safetensors"
    save_file(lora_tensors(7), style, metadata={"sampler": TWO_PASS.model_dump_json()})
    adapter = Adapter(path=str(style))
    assert registry.recipe("mini", PROMPT, adapters=[adapter]).sampler == TWO_PASS
    recipe = registry.recipe("few", PROMPT, adapters=[adapter])
    assert recipe.sampler == registry.recipe("few", PROMPT).sampler
    models = ModelCache(registry, "cpu")
    plain = make(registry, models, registry.recipe("few", PROMPT), tmp_path / "a.mp4")
    styled = make(registry, models, recipe, tmp_path / "b.mp4")
    assert np.abs(read_video(plain.path) - read_video(styled.path)).max() > 0.01
    assert models.num_loads == 1


def test_a_sampler_and_weights_that_disagree_on_guidance_are_refused_before_anything_runs(
    registry: Registry, own_models: Path, tmp_path: Path
) -> None:
    write_lora(write_student(own_models / "plain", EMBEDDED), seed=2)
    write_lora(write_student(own_models / "two", {}), seed=2, guided=True)
    models = ModelCache(registry, "cpu")
    for name, message in (("plain", "does not take guidance"), ("two", "use embedded")):
        events = generate(registry.recipe(name, PROMPT), models, tmp_path / "clip.mp4")
        with pytest.raises(ValueError, match=message):
            list(events)
    assert models.num_encodes == 0


@pytest.mark.parametrize("name", ["few", "guided"])
def test_a_student_reads_no_negative_prompt(name: str, registry: Registry) -> None:
    assert registry.recipe(name, PROMPT).negative_prompt == ""
    with pytest.raises(ValueError, match="negative_prompt is not read by this distilled model"):
        registry.recipe(name, PROMPT, negative_prompt="ugly")


def test_the_command_line_needs_only_the_name(
    own_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--models", str(own_models)]
    out = tmp_path / "clip.mp4"
    assert main(["generate", *models, "--model", "few", "--prompt", PROMPT, "--out", str(out)]) == 0
    recipe = read_recipe(out)
    assert (recipe.model, recipe.num_forwards, recipe.num_frames) == ("few", 2, 5)
    capsys.readouterr()
    assert main(["models", *models]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"few +distilled +lcm 2 steps, shift 5, no guidance +available", shown)
    assert re.search(r"guided +distilled +unipc 2 steps, shift 5, guidance 4 embedded", shown)
