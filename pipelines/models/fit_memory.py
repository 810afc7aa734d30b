"""Fit to my GPU: which memory settings a model needs on a device, and why. Numbers in, words out.

The sizes of activations were counted on meta tensors of diffusers' Wan 1.3B and 14B (480p and 720p,
81 frames) and of its VAE; they hold within 8 %, the tiled VAE on the safe side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.memory import EXPLAINED, MemorySettings

GB = 1e9
BLOCK_BYTES = (15, 3)  # of a forward, for each token: times width, times width of the feed-forward
PIXEL_BYTES = 18_200  # of the VAE's decoder in fp32, for each pixel of a frame
TILE_BYTES = 0.8 * GB
SPREAD = 1.1  # what the allocator takes beyond the tensors
CONTEXT_BYTES = 0.7 * GB  # of CUDA, its libraries and their workspaces


@dataclass(frozen=True)
class Sizes:
    """A model and a video in numbers."""

    transformer_bytes: int  # as it is loaded: 2 a parameter in bf16
    text_bytes: int
    vae_bytes: int  # in fp32
    width: int
    feed_forward: int
    num_blocks: int
    num_tokens: int
    num_pixels: int  # of one frame
    num_frames: int

    @property
    def activation_bytes(self) -> float:
        """Of one forward of the transformer."""
        per_width, per_feed_forward = BLOCK_BYTES
        per_token = per_width * self.width + per_feed_forward * self.feed_forward
        return self.num_tokens * per_token

    @property
    def decode_bytes(self) -> float:
        """Of decoding in fp32, the video included."""
        return self.num_pixels * PIXEL_BYTES + self.video_bytes

    @property
    def tiled_decode_bytes(self) -> float:
        """Of the same in tiles, which are kept until they are put together."""
        return min(TILE_BYTES + 3.5 * self.video_bytes, self.decode_bytes)

    @property
    def video_bytes(self) -> float:
        return self.num_pixels * self.num_frames * 3 * 4


@dataclass(frozen=True)
class MemoryPlan:
    """The settings, what they need on the device, and why in a sentence or two."""

    settings: MemorySettings
    device_bytes: float
    explanation: str


def plan_memory(sizes: Sizes, free_bytes: float, free_ram_bytes: float) -> MemoryPlan:
    """The fastest settings that fit the device's free memory and the free RAM.

    What leaves the video as it is comes before fp8 storage, which changes it a little. ValueError
    where nothing fits.
    """
    for settings in candidates():
        need = device_bytes(sizes, settings)
        if need <= free_bytes and ram_bytes(sizes, settings) <= free_ram_bytes:
            return MemoryPlan(settings, need, _explain(sizes, settings, need, free_bytes))
    least = device_bytes(sizes, settings)
    raise ValueError(
        f"memory: this model and size need {least / GB:.1f} GB of the device at least, with "
        f"{ram_bytes(sizes, settings) / GB:.0f} GB of RAM, and {free_bytes / GB:.1f} and "
        f"{free_ram_bytes / GB:.0f} GB are free; choose a smaller size or fewer frames"
    )


def candidates() -> Iterator[MemorySettings]:
    """From the fastest to the smallest."""
    for transformer, offload in (
        ("plain", False),
        ("plain", True),
        ("fp8_storage", False),
        ("fp8_storage", True),
    ):
        for tiling in (False, True):
            for text_encoder in ("device", "swapped", "cpu"):
                yield MemorySettings.model_validate(
                    {
                        "transformer": transformer,
                        "offload": offload,
                        "tiling": tiling,
                        "text_encoder": text_encoder,
                    }
                )


def device_bytes(sizes: Sizes, settings: MemorySettings) -> float:
    """The most that is on the device at once: while encoding, denoising or decoding."""
    weights = sizes.transformer_bytes
    if settings.transformer == "fp8_storage":
        weights //= 2
    if settings.offload:
        weights = weights * 3 // sizes.num_blocks  # this block, the next, and what is outside
    held = weights + sizes.vae_bytes
    if settings.text_encoder == "device":
        held += sizes.text_bytes
    decode = sizes.tiled_decode_bytes if settings.tiling else sizes.decode_bytes
    encode = sizes.text_bytes if settings.text_encoder == "swapped" else 0
    return (held + max(encode, sizes.activation_bytes, decode)) * SPREAD + CONTEXT_BYTES


def ram_bytes(sizes: Sizes, settings: MemorySettings) -> float:
    """What waits in RAM."""
    text = 0 if settings.text_encoder == "device" else sizes.text_bytes
    transformer = sizes.transformer_bytes if settings.offload else 0
    if settings.transformer == "fp8_storage":
        transformer //= 2
    return (text + transformer) * SPREAD


def _explain(sizes: Sizes, settings: MemorySettings, need: float, free_bytes: float) -> str:
    plain = device_bytes(sizes, MemorySettings())
    numbers = f"{plain / GB:.1f} GB at once, and {free_bytes / GB:.1f} GB of the device are free"
    if settings == MemorySettings():
        return f"{EXPLAINED}everything stays on the device; it takes {numbers}."
    measures = {
        "the text encoder is on the device only while it encodes": settings.text_encoder
        == "swapped",
        "the text encoder works on the CPU": settings.text_encoder == "cpu",
        "the VAE decodes in tiles": settings.tiling,
        "the transformer's blocks come from RAM one by one": settings.offload,
        "the transformer is stored in fp8, which changes the video a little": settings.transformer
        == "fp8_storage",
    }
    chosen = [words for words, taken in measures.items() if taken]
    joined = ", ".join(chosen[:-1]) + " and " + chosen[-1] if len(chosen) > 1 else chosen[0]
    return (
        f"{EXPLAINED}with everything on the device it would take {numbers}. "
        f"So {joined}: {need / GB:.1f} GB."
    )
