import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.catalog.entries import WAN_NEGATIVE_PROMPT
from pipelines.catalog.registry import Registry
from pipelines.files.disk import fingerprint
from pipelines.recipe import Adapter, SamplerSpec
from pipelines.sampling.flow import sigma_schedule
from tests.pipelines.conftest import lora_tensors


@pytest.fixture
def own_models(models_dir: Path, tmp_path: Path) -> Path:
    """A models folder that a test may change."""
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


def test_the_presets_come_first_and_tiny_wan_is_here() -> None:
    entries = Registry().models()
    assert list(entries)[:2] == ["tiny-wan", "tiny-wan-i2v"]
    assert {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b"} < entries.keys()
    tiny = entries["tiny-wan"]
    assert tiny.missing is None
    assert tiny.folder is not None
    assert (tiny.preset.width, tiny.preset.height, tiny.preset.text_length) == (64, 64, 64)


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.1-t2v-14b"])
def test_a_published_wan_is_missing_until_its_folder_is_under_a_models_folder(
    name: str, own_models: Path
) -> None:
    entry = Registry().models()[name]
    assert entry.folder is None
    assert "Wan-AI/Wan2.1-T2V" in (entry.missing or "")
    assert "pipelines download wan2.1-t2v" in (entry.missing or "")
    assert entry.preset.sampler == SamplerSpec.model_validate({"flow_shift": 3.0})
    assert (entry.preset.license, entry.preset.text_length) == ("Apache-2.0", 512)
    assert entry.preset.negative_prompt == WAN_NEGATIVE_PROMPT
    with pytest.raises(ValueError, match=rf"model {name} cannot be used: Wan-AI.* is not here"):
        Registry().recipe(name, "a cat")

    folder = own_models / Path(entry.preset.source).name
    (own_models / "mini").rename(folder)
    entries = Registry([own_models]).models()
    assert entries[name].missing is None
    assert entries[name].folder == folder
    assert folder.name not in entries  # it is the preset, not one more model


def test_the_hubs_own_cache_layout_is_found(own_models: Path) -> None:
    snapshots = own_models / "models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers" / "snapshots"
    snapshots.mkdir(parents=True)
    (own_models / "mini").rename(snapshots / "abc")
    entries = Registry([own_models]).models()
    assert entries["wan2.1-t2v-1.3b"].missing is None
    assert not any("snapshots" in name for name in entries)


def test_a_scanned_folder_brings_its_own_sampler(own_models: Path) -> None:
    nested = own_models / "runs" / "student"
    shutil.copytree(own_models / "mini", nested)
    (nested / "sampler.json").unlink()
    entries = Registry([own_models]).models()
    own = entries["mini"].preset
    assert (own.sampler.num_inference_steps, own.text_length, own.fps) == (3, 12, 8)
    plain = entries["runs/student"].preset
    assert (plain.sampler.flow_shift, plain.sampler.num_inference_steps) == (3.0, 50)
    assert (plain.width, plain.text_length) == (832, 512)
    assert plain.negative_prompt == WAN_NEGATIVE_PROMPT


def test_a_broken_folder_is_listed_with_its_reason(own_models: Path) -> None:
    for name in ("index", "spec", "part"):
        shutil.copytree(own_models / "mini", own_models / name)
    (own_models / "index" / "model_index.json").write_text("{")
    (own_models / "spec" / "sampler.json").write_text('{"sampler": {"step": 4}}')
    shutil.rmtree(own_models / "part" / "vae")
    entries = Registry([own_models]).models()
    assert "model_index.json is not valid JSON" in (entries["index"].missing or "")
    assert "sampler.step: is not a known setting" in (entries["spec"].missing or "")
    assert "has no vae/ folder" in (entries["part"].missing or "")
    assert entries["mini"].missing is None


def test_a_model_is_found_by_folder_and_by_its_preset_s_folder(models_dir: Path) -> None:
    entry = Registry().entry(str(models_dir / "mini"))
    assert entry.preset.sampler.num_inference_steps == 3
    tiny = Registry().models()["tiny-wan"]
    assert Registry().entry(str(tiny.folder)).preset.name == "tiny-wan"


def test_new_folders_appear_without_a_restart(own_models: Path) -> None:
    registry = Registry([own_models])
    before = set(registry.models())
    shutil.copytree(own_models / "mini", own_models / "later")
    assert set(registry.models()) - before == {"later"}


def test_loras_are_recognised_by_names_alone(own_models: Path) -> None:
    save_file(lora_tensors(1), own_models / "style.safetensors")
    save_file({"blocks.0.weight": torch.zeros(3)}, own_models / "full.safetensors")
    (own_models / "broken.safetensors").write_bytes(b"nothing")
    (own_models / "peft").mkdir()
    (own_models / "peft" / "adapter_config.json").write_text("{}")
    save_file(lora_tensors(1), own_models / "peft" / "adapter_model.safetensors")
    found = [path for path in Registry([own_models]).loras() if path.is_relative_to(own_models)]
    assert found == [own_models / "style.safetensors", own_models / "peft"]


def test_a_recipe_has_the_checkpoints_settings_under_the_overrides(registry: Registry) -> None:
    own = registry.recipe("mini", "a")
    assert (own.sampler.num_inference_steps, own.width, own.num_frames, own.fps) == (3, 32, 5, 8)
    changes = {"num_inference_steps": 7, "flow_shift": 8.0, "name": "euler"}
    changed = registry.recipe("mini", "a", seed=4, sampler=changes, width=48, num_frames=9)
    assert changed.sampler.model_dump(exclude={"sigmas", "guidance_mode"}) == {
        "name": "euler",
        "num_inference_steps": 7,
        "flow_shift": 8.0,
        "guidance_scale": 5.0,
    }
    assert (changed.width, changed.height, changed.num_frames, changed.seed) == (48, 32, 9, 4)
    none = registry.recipe(
        "mini", "a", sampler={"flow_shift": None}, width=None, negative_prompt=None
    )
    assert none.key() == own.key()
    assert changed.key() != own.key()


def test_steps_and_explicit_sigmas_agree_or_are_refused(own_models: Path) -> None:
    spec = json.loads((own_models / "mini" / "sampler.json").read_text())
    spec["sampler"] |= {"sigmas": [1.0, 0.6, 0.2]}
    (own_models / "mini" / "sampler.json").write_text(json.dumps(spec))
    registry = Registry([own_models])

    def sampler(**changes: object) -> SamplerSpec:
        return registry.recipe("mini", "a", sampler=changes).sampler

    assert sampler().sigmas == (1.0, 0.6, 0.2)
    assert sampler(num_inference_steps=3).sigmas == (1.0, 0.6, 0.2)
    assert sampler(num_inference_steps=4).sigmas is None
    assert sampler(sigmas=[1.0, 0.5]).num_inference_steps == 2
    with pytest.raises(ValueError, match="num_inference_steps is 3 but sigmas lists 2"):
        sampler(sigmas=[1.0, 0.5], num_inference_steps=3)


def test_a_recipe_refuses_settings_that_it_does_not_know(registry: Registry) -> None:
    for unknown in ({"steps": 3}, {"sampler": {"steps": 3}}):
        with pytest.raises(ValueError, match=r"^steps: is not a known setting"):
            registry.recipe("mini", "a", **unknown)


def test_a_lora_that_carries_its_sampler_replaces_the_models_own(
    registry: Registry, tmp_path: Path
) -> None:
    fast = SamplerSpec.model_validate(
        {"name": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0, "guidance_mode": "off"}
    )
    path = tmp_path / "fast.safetensors"
    save_file(lora_tensors(1), path, metadata={"sampler": fast.model_dump_json()})
    recipe = registry.recipe("mini", "a", adapters=[Adapter(path=str(path))])
    assert recipe.sampler == fast
    guided = registry.recipe(
        "mini", "a", adapters=[Adapter(path=str(path))], sampler={"guidance_scale": 5.0}
    )
    assert "set guidance_scale to 1" in (guided.sampler.problem() or "")


def test_without_guidance_the_negative_prompt_is_left_out_or_refused(
    registry: Registry, own_models: Path
) -> None:
    (own_models / "mini" / "sampler.json").unlink()  # then Wan's defaults hold
    wan = Registry([own_models])
    assert wan.recipe("mini", "a").negative_prompt == WAN_NEGATIVE_PROMPT
    assert wan.recipe("mini", "a", sampler={"guidance_scale": 1.0}).negative_prompt == ""
    assert registry.recipe("mini", "a", negative_prompt="ugly").negative_prompt == "ugly"
    with pytest.raises(
        ValueError, match="negative_prompt is read only with guidance_scale above 1"
    ):
        registry.recipe("mini", "a", sampler={"guidance_scale": 1.0}, negative_prompt="ugly")


def test_fingerprints_follow_content_and_not_time_or_name(own_models: Path, tmp_path: Path) -> None:
    folder = own_models / "mini"
    first = fingerprint(folder)
    os.utime(folder / "vae" / "config.json", (1, 1))
    assert fingerprint(folder) == first
    assert fingerprint(Path(shutil.copytree(folder, tmp_path / "other"))) == first
    (folder / "sampler.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    assert fingerprint(folder) == first
    (folder / "vae" / "config.json").write_text("{}")
    assert fingerprint(folder) != first


def test_a_large_file_is_hashed_by_samples_that_reach_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(65 * 2**20))
    first = fingerprint(path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert fingerprint(path) != first


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mni", "model 'mni' is unknown; did you mean mini"),
        ("tests/pipelines/conftest.py", "is a file without weights; give a model's folder"),
        ("tests", "model tests cannot be used: tests is not a diffusers folder"),
    ],
)
def test_an_unknown_model_is_named_with_a_way_out(
    model: str, message: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ValueError, match=message):
        registry.recipe(model, "a")


