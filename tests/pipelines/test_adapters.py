import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.catalog.entries import adapter_sampler
from pipelines.lora.apply import MAX_RESIDENT, apply_adapters
from pipelines.lora.file import save_lora
from pipelines.recipe import Adapter, SamplerSpec
from tests.pipelines.conftest import ATTENTION, lora_tensors, velocity

RANK = 4


def expected_velocity(models_dir: Path, changes: list[tuple[dict[str, Tensor], float]]) -> Tensor:
    """The output of a fresh base with scale * B @ A added for every (tensors, scale)."""
    fresh = WanTransformer3DModel.from_pretrained(models_dir / "mini" / "transformer")
    for tensors, scale in changes:
        for name in {key.split(".lora_")[0] for key in tensors}:
            down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            fresh.get_submodule(name).weight.data += scale * up @ down
    return velocity(fresh)


def diffusers_file(path: Path, seed: int, alpha: float | None = None) -> Path:
    metadata = None
    if alpha is not None:
        settings = {"transformer.r": RANK, "transformer.lora_alpha": alpha}
        metadata = {"lora_adapter_metadata": json.dumps(settings)}
    tensors = {f"transformer.{name}": tensor for name, tensor in lora_tensors(seed).items()}
    save_file(tensors, path, metadata=metadata)
    return path


def adapter(path: Path, **settings: float | None) -> Adapter:
    return Adapter.model_validate({"path": str(path), **settings})


@pytest.mark.parametrize(
    ("stored_alpha", "settings", "scale"),
    [
        (None, {}, 1.0),
        (2.0, {}, 0.5),
        (2.0, {"strength": 3.0}, 1.5),
        (2.0, {"strength": -0.5, "lora_alpha": 16.0}, -2.0),
        (None, {"lora_alpha": 1.0}, 0.25),
    ],
)
def test_the_weight_change_is_strength_times_alpha_over_rank_times_b_a(
    stored_alpha: float | None,
    settings: dict[str, float],
    scale: float,
    transformer: WanTransformer3DModel,
    models_dir: Path,
    tmp_path: Path,
) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", seed=1, alpha=stored_alpha)
    assert apply_adapters(transformer, [adapter(path, **settings)]) == ()
    expected = expected_velocity(models_dir, [(lora_tensors(1), scale)])
    assert (expected - expected_velocity(models_dir, [])).abs().max() > 1e-2
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"lora_alpha": 0.0}, {"strength": 0.0}])
def test_alpha_zero_and_strength_zero_are_the_base_exactly(
    settings: dict[str, float], transformer: WanTransformer3DModel, lora_file: Path
) -> None:
    base = velocity(transformer)
    apply_adapters(transformer, [adapter(lora_file, **settings)])
    assert torch.equal(velocity(transformer), base)


def test_switching_a_to_b_to_a_is_a_again_and_none_is_the_base(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    base = velocity(transformer)
    first = adapter(diffusers_file(tmp_path / "a.safetensors", seed=1, alpha=2.0))
    second = adapter(diffusers_file(tmp_path / "b.safetensors", seed=2))
    outputs = []
    for adapters in ([first], [second], [first], [], [first.model_copy(update={"strength": 2.0})]):
        apply_adapters(transformer, adapters)
        outputs.append(velocity(transformer))
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[3], base)
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[4])
    apply_adapters(transformer, [first])
    assert torch.equal(velocity(transformer), outputs[0])


def test_an_alpha_given_once_is_forgotten_when_it_is_left_out(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    path = diffusers_file(tmp_path / "a.safetensors", seed=1, alpha=2.0)
    apply_adapters(transformer, [adapter(path)])
    own = velocity(transformer)
    apply_adapters(transformer, [adapter(path, lora_alpha=9.0)])
    assert not torch.equal(velocity(transformer), own)
    apply_adapters(transformer, [adapter(path)])
    assert torch.equal(velocity(transformer), own)


def test_several_adapters_add_up(
    transformer: WanTransformer3DModel, models_dir: Path, tmp_path: Path
) -> None:
    first = diffusers_file(tmp_path / "a.safetensors", seed=1, alpha=2.0)
    second = diffusers_file(tmp_path / "b.safetensors", seed=2)
    apply_adapters(transformer, [adapter(first), adapter(second, strength=0.3)])
    expected = expected_velocity(models_dir, [(lora_tensors(1), 0.5), (lora_tensors(2), 0.3)])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)


