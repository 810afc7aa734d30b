"""Every flavour of LoRA file computes what the formula says, live and merged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from pipelines.files.lora_alpha import own_alpha
from pipelines.files.lora_outline import lora_shapes, outline, summary
from pipelines.lora.apply import apply_adapters
from pipelines.lora.file import read_lora, stack_loras
from pipelines.lora.merge import merge_loras
from pipelines.recipe import Adapter
from tests.pipelines.conftest import velocity

RANK = 4
ALPHA = 2.0
Write = Callable[[Path], Path]

# Wan's own names of some layers of every kind, diffusers' names, and [out, in] in `mini`.
LAYERS = {
    "blocks.0.self_attn.q": ("blocks.0.attn1.to_q", 32, 32),
    "blocks.1.self_attn.o": ("blocks.1.attn1.to_out.0", 32, 32),
    "blocks.1.cross_attn.k": ("blocks.1.attn2.to_k", 32, 32),
    "blocks.0.ffn.0": ("blocks.0.ffn.net.0.proj", 48, 32),
    "blocks.0.ffn.2": ("blocks.0.ffn.net.2", 32, 48),
    "time_projection.1": ("condition_embedder.time_proj", 192, 32),
    "head.head": ("proj_out", 64, 32),
}
# Deltas by LightX2V's names, and the parameters that they change.
DELTAS = {
    "blocks.0.self_attn.q.diff_b": ("blocks.0.attn1.to_q.bias", (32,)),
    "blocks.1.cross_attn.v.diff_b": ("blocks.1.attn2.to_v.bias", (32,)),
    "blocks.1.norm3.diff": ("blocks.1.norm2.weight", (32,)),
    "blocks.1.norm3.diff_b": ("blocks.1.norm2.bias", (32,)),
    "blocks.0.self_attn.norm_q.diff": ("blocks.0.attn1.norm_q.weight", (32,)),
    "blocks.1.diff_m": ("blocks.1.scale_shift_table", (1, 6, 32)),
    "head.diff_m": ("scale_shift_table", (1, 2, 32)),
    "patch_embedding.diff": ("patch_embedding.weight", (32, 16, 1, 2, 2)),
}


def factors(seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, in] and B [out, rank] by Wan's own names."""
    draw = torch.Generator().manual_seed(seed)
    return {
        native: (
            torch.randn(RANK, num_in, generator=draw) / 4,
            torch.randn(num_out, RANK, generator=draw) / 4,
        )
        for native, (_, num_out, num_in) in LAYERS.items()
    }


def deltas(seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed + 100)
    return {key: torch.randn(shape, generator=draw) / 4 for key, (_, shape) in DELTAS.items()}


def changed(base: Path, scale: float, delta_scale: float = 0.0, seed: int = 1) -> Tensor:
    """The velocity of a fresh base whose weights were changed by the formula."""
    fresh = WanTransformer3DModel.from_pretrained(base).requires_grad_(False)
    parameters = dict(fresh.named_parameters())
    for native, (down, up) in factors(seed).items():
        parameters[f"{LAYERS[native][0]}.weight"] += scale * up @ down
    for key, delta in deltas(seed).items():
        parameters[DELTAS[key][0]] += delta_scale * delta
    return velocity(fresh)


def factor_tensors(name: str, down: str, up: str, seed: int = 1) -> dict[str, Tensor]:
    """Keys `name` filled with Wan's own name or diffusers', and the two endings."""
    tensors = {}
    for native, (a, b) in factors(seed).items():
        layer = name.format(
            native=native, diffusers=LAYERS[native][0], flat=native.replace(".", "_")
        )
        tensors |= {f"{layer}{down}": a, f"{layer}{up}": b}
    return tensors


def alphas(name: str) -> dict[str, Tensor]:
    layers = [
        name.format(native=native, diffusers=LAYERS[native][0], flat=native.replace(".", "_"))
        for native in LAYERS
    ]
    return {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}


def lightx2v(path: Path, seed: int = 1) -> Path:
    tensors = factor_tensors(
        "diffusion_model.{native}", ".lora_down.weight", ".lora_up.weight", seed
    )
    save_file(tensors | {f"diffusion_model.{k}": v for k, v in deltas(seed).items()}, path)
    return path


def comfyui(path: Path) -> Path:
    name = "diffusion_model.{native}"
    save_file(factor_tensors(name, ".lora_A.weight", ".lora_B.weight") | alphas(name), path)
    return path


def kohya(path: Path) -> Path:
    name = "lora_unet_{flat}"
    save_file(factor_tensors(name, ".lora_down.weight", ".lora_up.weight") | alphas(name), path)
    return path


def videox_fun(path: Path) -> Path:
    name = "lora_unet__{flat}"
    save_file(factor_tensors(name, ".lora_down.weight", ".lora_up.weight") | alphas(name), path)
    return path


def diffusers(path: Path) -> Path:
    stated = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
    tensors = factor_tensors("transformer.{diffusers}", ".lora_A.weight", ".lora_B.weight")
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(stated)})
    return path


