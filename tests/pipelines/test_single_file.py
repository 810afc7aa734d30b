"""Transformers without the rest of their model, as models by name."""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.files.weight_names import TRANSFORMER
from pipelines.generate import Clip, generate
from pipelines.model_cache import ModelCache
from pipelines.models.loading import load_transformer
from pipelines.recipe import SamplerSpec
from pipelines.video import read_video

FEW = {"name": "lcm", "num_inference_steps": 2, "guidance_scale": 1.0, "guidance_mode": "off"}
SPEC = {"base": "mini", "sampler": FEW, "text_length": 12, "width": 32, "height": 32}
SPEC |= {"num_frames": 5, "fps": 8}
HEADS = {"config": json.dumps({"attention_head_dim": 16, "num_attention_heads": 2})}


@pytest.fixture
def own_models(models_dir: Path, tmp_path: Path) -> Path:
    """A models folder that a test may change."""
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


def native_weights(models_dir: Path, guidance: bool = False) -> dict[str, Tensor]:
    """The weights of `mini` by Wan's own names, every one a little different."""
    file = models_dir / "mini" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {}
    for name, tensor in load_file(file).items():
        native = TRANSFORMER.to_native(name)
        assert native is not None
        weights[native] = tensor * 1.01
    for layer in ("0", "2") if guidance else ():
        weights[f"guidance_embedding.{layer}.weight"] = torch.eye(32)
        weights[f"guidance_embedding.{layer}.bias"] = torch.zeros(32)
    return weights


def as_lightx2v(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path.with_suffix(".safetensors"), metadata=HEADS)
    return path.with_suffix(".safetensors")


def as_comfyui(path: Path, weights: dict[str, Tensor]) -> Path:
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    return as_lightx2v(path, prefixed)


