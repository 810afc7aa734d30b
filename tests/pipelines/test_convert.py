import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.formats import weights
from pipelines.generate import Clip, generate
from pipelines.model_cache import ModelCache
from pipelines.models.loading import load_components, load_transformer
from pipelines.sampling.guidance_embedder import time_embedding
from pipelines.video import read_video
from tests.pipelines.official_wan import NUM_HEADS, random_weights

TINY = "tiny-wan"
SHARD_INDEX = "diffusion_pytorch_model.safetensors.index.json"
NETWORKS = ("transformer", "vae", "text_encoder")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyWan in Wan's own layout (`native`), and that one back again (`back`). Read only."""
    folder = tmp_path_factory.mktemp("converted")
    assert main(["convert", TINY, str(folder / "native"), "--to", "native"]) == 0
    back = ["convert", "native", str(folder / "back"), "--to", "diffusers"]
    assert main([*back, "--models", str(folder)]) == 0
    return folder


def tiny_folder() -> Path:
    folder = Registry().entry(TINY).folder
    assert folder is not None
    return folder


def weights_of(part: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in part.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def assert_same_weights(part: Path, other: Path) -> None:
    here, there = weights_of(part), weights_of(other)
    assert here.keys() == there.keys()
    assert all(tensor.dtype == there[name].dtype for name, tensor in here.items())
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_to_native_and_back_keeps_every_tensor_and_its_dtype(converted: Path) -> None:
    for part in NETWORKS:
        assert_same_weights(tiny_folder() / part, converted / "back" / part)


def test_a_native_folder_has_the_names_and_files_of_wan_video(converted: Path) -> None:
    folder = converted / "native"
    names = weights_of(folder)
    assert names["blocks.0.norm3.weight"].shape == (192,)
    assert names["blocks.7.cross_attn.norm_k.weight"].shape == (192,)
    assert names["head.modulation"].shape == (1, 2, 192)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "t2v"
    assert (config["dim"], config["num_heads"], config["num_layers"]) == (192, 4, 8)
    vae = torch.load(folder / "Wan2.1_VAE.pth", weights_only=True)
    assert {"conv1.weight", "decoder.upsamples.2.time_conv.weight"} < vae.keys()
    text = torch.load(folder / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    assert {"token_embedding.weight", "blocks.0.ffn.gate.0.weight"} < text.keys()
    assert (folder / "google" / "umt5-xxl" / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_native_folder_loads_as_the_diffusers_one_does(
    dtype: torch.dtype, converted: Path
) -> None:
    ours = load_components(converted / "native", 64, "cpu", dtype)
    diffusers = load_components(tiny_folder(), 64, "cpu", dtype)
    for part in NETWORKS:
        state, expected = getattr(ours, part).state_dict(), getattr(diffusers, part).state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in state.items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected[name]), name
    assert ours.vae.config.latents_mean == diffusers.vae.config.latents_mean
    assert ours.text_encoder.config.num_heads == diffusers.text_encoder.config.num_heads


def test_a_native_folder_makes_the_same_pixels_by_its_name(converted: Path, tmp_path: Path) -> None:
    registry = Registry([converted])
    models = ModelCache(registry, "cpu")
    frames = []
    for model in (TINY, "native", "back"):
        small = {"width": 32, "height": 32, "num_frames": 5}
        recipe = registry.recipe(
            model, "a small red circle moving left", sampler={"num_inference_steps": 2}, **small
        )
        *_, clip = generate(recipe, models, tmp_path / f"{model}.mp4")
        assert isinstance(clip, Clip)
        assert recipe.sampler.flow_shift == 3.0
        frames.append(read_video(clip.path))
    assert all((video == frames[0]).all() for video in frames)


def test_stock_diffusers_loads_a_conversion(converted: Path) -> None:
    ours = WanPipeline.from_pretrained(converted / "back")
    stock = WanPipeline.from_pretrained(tiny_folder())
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    call |= {"output_type": "np", "max_sequence_length": 64, "prompt": "a red circle"}
    videos = [
        pipe(**call, generator=torch.Generator().manual_seed(0)).frames for pipe in (ours, stock)
    ]
    assert (videos[0] == videos[1]).all()
    assert ours.scheduler.config.flow_shift == 3.0


def test_comfyui_gets_one_file_a_kind_and_it_is_a_model_here(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comfy"
    command = ["convert", "mini", str(out), "--to", "comfyui", "--models", str(models_dir)]
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert "ComfyUI takes every head to have 128 channels; here one has 16" in printed
    assert "the tokenizer has no spiece.model" in printed
    kinds = ("diffusion_models", "text_encoders", "vae")
    assert sorted(path.name for path in out.glob("*/")) == sorted(kinds)
    files = {kind: load_file(out / kind / "comfy.safetensors") for kind in kinds}
    assert "blocks.0.self_attn.q.weight" in files["diffusion_models"]
    assert "decoder.middle.0.residual.0.gamma" in files["vae"]
    assert "encoder.block.0.layer.1.DenseReluDense.wi_1.weight" in files["text_encoders"]
    single = out / "diffusion_models" / "comfy.safetensors"
    back = ["convert", str(single), str(tmp_path / "back"), "--to", "diffusers"]
    assert main([*back, "--models", str(models_dir)]) == 0
    assert_same_weights(models_dir / "mini" / "transformer", tmp_path / "back")
    loaded = WanTransformer3DModel.from_pretrained(tmp_path / "back")
    assert loaded.config.num_attention_heads == 2


def test_a_transformer_alone_gives_a_folder_that_diffusers_loads_and_keeps_its_guidance(
    tmp_path: Path, models_dir: Path
) -> None:
    native = random_weights(guidance=True)
    content = {"generator": {f"model.{n}": t.half() for n, t in native.items()}}
    torch.save(content, tmp_path / "m.pt")
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": NUM_HEADS}))
    assert main(["convert", str(tmp_path / "m.pt"), str(tmp_path / "a"), "--to", "diffusers"]) == 0
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "a")
    assert (stock.config.num_attention_heads, stock.dtype) == (NUM_HEADS, torch.float32)
    assert stored_dtypes(tmp_path / "a") == {torch.float16}
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "native"]) == 0
    back = weights_of(tmp_path / "b")
    assert back.keys() == native.keys()
    assert all(torch.equal(tensor, native[name].half()) for name, tensor in back.items())
    for path in ("m.pt", "a", "b"):
        embedding = time_embedding(load_transformer(tmp_path / path, torch.float32, "cpu"))
        assert embedding is not None
        assert embedding.rounded == {"own"}, path


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in weights_of(folder).values()}


