"""Traps of the libraries below, each shown to be there, and not to be fallen into here."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from pipelines.catalog.registry import Registry
from pipelines.files.weight_names import TRANSFORMER
from pipelines.generate import Clip, generate
from pipelines.lora.apply import apply_adapters
from pipelines.model_cache import ModelCache
from pipelines.models.loading import load_components
from pipelines.recipe import Adapter
from pipelines.sampling.flow import sigma_schedule
from tests.pipelines.conftest import TEXT_LENGTH, lora_tensors, velocity

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_patch_embedding_has_five_dimensions_on_both_sides(models_dir: Path) -> None:
    """Taking every large weight for a matrix breaks on it; renaming does not touch it."""
    weights = load_file(models_dir / "mini" / "transformer" / WEIGHTS)
    name = "patch_embedding.weight"
    assert weights[name].ndim == 5
    assert TRANSFORMER.to_native(name) == name


def test_switching_adapters_leaves_a_frozen_network_frozen(
    transformer: WanTransformer3DModel, lora_file: Path
) -> None:
    """PEFT's `set_adapter` makes the adapter's weights require gradients, whoever froze them."""
    apply_adapters(transformer, [Adapter(path=str(lora_file))])
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    lora = next(n for n, _ in transformer.named_parameters() if ".lora_A." in n)
    adapter = lora.split(".lora_A.")[1].split(".")[0]
    transformer.requires_grad_(False).set_adapter(adapter)
    assert any(parameter.requires_grad for parameter in transformer.parameters())
    apply_adapters(transformer, [Adapter(path=str(lora_file), strength=0.5)])
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_a_lora_by_wans_own_names_is_applied_where_diffusers_attaches_nothing(
    transformer: WanTransformer3DModel, models_dir: Path, tmp_path: Path
) -> None:
    native = {}
    for name, tensor in lora_tensors(1).items():
        layer, _, part = name.partition(".lora_")
        native[f"{TRANSFORMER.to_native(layer)}.lora_{part}"] = tensor
    save_file(native, tmp_path / "native.safetensors")
    base = velocity(transformer)
    pipeline = WanPipeline.from_pretrained(models_dir / "mini")
    pipeline.load_lora_weights(tmp_path, weight_name="native.safetensors")
    assert torch.equal(velocity(pipeline.transformer), base)  # and no error
    apply_adapters(transformer, [Adapter(path=str(tmp_path / "native.safetensors"))])
    assert (velocity(transformer) - base).abs().max() > 1e-3


def test_the_shift_is_applied_once() -> None:
    stock = FlowMatchEulerDiscreteScheduler(shift=5.0)
    stock.set_timesteps(4)
    twice = torch.tensor([1.0, 0.9097, 0.7173, 0.0244, 0.0])
    torch.testing.assert_close(stock.sigmas, twice, atol=1e-4, rtol=0)
    once = torch.tensor([1.0, 0.9375, 0.8333, 0.625, 0.0])
    torch.testing.assert_close(sigma_schedule(4, 5.0), once, atol=1e-4, rtol=0)


def test_prompts_are_as_long_as_the_checkpoint_was_trained_with(models_dir: Path) -> None:
    """Stock `encode_prompt` pads to 226 tokens unless told; padding is attended to."""
    pipeline = WanPipeline.from_pretrained(models_dir / "mini")
    stock, _ = pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False)
    assert stock.shape[1] == 226
    ours = load_components(models_dir / "mini", TEXT_LENGTH, "cpu").encode_prompt(["a red circle"])
    assert ours.shape[1] == TEXT_LENGTH
    assert Registry().models()["wan2.1-t2v-1.3b"].preset.text_length == 512


def test_fastwan_runs_without_its_sparse_gates_and_says_so(
    models_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models_dir / "mini", tmp_path / "models" / "fastwan"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanDMDPipeline"}))
    file = folder / "transformer" / WEIGHTS
    gates = {f"blocks.{n}.to_gate_compress.weight": torch.ones(32, 32) for n in range(2)}
    save_file(load_file(file) | gates, file, metadata={"format": "pt"})
    registry = Registry([tmp_path / "models"])
    recipe = registry.recipe("fastwan", "a red circle")
    *_, clip = generate(recipe, ModelCache(registry, "cpu"), tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert any("trained with sparse attention (VSA)" in note for note in clip.notes)