def as_pickle(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save(weights, path.with_suffix(".bin"))
    return path.with_suffix(".bin")


def as_self_forcing(path: Path, weights: dict[str, Tensor]) -> Path:
    """A trainer's checkpoint: the averaged generator is the one to use."""
    wrapped = {
        f"model._fsdp_wrapped_module.{name.replace('ffn.', '_checkpoint_wrapped_module.ffn.')}": t
        for name, t in weights.items()
    }
    raw = {name: torch.zeros_like(tensor) for name, tensor in wrapped.items()}
    content = {"generator": raw, "critic": raw, "generator_ema": wrapped, "step": 600}
    torch.save(content, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def with_heads(path: Path) -> None:
    (path.parent / "config.json").write_text(json.dumps({"num_heads": 2}))


@pytest.mark.parametrize("write", [as_lightx2v, as_comfyui, as_pickle, as_self_forcing])
def test_every_kind_of_file_loads_with_equal_weights(
    write: Callable[[Path, dict[str, Tensor]], Path], models_dir: Path, tmp_path: Path
) -> None:
    weights = native_weights(models_dir)
    path = write(tmp_path / "student", weights)
    with_heads(path)
    state = load_transformer(path, torch.float32, "cpu").state_dict()
    assert len(state) == len(weights)
    for name, tensor in weights.items():
        assert torch.equal(state[TRANSFORMER.to_diffusers(name) or ""], tensor)


def test_a_safetensors_file_is_a_model_with_a_base_of_its_size(
    own_models: Path, tmp_path: Path
) -> None:
    path = as_lightx2v(own_models / "distilled", native_weights(own_models))
    registry = Registry([own_models])
    entry = registry.models()["distilled.safetensors"]
    assert (entry.missing, entry.base, entry.transformer) == (None, "mini", path)
    assert entry.preset.sampler == registry.models()["mini"].preset.sampler
    models = ModelCache(registry, "cpu")
    videos = []
    for name in ("mini", "distilled.safetensors", str(path)):
        recipe = registry.recipe(name, "a red circle")
        *_, clip = generate(recipe, models, tmp_path / "clip.mp4")
        assert isinstance(clip, Clip)
        videos.append(read_video(clip.path))
    assert (videos[1] == videos[2]).all()
    assert (videos[0] != videos[1]).any()


def test_the_json_beside_a_file_names_its_base_and_sampler(own_models: Path) -> None:
    path = as_self_forcing(own_models / "model", native_weights(own_models))
    with_heads(path)
    before = Registry([own_models]).models()["model.pt"]
    assert "is a pickle, which is not opened to look; say in model.json" in (before.missing or "")
    path.with_suffix(".json").write_text(json.dumps(SPEC | {"title": "Self-Forcing"}))
    registry = Registry([own_models])
    entry = registry.models()["model.pt"]
    assert (entry.missing, entry.base, entry.preset.title) == (None, "mini", "Self-Forcing")
    assert entry.preset.sampler == SamplerSpec.model_validate(FEW)
    components = ModelCache(registry, "cpu").components(registry.recipe("model.pt", "a"), entry)
    state = components.transformer.state_dict()
    assert torch.equal(state["proj_out.bias"], native_weights(own_models)["head.head.bias"])


def test_a_guidance_embedded_folder_is_sampled_with_one_forward_a_step(own_models: Path) -> None:
    folder = own_models / "checkpoint-500"
    folder.mkdir()
    weights = native_weights(own_models, guidance=True)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata=HEADS)
    registry = Registry([own_models])
    entry = registry.models()["checkpoint-500"]
    assert entry.missing is None
    assert entry.preset.sampler.guidance_mode == "embedded"
    assert registry.recipe("checkpoint-500", "a").num_forwards == 3
    assert registry.entry(str(folder)).preset.name == "checkpoint-500"


def test_a_preset_may_stand_on_another_model(
    own_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = tmp_path / "presets" / "models"
    presets.mkdir(parents=True)
    text = "title: T\nlicense: L\ntext_length: 12\nsource: org/mini\nsampler: {flow_shift: 2.0}\n"
    (presets / "whole.yaml").write_text(text)
    text += "base: whole\nfiles: [part/student.safetensors]\nkind: distilled\n"
    (presets / "alone.yaml").write_text(text.replace("org/mini", "org/students"))
    monkeypatch.setattr("pipelines.catalog.registry.PRESETS", tmp_path / "presets")
    registry = Registry([own_models])
    missing = registry.models()["alone"].missing or ""
    assert "org/students is not here; run `python -m pipelines download alone" in missing
    (own_models / "students" / "part").mkdir(parents=True)
    path = as_lightx2v(own_models / "students" / "part" / "student", native_weights(own_models))
    entries = registry.models()
    assert (entries["alone"].missing, entries["alone"].transformer) == (None, path)
    assert entries["alone"].folder == own_models / "mini"
    assert not any("student" in name for name in entries)  # it is the preset, not one more model
    shutil.rmtree(own_models / "mini")
    assert "its base whole cannot be used" in (registry.models()["alone"].missing or "")


class Code:
    """What a pickle can hide: a call at the time of loading."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (print, ("code ran",))


def write_code(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"generator": weights, "config": Code()}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def write_plain_pickle(path: Path, weights: dict[str, Tensor]) -> Path:
    path.with_suffix(".pt").write_bytes(pickle.dumps(Code()))
    return path.with_suffix(".pt")


def write_truncated(path: Path, weights: dict[str, Tensor]) -> Path:
    file = as_lightx2v(path, weights)
    file.write_bytes(file.read_bytes()[:-7])
    return file


def write_truncated_pickle(path: Path, weights: dict[str, Tensor]) -> Path:
    file = as_pickle(path, weights)
    file.write_bytes(file.read_bytes()[:-1000])
    return file


def write_hollow_pickle(path: Path, weights: dict[str, Tensor]) -> Path:
    file = path.with_suffix(".pt")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/version", "3")
    return file


def write_quantised(path: Path, weights: dict[str, Tensor]) -> Path:
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
    return as_lightx2v(path, small)


def write_scaled(path: Path, weights: dict[str, Tensor]) -> Path:
    return as_lightx2v(path, weights | {"blocks.0.ffn.0.weight_scale": torch.ones(48, 1)})


def write_vace(path: Path, weights: dict[str, Tensor]) -> Path:
    return as_lightx2v(path, weights | {"vace_blocks.0.norm3.weight": torch.ones(32)})


def write_another_network(path: Path, weights: dict[str, Tensor]) -> Path:
    return as_lightx2v(path, {"conv.weight": torch.zeros(3)})


def write_half(path: Path, weights: dict[str, Tensor]) -> Path:
    del weights["blocks.1.ffn.2.weight"]
    return as_lightx2v(path, weights)


def write_numbers(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"generator": {"step": 5}}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_code, "a pickle that holds more than weights, so it is not opened"),
        (write_plain_pickle, "damaged, or a pickle from before PyTorch 1.6"),
        (write_truncated, "are damaged"),
        (write_truncated_pickle, "damaged, or a pickle from before PyTorch 1.6"),
        (write_hollow_pickle, "are damaged"),
        (write_quantised, "quantised"),
        (write_scaled, "holds a quantised transformer, and only Wan2.1's transformer"),
        (write_vace, "holds a VACE transformer"),
        (write_another_network, "holds no Wan2.1 transformer"),
        (write_half, r"not a whole Wan2.1 network \(1 tensors do not fit, the first is blocks.1"),
        (write_numbers, "do not hold tensors by name"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence_with_exit_code_2(
    write: Callable[[Path, dict[str, Tensor]], Path],
    message: str,
    own_models: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(own_models / "student", native_weights(own_models))
    path.with_suffix(".json").write_text(json.dumps(SPEC))
    out = own_models / "clip.mp4"
    command = ["generate", "--models", str(own_models), "--prompt", "a", "--out", str(out)]
    assert main([*command, "--model", str(path)]) == 2
    printed = capsys.readouterr()
    assert "code ran" not in printed.out
    error = printed.err.splitlines()[-1]
    assert re.search(message, error)
    assert not out.exists()


def test_a_file_without_a_base_here_says_so(own_models: Path) -> None:
    weights = native_weights(own_models)
    alone = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1")}
    path = as_lightx2v(own_models / "short", alone)
    missing = Registry([own_models]).models()["short.safetensors"].missing or ""
    assert "no model of its size is here to bring the VAE" in missing
    path.with_suffix(".json").write_text(json.dumps(SPEC))
    assert Registry([own_models]).models()["short.safetensors"].missing is None
    path.with_suffix(".json").write_text(json.dumps(SPEC | {"base": "tiny-wan"}))
    missing = Registry([own_models]).models()["short.safetensors"].missing or ""
    assert "does not fit the VAE and the text encoder of tiny-wan" in missing
