"""Puts a loaded model where its memory settings say: device, RAM, precision, attention, compile.

Offload, fp8 storage, attention backends and compiling are diffusers'; int8 and fp8 are torchao's.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import psutil
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import apply_layerwise_casting
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from torch import Tensor, nn

from pipelines.memory import EXPLAINED, PLAIN, QUANTIZED, Memory, MemorySettings, parse_memory
from pipelines.models.fit_memory import Sizes, plan_memory
from pipelines.models.loading import Components
from pipelines.recipe import Recipe

STORAGE = torch.float8_e4m3fn
FP8_CAPABILITY = (8, 9)  # the first CUDA devices that multiply fp8
COMPILE_MARK = 1.5  # times the other steps: then the first one has compiled
# UMT5 casts what enters `wo` to the dtype of its weight, and looks words up in `shared`.
TEXT_PRECISE = ("wo", "norm", "shared", "embed_tokens")


class Placement:
    """One model in memory, how it lies there as its recipe asks, and in `note` why, for `fit`."""

    def __init__(self, components: Components, device: str, recipe: Recipe):
        self.components, self.device = components, device
        self.memory, memory = recipe.memory, parse_memory(recipe.memory)
        self.num_tokens = recipe.num_tokens(components.geometry) if memory == "fit" else None
        self.note = ""
        if memory == "fit":
            self.settings, self.note = _choose(components, device, recipe)
        else:
            self.settings = memory
        require_device(self.settings, device)
        place(components, self.settings, device)
        self._parameters = parameter_names(components.transformer)

    def serves(self, recipe: Recipe) -> bool:
        """Whether the model lies as this recipe asks, and what `fit` chose does for its video."""
        num_tokens = recipe.num_tokens(self.components.geometry)
        fits = self.num_tokens is None or num_tokens <= self.num_tokens
        return fits and recipe.memory == self.memory

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] on the device where the transformer computes."""
        with self._text_encoder_ready():
            return self.components.encode_prompt(prompts).to(self.device)

    @contextmanager
    def _text_encoder_ready(self) -> Iterator[None]:
        if self.settings.text_encoder != "swapped":
            yield
            return
        self.components.text_encoder.to(self.device)
        try:
            yield
        finally:
            self.components.text_encoder.to("cpu")

    def settle(self) -> None:
        """After LoRAs came or went: an offloaded transformer learns what its blocks hold now.

        Only then, as on CUDA it pins all weights anew.
        """
        transformer = self.components.transformer
        if self.settings.offload and parameter_names(transformer) != self._parameters:
            _maybe_remove_and_reapply_group_offloading(transformer)
            self._parameters = parameter_names(transformer)

    def notes(self) -> tuple[str, ...]:
        """What the user should know about a clip that is made so."""
        changed = self.settings.changes
        changes = f"Made with the {changed}, which changes the video a little." if changed else ""
        return tuple(note for note in (self.note, changes) if note)

    def compile_note(self, step_ends_sec: Sequence[float]) -> tuple[str, ...]:
        """What compiling cost, where the first step has done it; from the ends of all steps."""
        if not self.settings.compile_blocks or len(step_ends_sec) < 2:
            return ()
        first = step_ends_sec[0]
        others = statistics.median(end - start for start, end in pairwise(step_ends_sec))
        if first < COMPILE_MARK * others:
            return ()
        return (
            f"The first step also compiled the blocks: it took {first:.1f} s and each other step "
            f"{others:.2f} s; the next clip of this size is spared that.",
        )


def require_device(settings: MemorySettings, device: str) -> None:
    """ValueError where the device cannot do what the settings ask for."""
    cuda = device.startswith("cuda")
    needs_cuda = settings.attention not in ("native", "flex")
    if needs_cuda and not cuda:
        raise ValueError(
            f"memory: attention={settings.attention} needs a CUDA device, not {device}; "
            "choose native or flex"
        )
    capable = cuda and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    if settings.transformer == "fp8" and not capable:
        raise ValueError(
            "memory: transformer=fp8 multiplies in fp8, which needs a CUDA device of capability "
            "8.9 or later; choose fp8_storage or int8"
        )


