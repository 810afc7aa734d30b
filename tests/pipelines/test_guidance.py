"""Guidance as an input: loaded with a transformer, brought by a LoRA, gone with it."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.lora.apply import MAX_RESIDENT, apply_adapters
from pipelines.lora.file import read_lora, save_lora, stack_loras
from pipelines.models.loading import load_transformer
from pipelines.recipe import Adapter, SamplerSpec
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance import require_guidance_fits
from pipelines.sampling.guidance_embedder import (
    OWN,
    activate_guidance_embedder,
    add_guidance_embedder,
    load_guidance_embedder,
    time_embedding,
)
from pipelines.sampling.prompt import Prompt
from tests.pipelines.conftest import guidance_tensors, lora_tensors, velocity
from tests.pipelines.test_adapters import expected_velocity

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALE = torch.tensor([4.0])


def guided_velocity(
    transformer: WanTransformer3DModel, guidance_scale: Tensor | None = SCALE
) -> Tensor:
    """The velocity at guidance 4, given as an input."""
    noisy = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prompt = Prompt(embeds, guidance_scale)
        return Denoiser(transformer).velocity(noisy, torch.tensor([0.7]), prompt)


def guided_lora(path: Path, seed: int, strength: float = 1.0) -> Adapter:
    tensors = lora_tensors(seed) | guidance_tensors(seed)
    save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, path)
    return Adapter(path=str(path), strength=strength)


def plain_lora(path: Path, seed: int, strength: float = 1.0) -> Adapter:
    save_file(lora_tensors(seed), path)
    return Adapter(path=str(path), strength=strength)


@pytest.fixture
def guided_folder(models_dir: Path, tmp_path: Path) -> Path:
    """The transformer of `mini` with a guidance embedder in its file."""
    source, folder = models_dir / "mini" / "transformer", tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / WEIGHTS) | guidance_tensors(1)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_a_transformer_loads_with_the_guidance_embedder_in_its_file(
    guided_folder: Path, transformer: WanTransformer3DModel
) -> None:
    loaded = load_transformer(guided_folder, torch.float32, "cpu")
    embedding = time_embedding(loaded)
    assert embedding is not None
    assert embedding.active == OWN
    weights = embedding.guidance_embedder[OWN].state_dict()
    for name, tensor in guidance_tensors(1).items():
        assert torch.equal(weights[name.split("guidance_embedder.")[1]], tensor)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    unguided = guided_velocity(loaded, None)
    torch.testing.assert_close(unguided, guided_velocity(transformer, None), atol=1e-6, rtol=0)
    assert (guided_velocity(loaded) - unguided).abs().max() > 1e-2


@pytest.mark.parametrize("change", ["lose", "misshape", "add"])
def test_guidance_weights_that_do_not_fit_are_refused(change: str, guided_folder: Path) -> None:
    tensors = load_file(guided_folder / WEIGHTS)
    name = next(iter(guidance_tensors(1)))
    if change == "lose":
        del tensors[name]
    elif change == "misshape":
        tensors[name] = torch.zeros(3, 3)
    else:
        tensors["guidance_embedding.weight"] = torch.zeros(3)
    save_file(tensors, guided_folder / WEIGHTS, metadata={"format": "pt"})
    message = "unexpected" if change == "add" else "guidance embedder is incomplete or was made"
    with pytest.raises(ValueError, match=message):
        load_transformer(guided_folder, torch.float32, "cpu")


def test_a_guided_lora_brings_its_embedder_and_takes_it_away_again(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    base = velocity(transformer)
    guided = guided_lora(tmp_path / "guided.safetensors", 1)
    plain = plain_lora(tmp_path / "plain.safetensors", 2)
    model = Denoiser(transformer)
    assert not model.embeds_guidance
    apply_adapters(transformer, [guided])
    assert model.embeds_guidance
    first = guided_velocity(transformer)
    assert (first - guided_velocity(transformer, None)).abs().max() > 1e-2
    apply_adapters(transformer, [plain])
    assert not model.embeds_guidance
    with pytest.raises(ValueError, match="does not take guidance as an input"):
        guided_velocity(transformer)
    apply_adapters(transformer, [])
    assert torch.equal(velocity(transformer), base)
    apply_adapters(transformer, [plain, guided])
    assert model.embeds_guidance
    apply_adapters(transformer, [guided])
    assert torch.equal(guided_velocity(transformer), first)


def test_without_a_guided_lora_the_bases_own_embedder_is_back(
    guided_folder: Path, tmp_path: Path
) -> None:
    transformer = load_transformer(guided_folder, torch.float32, "cpu")
    own = guided_velocity(transformer)
    apply_adapters(transformer, [guided_lora(tmp_path / "a.safetensors", 2, strength=0.5)])
    assert not torch.equal(guided_velocity(transformer), own)
    apply_adapters(transformer, [])
    assert torch.equal(guided_velocity(transformer), own)


def test_strength_also_multiplies_what_the_guidance_embedder_adds(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    base = guided_velocity(transformer, None)
    apply_adapters(transformer, [guided_lora(tmp_path / "a.safetensors", 1, strength=0.0)])
    assert torch.equal(guided_velocity(transformer), base)


def test_two_loras_with_guidance_embedders_are_refused(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    both = [guided_lora(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    for combine in (lambda: apply_adapters(transformer, both), lambda: stack_loras(both)):
        with pytest.raises(ValueError, match=r"1\.safetensors and .*2\.safetensors each bring"):
            combine()
    apply_adapters(transformer, both[:1])  # and nothing is left in the way


def test_an_idle_guided_lora_leaves_with_its_embedder(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    for seed in range(MAX_RESIDENT + 2):
        apply_adapters(transformer, [guided_lora(tmp_path / f"{seed}.safetensors", seed)])
    embedding = time_embedding(transformer)
    assert embedding is not None
    assert len(embedding.guidance_embedder) == MAX_RESIDENT
    apply_adapters(transformer, [Adapter(path=str(tmp_path / "0.safetensors"))])
    assert embedding.active in embedding.guidance_embedder


def test_a_saved_adapter_keeps_its_guidance_embedder_under_portable_names(
    transformer: WanTransformer3DModel, tmp_path: Path
) -> None:
    add_guidance_embedder(transformer, "student")
    embedder = guidance_tensors(1)
    weights = {
        name.replace("guidance_embedder", "guidance_embedder.student"): tensor
        for name, tensor in embedder.items()
    }
    weights |= {
        name.replace(".weight", ".student.weight"): tensor
        for name, tensor in lora_tensors(1).items()
    }
    assert weights.keys() & transformer.state_dict().keys(), "not the names a network has"
    path = tmp_path / "lora.safetensors"
    save_lora(weights, path, rank=4, alpha=4)
    stored = load_file(path)
    assert set(stored) == {f"transformer.{name}" for name in embedder | lora_tensors(1)}
    read = read_lora(path)
    assert read.guidance.keys() == embedder.keys()
    assert read.alphas == dict.fromkeys(read.down, 4)


@pytest.mark.parametrize("guided_first", [True, False])
def test_a_stack_changes_the_model_as_its_loras_do_together(
    guided_first: bool, transformer: WanTransformer3DModel, models_dir: Path, tmp_path: Path
) -> None:
    tensors = {n: t for n, t in lora_tensors(2, rank=3).items() if "blocks.1" in n}
    save_file(tensors, tmp_path / "style.safetensors")
    style = Adapter(path=str(tmp_path / "style.safetensors"), strength=-0.5, lora_alpha=7.0)
    speed = guided_lora(tmp_path / "speed.safetensors", 1, strength=0.8)
    adapters = [speed, style] if guided_first else [style, speed]
    apply_adapters(transformer, adapters)

    stacked = stack_loras(adapters)
    weights = {f"{layer}.lora_A.weight": down for layer, down in stacked.down.items()}
    weights |= {f"{layer}.lora_B.weight": up for layer, up in stacked.up.items()}
    ranks = {layer: down.shape[0] for layer, down in stacked.down.items()}
    assert set(ranks.values()) == {4, 7}
    assert stacked.alphas == ranks
    expected = expected_velocity(models_dir, [(weights, 1.0)])
    torch.testing.assert_close(velocity(transformer), expected, atol=1e-5, rtol=0)

    together = guided_velocity(transformer)
    load_guidance_embedder(transformer, stacked.guidance, "stack")
    activate_guidance_embedder(transformer, "stack")
    torch.testing.assert_close(guided_velocity(transformer), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("takes_guidance", "mode", "message"),
    [
        (False, "embedded", "guidance_mode is embedded but this model does not take guidance"),
        (True, "two_pass", "guidance_mode is two_pass but this model takes guidance .* embedded"),
        (False, "two_pass", None),
        (True, "embedded", None),
        (True, "off", None),
        (False, "off", None),
    ],
)
def test_a_sampler_and_a_model_that_do_not_belong_together_are_refused(
    takes_guidance: bool, mode: str, message: str | None, transformer: WanTransformer3DModel
) -> None:
    if takes_guidance:
        add_guidance_embedder(transformer)
    spec = SamplerSpec.model_validate({"guidance_mode": mode, "guidance_scale": 1.0})
    if message is None:
        require_guidance_fits(Denoiser(transformer), spec)
        return
    with pytest.raises(ValueError, match=message):
        require_guidance_fits(Denoiser(transformer), spec)
