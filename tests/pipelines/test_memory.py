"""Every memory setting that a CPU can run, on TinyWan, against plain; and what the others need."""

from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipelines.catalog.registry import Registry, resolved
from pipelines.generate import Clip, denoise, generate
from pipelines.memory import MemorySettings, installed_attention, memory_words, parse_memory
from pipelines.model_cache import ModelCache
from pipelines.models.placement import require_device
from pipelines.recipe import Adapter, Recipe
from pipelines.sampling.denoiser import Denoiser
from pipelines.video import read_video

LORA = Path("assets/students/tiny-dmd4/lora.safetensors")
FP8_TOLERANCE = 0.05  # of the norm of latents; measured 0.004 to 0.041


def recipe(model: str = "tiny-wan", steps: int = 2, **changes: object) -> Recipe:
    registry = Registry()
    settings = {
        "sampler": {"num_inference_steps": steps},
        "num_frames": 5,
        **changes,
    }  # `memory` among them
    made = registry.recipe(
        model, "a small red circle moving left on a black background", **settings
    )
    return resolved(made, registry.entry(made.model))


def latents(models: ModelCache, recipe: Recipe) -> Tensor:
    entry = models.registry.entry(recipe.model)
    components = models.components(recipe, entry)
    models.adapt(recipe, entry, components)
    inputs = models.inputs(recipe, entry, components)
    *_, last = denoise(recipe, Denoiser(components.transformer), inputs)
    return last


def cache() -> ModelCache:
    return ModelCache(Registry(), "cpu")


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def plain() -> ModelCache:
    return cache()


@pytest.mark.parametrize(
    "text",
    [
        "offload=true",
        "text_encoder=swapped",
        "text_encoder=cpu",
        "fit",
        "attention=native,vae=fp32",
    ],
)
def test_what_only_moves_weights_leaves_the_latents_as_they_are(
    plain: ModelCache, text: str
) -> None:
    assert torch.equal(latents(cache(), recipe(memory=text)), latents(plain, recipe()))


@pytest.mark.parametrize(
    "text",
    ["transformer=fp8_storage", "transformer=fp8_storage,offload=true", "text_encoder=fp8_storage"],
)
def test_fp8_storage_stays_near_the_plain_latents(plain: ModelCache, text: str) -> None:
    found = difference(latents(cache(), recipe(memory=text)), latents(plain, recipe()))
    assert 0 < found < FP8_TOLERANCE


def test_fp8_storage_halves_what_bf16_takes() -> None:
    made = recipe(memory="transformer=fp8_storage")
    models = cache()
    blocks = models.components(made, models.registry.entry(made.model)).transformer.blocks
    linear = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert {module.weight.dtype for module in linear} == {torch.float8_e4m3fn}


@pytest.mark.parametrize("text", ["offload=true", "transformer=fp8_storage"])
def test_loras_come_and_go_under_every_setting_that_takes_them(
    plain: ModelCache, text: str
) -> None:
    models, tolerance = cache(), 0.0 if "offload" in text else FP8_TOLERANCE
    # One step: a student of few steps carries a small error of the first one far.
    with_lora = recipe(steps=1, adapters=[Adapter(path=str(LORA), strength=0.5)])
    for made in (with_lora, recipe(steps=1), with_lora, recipe("tiny-dmd4", steps=1)):
        found = latents(models, made.model_copy(update={"memory": text}))
        assert difference(found, latents(plain, made)) <= tolerance
    held = with_lora.model_copy(update={"memory": text})
    transformer = models.components(held, models.registry.entry(held.model)).transformer
    loras = [value for name, value in transformer.named_parameters() if ".lora_" in name]
    assert {value.dtype for value in loras} == {torch.float32}, "rounded to the storage's fp8"


def test_a_bf16_vae_and_tiles_stay_near_the_plain_frames(tmp_path: Path) -> None:
    def frames(text: str) -> Tensor:
        made = recipe(steps=1, width=288, height=32, memory=text)
        *_, clip = generate(made, cache(), tmp_path / f"{len(text)}.mp4")
        assert isinstance(clip, Clip)
        return torch.from_numpy(read_video(clip.path))

    expected = frames("plain")
    for text in ("vae=bf16", "tiling=true"):
        error = (frames(text) - expected).square().mean()
        assert error < 1e-3, f"{text}: below 30 dB"