def require_no_adapters(memory: Memory, num_adapters: int) -> None:
    """ValueError where LoRAs meet a quantised transformer."""
    if memory != "fit" and memory.transformer in QUANTIZED and num_adapters:
        raise ValueError(
            f"memory: LoRAs, and models that are LoRAs, do not work with "
            f"transformer={memory.transformer}; choose fp8_storage or plain"
        )


def place(components: Components, settings: MemorySettings, device: str) -> None:
    """Applies the settings to loaded components, in place; what must not move lies on the CPU."""
    transformer = components.transformer
    if settings.transformer == "fp8_storage":
        store_in_fp8(transformer)
    elif settings.transformer in QUANTIZED:
        _quantize(transformer, settings.transformer)
    if settings.offload:
        offload(transformer, device)
    else:
        transformer.to(device)
    if settings.attention != PLAIN.attention:
        transformer.set_attention_backend(settings.attention)
    if settings.compile_blocks:
        transformer.compile_repeated_blocks()
    components.vae.to(device, torch.bfloat16 if settings.vae == "bf16" else torch.float32)
    if settings.tiling:
        components.vae.enable_tiling()
    if settings.text_encoder == "fp8_storage":
        text_encoder = components.text_encoder
        apply_layerwise_casting(text_encoder, STORAGE, text_encoder.dtype, TEXT_PRECISE)
    if settings.text_encoder in ("device", "fp8_storage"):
        components.text_encoder.to(device)


def store_in_fp8(transformer: WanTransformer3DModel) -> None:
    """Weights of linear layers rest in fp8 and are cast for each use; LoRAs stay as they are."""
    dtype = transformer.patch_embedding.weight.dtype
    transformer.enable_layerwise_casting(storage_dtype=STORAGE, compute_dtype=dtype)
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            module.compute_dtype = dtype  # PEFT gives a new LoRA this dtype, else that of storage


def offload(transformer: WanTransformer3DModel, device: str) -> None:
    """Blocks wait in RAM; on CUDA the next one comes while this one computes."""
    streams = device.startswith("cuda")
    transformer.enable_group_offload(
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        record_stream=streams,
    )


def _quantize(transformer: WanTransformer3DModel, kind: str) -> None:
    """The linear layers of the blocks, which hold nearly all weights."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    config = (
        Int8WeightOnlyConfig() if kind == "int8" else Float8DynamicActivationFloat8WeightConfig()
    )
    quantize_(transformer.blocks, config)


def _choose(components: Components, device: str, recipe: Recipe) -> tuple[MemorySettings, str]:
    """`fit` with the numbers of this machine."""
    if not device.startswith("cuda"):
        return PLAIN, f"{EXPLAINED}on a CPU everything lies in RAM."
    torch.cuda.empty_cache()
    free_bytes = torch.cuda.mem_get_info(device)[0]
    # What was loaded lies in RAM now, and is free again where it leaves.
    free_ram_bytes = psutil.virtual_memory().available + _loaded_bytes(components)
    chosen = plan_memory(sizes(components, recipe), free_bytes, free_ram_bytes)
    return chosen.settings, chosen.explanation


def sizes(components: Components, recipe: Recipe) -> Sizes:
    """The model and the video in numbers."""
    config = components.transformer.config
    return Sizes(
        transformer_bytes=num_bytes(components.transformer),
        text_bytes=num_bytes(components.text_encoder),
        vae_bytes=num_bytes(components.vae),
        width=config.num_attention_heads * config.attention_head_dim,
        feed_forward=config.ffn_dim,
        num_blocks=config.num_layers,
        num_tokens=recipe.num_tokens(components.geometry),
        num_pixels=recipe.width * recipe.height,
        num_frames=recipe.num_frames,
    )


def _loaded_bytes(components: Components) -> int:
    return num_bytes(components.transformer) + num_bytes(components.text_encoder)


def parameter_names(module: nn.Module) -> list[str]:
    """All of them, those of LoRAs included."""
    return [name for name, _ in module.named_parameters()]


def num_bytes(module: nn.Module) -> int:
    """Of all parameters as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