def peft_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    stated = {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {"head.head": ALPHA}}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    tensors = factor_tensors("base_model.model.{native}", ".lora_A.weight", ".lora_B.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def distill_wan(path: Path) -> Path:
    name = "base_model.model._fsdp_wrapped_module.{native}"
    tensors = factor_tensors(name, ".lora_A.default.weight", ".lora_B.default.weight")
    wrapped = {
        k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensors[k] for k in tensors
    }
    save_file(wrapped, path)
    return path


def dmd2_wanx(path: Path) -> Path:
    """A pickle of plain weights, in which A is [out, rank] and B [rank, in]."""
    pickled = path.with_suffix(".pt")
    tensors = {}
    for native, (down, up) in factors().items():
        tensors |= {f"{native}.lora_A": up, f"{native}.lora_B": down}
    torch.save(tensors, pickled)
    return pickled


# name of the flavour, its writer, the alpha given by hand, what the formula multiplies with
CASES = [
    ("ComfyUI / LightX2V", lightx2v, None, 1.0),
    ("ComfyUI / LightX2V", comfyui, None, ALPHA / RANK),
    ("kohya / musubi-tuner", kohya, None, ALPHA / RANK),
    ("kohya / musubi-tuner", videox_fun, 8.0, 8.0 / RANK),
    ("diffusers", diffusers, None, ALPHA / RANK),
    ("PEFT on Wan's own names", peft_folder, None, ALPHA / RANK),
    ("PEFT on Wan's own names", distill_wan, 6.0, 6.0 / RANK),
    ("DMD2_wanx", dmd2_wanx, None, 1.0),
]


@pytest.mark.parametrize(
    ("title", "write", "lora_alpha", "scale"), CASES, ids=[case[1].__name__ for case in CASES]
)
def test_a_flavour_is_recognised_and_computes_the_formula_live_stacked_and_merged(
    title: str,
    write: Write,
    lora_alpha: float | None,
    scale: float,
    transformer: WanTransformer3DModel,
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.safetensors")
    base = Path(transformer.config._name_or_path)
    adapter = Adapter(path=str(path), strength=0.7, lora_alpha=lora_alpha)
    delta_scale = 0.7 if write is lightx2v else 0.0
    expected = changed(base, 0.7 * scale, delta_scale)
    assert apply_adapters(transformer, [adapter]) == ()
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)

    fresh = WanTransformer3DModel.from_pretrained(base).requires_grad_(False)
    assert merge_loras(fresh, [adapter]) == ()
    torch.testing.assert_close(velocity(fresh), expected, atol=1e-5, rtol=0)
    stacked = stack_loras([adapter])
    assert len(stacked.down) == len(LAYERS)
    assert len(stacked.deltas) == (len(DELTAS) if write is lightx2v else 0)
    assert {own_alpha(path)} == (set(read_lora(path).alphas.values()) or {RANK})
    if path.suffix != ".pt":
        model = {name: tuple(p.shape) for name, p in fresh.named_parameters()}
        told = summary(outline(lora_shapes(path)), model)
        assert told.startswith(title)
        assert "7 of 7 layers, rank 4" in told


def test_deltas_are_counted_by_what_they_change(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    model = {name: tuple(p.shape) for name, p in transformer.named_parameters()}
    told = summary(outline(lora_shapes(lightx2v(tmp_path / "a.safetensors"))), model)
    assert told == (
        "ComfyUI / LightX2V: 7 of 7 layers, rank 4, 2 modulation deltas, 3 norm deltas, "
        "2 bias deltas, 1 weight delta"
    )


def test_strength_and_alpha_change_live_and_off_is_the_base_bit_for_bit(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    base = Path(transformer.config._name_or_path)
    untouched = velocity(transformer)
    path = str(lightx2v(tmp_path / "a.safetensors"))
    for strength, alpha in [(1.0, None), (0.25, 8.0), (-1.0, 0.0)]:
        apply_adapters(transformer, [Adapter(path=path, strength=strength, lora_alpha=alpha)])
        scale = strength * (1.0 if alpha is None else alpha / RANK)
        expected = changed(base, scale, strength)
        torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)
        apply_adapters(transformer, [])
        assert torch.equal(velocity(transformer), untouched)
    apply_adapters(transformer, [Adapter(path=path, strength=0.0)])
    assert torch.equal(velocity(transformer), untouched)
    own = WanTransformer3DModel.from_pretrained(base).state_dict()
    for name, parameter in transformer.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(own[name.replace(".base_layer.", ".")], parameter), name


def test_nothing_is_trainable_after_switching(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    for write in (lightx2v, kohya):
        apply_adapters(
            transformer, [Adapter(path=str(write(tmp_path / f"{write.__name__}.safetensors")))]
        )
        assert not [name for name, p in transformer.named_parameters() if p.requires_grad]


def test_the_order_of_several_changes_nothing_live_or_merged(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    adapters = [
        Adapter(path=str(lightx2v(tmp_path / f"{seed}.safetensors", seed)), strength=strength)
        for seed, strength in ((1, 0.7), (2, -0.3), (3, 1.1))
    ]
    base = transformer.config._name_or_path
    outputs, merged = [], []
    for ordered in (adapters, adapters[::-1], [adapters[1], adapters[2], adapters[0]]):
        apply_adapters(transformer, ordered)
        outputs.append(velocity(transformer))
        fresh = WanTransformer3DModel.from_pretrained(base).requires_grad_(False)
        merge_loras(fresh, ordered)
        merged.append(velocity(fresh))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])
    torch.testing.assert_close(outputs[0], merged[0], atol=1e-5, rtol=0)


def test_a_merge_into_bf16_rounds_once(transformer: WanTransformer3DModel, tmp_path: Path) -> None:
    adapters = [
        Adapter(path=str(lightx2v(tmp_path / f"{seed}.safetensors", seed))) for seed in (1, 2)
    ]
    half = transformer.to(torch.bfloat16)
    weight = half.get_parameter("blocks.0.attn1.to_q.weight")
    changes = sum(
        (up @ down for seed in (1, 2) for down, up in [factors(seed)["blocks.0.self_attn.q"]]),
        torch.zeros(32, 32),
    )
    expected = (weight.float() + changes).bfloat16()
    merge_loras(half, adapters)
    assert torch.equal(weight, expected)