def test_alpha_tensors_and_ranks_of_single_layers_are_honoured(
    transformer: WanTransformer3DModel, models_dir: Path, tmp_path: Path
) -> None:
    tensors = lora_tensors(1)
    narrow = "blocks.1.attn1.to_q"
    tensors[f"{narrow}.lora_A.weight"] = tensors[f"{narrow}.lora_A.weight"][:2].clone()
    tensors[f"{narrow}.lora_B.weight"] = tensors[f"{narrow}.lora_B.weight"][:, :2].clone()
    alphas = {f"transformer.{narrow}.alpha": torch.tensor(6.0)}
    path = tmp_path / "a.safetensors"
    save_file({f"transformer.{k}": v for k, v in tensors.items()} | alphas, path)
    apply_adapters(transformer, [adapter(path)])
    one = {k: v for k, v in tensors.items() if k.startswith(narrow)}
    rest = {k: v for k, v in tensors.items() if not k.startswith(narrow)}
    expected = expected_velocity(models_dir, [(one, 3.0), (rest, 1.0)])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_folder_that_peft_saved_works_like_the_peft_model(
    use_rslora: bool, models_dir: Path, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "proj_out"],
        init_lora_weights=False,
        use_rslora=use_rslora,
    )
    source = WanTransformer3DModel.from_pretrained(models_dir / "mini" / "transformer")
    peft_model = get_peft_model(source, config)
    peft_model.save_pretrained(tmp_path / "peft")
    apply_adapters(transformer, [adapter(tmp_path / "peft")])
    torch.testing.assert_close(velocity(transformer), velocity(source), atol=1e-6, rtol=0)


def test_a_saved_lora_works_the_same_here_and_in_stock_diffusers(
    models_dir: Path, transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trained = WanTransformer3DModel.from_pretrained(models_dir / "mini" / "transformer")
    config = LoraConfig(r=4, lora_alpha=10, target_modules=list(ATTENTION), init_lora_weights=False)
    inject_adapter_in_model(config, trained, adapter_name="default")
    path = tmp_path / "lora.safetensors"
    sampler = SamplerSpec.model_validate({"num_inference_steps": 4, "guidance_scale": 1.0})
    save_lora(trained.state_dict(), path, rank=4, alpha=10, sampler=sampler)

    apply_adapters(transformer, [adapter(path)])
    torch.testing.assert_close(velocity(transformer), velocity(trained), atol=1e-6, rtol=0)
    pipeline = WanPipeline.from_pretrained(models_dir / "mini")
    pipeline.load_lora_weights(path)
    torch.testing.assert_close(velocity(pipeline.transformer), velocity(trained), atol=1e-6, rtol=0)
    assert adapter_sampler(path) == sampler
    assert {name.split(".")[0] for name in load_file(path)} == {"transformer"}


def test_a_file_that_fits_in_part_is_applied_and_reported(
    transformer: WanTransformer3DModel, models_dir: Path, tmp_path: Path
) -> None:
    tensors = lora_tensors(1)
    foreign = {
        name.replace("blocks.1", "blocks.9"): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith("blocks.1.attn1.to_q")
    }
    path = tmp_path / "a.safetensors"
    save_file({f"transformer.{k}": v for k, v in (tensors | foreign).items()}, path)
    for _ in range(2):  # the note comes again when nothing has to be read
        (note,) = apply_adapters(transformer, [adapter(path)])
        assert "8 of 9 layers fit" in note
        assert "blocks.9.attn1.to_q" in note
    expected = expected_velocity(models_dir, [(tensors, 1.0)])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)


def test_only_the_loras_used_last_stay_attached(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    for seed in range(MAX_RESIDENT + 3):
        apply_adapters(
            transformer, [adapter(diffusers_file(tmp_path / f"{seed}.safetensors", seed))]
        )
        assert len(transformer.peft_config) <= MAX_RESIDENT
    apply_adapters(transformer, [adapter(tmp_path / "0.safetensors")])
    again = velocity(transformer)
    fresh = WanTransformer3DModel.from_pretrained(transformer.config._name_or_path)
    apply_adapters(fresh, [adapter(tmp_path / "0.safetensors")])
    assert torch.equal(velocity(fresh), again)