def test_a_student_keeps_its_base_and_sampler(tmp_path: Path, models_dir: Path) -> None:
    models = Path(shutil.copytree(models_dir, tmp_path / "models"))
    student = models / "student"
    shutil.copytree(models / "mini" / "transformer", student / "transformer")
    sampler = {"name": "lcm", "num_inference_steps": 2, "guidance_scale": 1.0}
    spec = {"base": "mini", "text_length": 12, "sampler": sampler | {"guidance_mode": "off"}}
    (student / "sampler.json").write_text(json.dumps(spec))
    for layout in ("native", "comfyui"):
        out = models / layout
        command = ["convert", "student", str(out), "--to", layout, "--models", str(models)]
        assert main(command) == 0
    entries = Registry([models]).models()
    for name in ("native", "comfyui/diffusion_models/comfyui.safetensors"):
        assert entries[name].missing is None
        assert entries[name].base == "mini"
        assert entries[name].preset.sampler == entries["student"].preset.sampler


def test_large_weights_come_in_shards_with_an_index(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.formats.writers.SHARD_BYTES", 3_000_000)
    for layout, source in (("native", TINY), ("diffusers", str(tmp_path / "native"))):
        assert main(["convert", source, str(tmp_path / layout), "--to", layout]) == 0
    assert len(list((tmp_path / "native").glob("*-of-*.safetensors"))) == 4
    assert (tmp_path / "diffusers" / "transformer" / SHARD_INDEX).is_file()
    assert_same_weights(tiny_folder() / "transformer", tmp_path / "diffusers" / "transformer")
    WanPipeline.from_pretrained(tmp_path / "diffusers")
    (tmp_path / "native" / SHARD_INDEX).unlink()  # the names of the shards say enough
    assert Registry().entry(str(tmp_path / "native")).missing is None
    shard = tmp_path / "native" / "diffusion_pytorch_model-00002-of-00004.safetensors"
    shard.unlink()
    missing = Registry().entry(str(tmp_path / "native")).missing or ""
    assert "diffusion_pytorch_model-00002-of-00004.safetensors is missing" in missing


def test_no_more_than_two_tensors_are_in_memory_at_once(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, most = weights._read, 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal most
        tensor = read(*arguments)
        kept.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in kept))
        return tensor

    kept: list[weakref.ref[torch.Tensor]] = []
    monkeypatch.setattr("pipelines.formats.weights._read", counted)
    tensors = weights.open_weights([converted / "native" / "diffusion_pytorch_model.safetensors"])
    weights.save_safetensors(tmp_path / "copy.safetensors", tensors.tensors, {})
    assert len(kept) == len(tensors.tensors)
    assert most <= 2


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    return [TINY, str(tmp_path / "out")]


def take_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir()
    return [TINY, str(tmp_path / "out")]


def choose_a_lora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    return ["tiny-dmd4", str(tmp_path / "out")]


def choose_what_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    return ["wan2.1-t2v-14b", str(tmp_path / "out")]


def choose_a_vae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    vae = tiny_folder() / "vae" / "diffusion_pytorch_model.safetensors"
    return [str(vae), str(tmp_path / "out")]


def break_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    def fail(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pipelines.formats.writers._write_pickle", fail)
    return [TINY, str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (fill_the_disk, "needs 0.0 GB but its disk has 0.0 GB left"),
        (take_the_name, "exists already; give the name of a new folder"),
        (choose_a_lora, "is a LoRA on tiny-wan; merge it into its base first"),
        (choose_what_is_not_here, "cannot be converted: .* is not here"),
        (choose_a_vae, "holds a VAE, and only Wan2.1's transformer can be used"),
        (break_off, "no space left on device"),
    ],
)
def test_a_conversion_that_cannot_be_leaves_nothing_and_exits_with_2(
    prepare: Callable[[pytest.MonkeyPatch, Path], list[str]],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = prepare(monkeypatch, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", *arguments, "--to", "native"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before