def test_clips_say_what_changed_them(tmp_path: Path) -> None:
    lossy, exact, fitted = (
        recipe(steps=1, memory=text) for text in ("transformer=fp8_storage", "offload=true", "fit")
    )
    models = cache()
    *_, clip = generate(lossy, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert clip.notes == (
        "Made with the transformer in fp8_storage, which changes the video a little.",
    )
    *_, clip = generate(exact, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert clip.notes == ()
    *_, clip = generate(fitted, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert clip.notes == ("Memory: on a CPU everything lies in RAM.",)


def test_other_memory_settings_load_the_model_again_and_never_two_of_it() -> None:
    models = cache()
    made = [recipe(memory=text) for text in ("plain", "offload=true", "offload=true", "plain")]
    found = [latents(models, one) for one in made]
    assert models.num_loads == 3
    assert len(models._bases) == 1
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_text_encoder_in_fp8_shares_no_embeddings_with_a_plain_one() -> None:
    models = cache()
    embeds = []
    for text in ("plain", "text_encoder=fp8_storage", "text_encoder=cpu"):
        made = recipe(memory=text)
        entry = models.registry.entry(made.model)
        embeds.append(models.inputs(made, entry, models.components(made, entry)).prompt.embeds)
    assert not torch.equal(embeds[0], embeds[1])
    assert embeds[2] is embeds[0]


def test_compiled_blocks_compute_the_same_and_the_clip_says_what_it_cost(
    plain: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = partialmethod(WanTransformer3DModel.compile_repeated_blocks, backend="eager")
    monkeypatch.setattr(WanTransformer3DModel, "compile_repeated_blocks", compiled)
    models, compiling = cache(), {"memory": "compile_blocks=true"}
    small = recipe(steps=3, width=32, height=32, **compiling)
    *_, clip = generate(small, models, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    assert "first step also compiled the blocks" in clip.notes[0]
    assert difference(latents(models, recipe(**compiling)), latents(plain, recipe())) < 1e-5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("everything", "must be plain, fit, or NAME=VALUE with a name of transformer,"),
        ("ofload=true", "ofload: is not a known setting"),
        ("vae=fp16", "vae: Input should be 'fp32' or 'bf16'"),
        ("attention=magic", "attention: Input should be"),
    ],
)
def test_a_misspelt_setting_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^memory: .*{sentence}"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["plain", "fit", "offload=true,vae=bf16"])
def test_settings_in_words_are_read_as_the_same(text: str) -> None:
    assert memory_words(parse_memory(text)) == text


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("transformer=int8", "torchao"),
        ("transformer=fp8", "torchao"),
        ("attention=sage", "sageattention"),
        ("attention=flash", "flash_attn"),
    ],
)
def test_what_needs_a_package_is_refused_without_it(text: str, package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"needs the package {package}, which is not installed"):
        parse_memory(text)
    assert "native" in installed_attention()


def test_what_needs_a_gpu_says_so_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="attention=_native_cudnn needs a CUDA device"):
        require_device(MemorySettings(attention="_native_cudnn"), "cpu")
    with pytest.raises(ValueError, match=r"transformer=fp8 .*capability 8\.9"):
        require_device(MemorySettings(transformer="fp8"), "cpu")


def test_a_quantised_transformer_refuses_loras_and_models_that_are_loras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.memory.find_spec", lambda name: name)
    int8, registry = "transformer=int8", Registry()
    with_lora = recipe(adapters=[Adapter(path=str(LORA))], memory=int8)
    with pytest.raises(ValueError, match=r"^memory: LoRAs, .* transformer=int8; choose fp8_"):
        cache().components(with_lora, registry.entry(with_lora.model))
    with pytest.raises(ValueError, match=r"^memory: LoRAs, and models that are LoRAs"):
        cache().components(recipe("tiny-dmd4", memory=int8), registry.entry("tiny-dmd4"))


def test_int8_weights_stay_near_the_plain_latents(plain: ModelCache) -> None:
    pytest.importorskip("torchao")
    found = difference(latents(cache("transformer=int8"), recipe()), latents(plain, recipe()))
    assert 0 < found < FP8_TOLERANCE
