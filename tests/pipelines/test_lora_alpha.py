"""The alpha of a LoRA: told without its weights, and what it scales."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from pipelines.files.lora_alpha import own_alpha
from pipelines.lora.apply import apply_adapters
from pipelines.recipe import Adapter
from tests.pipelines.conftest import velocity
from tests.pipelines.test_lora_flavours import RANK, alphas, deltas, factor_tensors


def test_an_own_alpha_is_one_number_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = factor_tensors("lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight")
    one, *others = alphas("lora_unet_{flat}")
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
        save_file(tensors | {name: torch.tensor(2, dtype=dtype) for name in (one, *others)}, path)
        assert own_alpha(path) == 2
    save_file(tensors | {one: torch.tensor(2.5)}, path)  # the others have their rank
    with pytest.raises(ValueError, match=r"has alphas from 2\.5 to 4, .*; compare strengths"):
        own_alpha(path)
    save_file(tensors | {one: torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"has no number in {one}"):
        own_alpha(path)
    save_file({f"diffusion_model.{name}": delta for name, delta in deltas().items()}, path)
    with pytest.raises(ValueError, match="has no alpha"):
        own_alpha(path)
    torch.save(tensors | {one: torch.tensor(2.0)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt keeps its alpha in a pickle"):
        own_alpha(tmp_path / "a.pt")


def test_a_bias_of_b_scales_with_alpha_as_peft_does(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(3)
    layer = "transformer.blocks.0.attn1.to_q"
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(RANK, 32, generator=draw),
        f"{layer}.lora_B.weight": torch.randn(32, RANK, generator=draw),
        f"{layer}.lora_B.bias": torch.randn(32, generator=draw),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    fresh = WanTransformer3DModel.from_pretrained(transformer.config._name_or_path)
    module = fresh.get_submodule("blocks.0.attn1.to_q").requires_grad_(False)
    scale = 0.5 * 6.0 / RANK
    module.weight += scale * tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    module.bias += scale * tensors[f"{layer}.lora_B.bias"]
    adapter = Adapter(path=str(tmp_path / "a.safetensors"), strength=0.5, lora_alpha=6.0)
    apply_adapters(transformer, [adapter])
    torch.testing.assert_close(velocity(transformer), velocity(fresh), atol=1e-5, rtol=0)