def test_a_missing_lora_and_a_missing_models_folder_are_named(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"adapter .*absent\.safetensors does not exist"):
        registry.recipe("mini", "a", adapters=[Adapter(path=str(tmp_path / "absent.safetensors"))])
    with pytest.raises(ValueError, match=r"models folder .*absent does not exist"):
        Registry([tmp_path / "absent"])


def test_prompt_lists_are_the_text_files_of_the_presets() -> None:
    registry = Registry()
    for name in registry.prompt_lists():
        assert registry.prompts(name)
    with pytest.raises(ValueError, match="prompts 'absent' is unknown"):
        registry.prompts("absent")


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, pipelines.catalog.registry, pipelines.video; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


SIGMAS = {
    "lightx2v": [1, 0.9375, 0.8333, 0.625, 0],
    "self-forcing-plus": [1, 0.9375, 0.8333, 0.625, 0],
    "fastwan": [1, 0.757, 0.522, 0],
    "causvid": [1, 0.757, 0.522, 0],
}


@pytest.mark.parametrize("recipe", SIGMAS)
def test_presets_of_published_students_step_through_the_levels_of_their_training(
    recipe: str,
) -> None:
    students = {n: e for n, e in Registry().models().items() if n.endswith(recipe)}
    assert students
    for entry in students.values():
        spec = entry.preset.sampler
        levels = sigma_schedule(spec.num_inference_steps, spec.flow_shift, spec.sigmas)
        assert levels.tolist() == pytest.approx(SIGMAS[recipe], abs=1e-4)
        assert (spec.name, spec.forwards_per_step, spec.problem()) == ("lcm", 1, None)
        assert entry.preset.kind == "distilled"


def test_every_preset_says_where_it_comes_from_and_stands_on_a_preset_that_is_whole() -> None:
    entries = Registry().models()
    presets = {n: e.preset for n, e in entries.items() if n.startswith(("wan2.1", "tiny-wan"))}
    assert len(presets) == 13
    for preset in presets.values():
        assert preset.license
        if preset.base:
            assert preset.files or preset.name == I2V
            assert presets[preset.base].base is None
            assert presets[preset.base].takes_image == preset.takes_image or preset.name == I2V
        for field in ("in_channels", "image_dim"):
            known = (preset.architecture or {}).get(field) is not None
            assert known == (preset.takes_image and not preset.name.startswith("tiny"))


I2V = "tiny-wan-i2v"  # its base brings the VAE and the text encoder only


def test_models_folders_are_those_of_the_environment_where_none_is_named(
    own_models: Path, tmp_path: Path
) -> None:
    folders = os.pathsep.join(map(str, (tmp_path / "absent", own_models)))
    code = "from pipelines.catalog.registry import Registry as R; r = R(); "
    code += "print(*r.model_dirs, r.download_dir, r.entry('mini').folder)"
    environment = os.environ | {"STUDIO_MODELS": folders}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(own_models), str(own_models), str(own_models / "mini")]
