"""What `fit` chooses for the two sizes of Wan2.1 on devices from 8 to 80 GB, and what it says."""

import pytest

from pipelines.memory import MemorySettings
from pipelines.models.fit_memory import Sizes, device_bytes, plan_memory, ram_bytes

GB = 1e9
SHAPES = {"1.3B": (1.419e9, 1536, 8960, 30), "14B": (14.288e9, 5120, 13824, 40)}


def sizes(model: str, width: int = 832, height: int = 480, num_frames: int = 81) -> Sizes:
    parameters, dim, feed_forward, num_blocks = SHAPES[model]
    return Sizes(
        transformer_bytes=int(2 * parameters),
        text_bytes=int(2 * 5.68e9),
        vae_bytes=int(4 * 127e6),
        width=dim,
        feed_forward=feed_forward,
        num_blocks=num_blocks,
        num_tokens=((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16),
        num_pixels=width * height,
        num_frames=num_frames,
    )


@pytest.mark.parametrize(
    ("model", "free_gb", "chosen"),
    [
        ("1.3B", 8, {"text_encoder": "cpu", "tiling": True}),
        ("1.3B", 12, {"text_encoder": "cpu", "tiling": True}),
        ("1.3B", 16, {"text_encoder": "cpu"}),
        ("1.3B", 24, {"text_encoder": "swapped"}),
        ("1.3B", 48, {}),
        ("1.3B", 80, {}),
        ("14B", 8, {"offload": True, "text_encoder": "cpu", "tiling": True}),
        ("14B", 12, {"offload": True, "text_encoder": "cpu", "tiling": True}),
        ("14B", 16, {"offload": True, "text_encoder": "cpu"}),
        ("14B", 24, {"offload": True, "text_encoder": "swapped"}),
        ("14B", 48, {"text_encoder": "swapped"}),
        ("14B", 80, {}),
    ],
)
def test_wan_at_480p_gets_the_fastest_settings_that_fit(
    model: str, free_gb: int, chosen: dict[str, object]
) -> None:
    found = plan_memory(sizes(model), free_gb * GB, 64 * GB)
    assert found.settings == MemorySettings.model_validate(chosen)
    assert found.device_bytes <= free_gb * GB
    assert f"{free_gb}.0 GB of the device are free" in found.explanation


def test_the_explanation_names_each_measure_and_what_it_comes_to() -> None:
    assert plan_memory(sizes("14B"), 12 * GB, 64 * GB).explanation == (
        "Memory: with everything on the device it would take 53.6 GB at once, and 12.0 GB of the "
        "device are free. So the text encoder works on the CPU, the VAE decodes in tiles and the "
        "transformer's blocks come from RAM one by one: 7.9 GB."
    )
    assert (
        "everything stays on the device" in plan_memory(sizes("1.3B"), 80 * GB, 64 * GB).explanation
    )


def test_fp8_storage_comes_where_offload_is_not_enough_or_the_ram_for_it_is_not_there() -> None:
    small = plan_memory(sizes("14B"), 7.5 * GB, 64 * GB).settings
    assert (small.transformer, small.offload) == ("fp8_storage", True)
    found = plan_memory(sizes("14B"), 30 * GB, 16 * GB)
    assert found.settings.transformer == "fp8_storage"
    assert not found.settings.offload
    assert "changes the video a little" in found.explanation


def test_what_fits_nowhere_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"need 12\.3 GB of the device at least.*fewer frames$"):
        plan_memory(sizes("14B", 1280, 720), 8 * GB, 64 * GB)


@pytest.mark.parametrize(
    ("model", "size", "num_frames", "counted"),
    [
        ("1.3B", (832, 480), 81, 1.57),
        ("1.3B", (1280, 720), 81, 3.66),
        ("14B", (832, 480), 81, 3.76),
        ("14B", (1280, 720), 81, 8.61),
        ("14B", (832, 480), 17, 0.93),
    ],
)
def test_activations_agree_with_what_was_counted_on_meta_tensors(
    model: str, size: tuple[int, int], num_frames: int, counted: float
) -> None:
    assert sizes(model, *size, num_frames).activation_bytes / GB == pytest.approx(counted, rel=0.08)


@pytest.mark.parametrize(
    ("size", "num_frames", "counted", "counted_in_tiles"),
    [
        ((832, 480), 81, 7.66, 1.31),
        ((832, 480), 17, 7.35, 0.88),
        ((1280, 720), 81, 18.33, 3.69),
    ],
)
def test_decoding_agrees_with_what_was_counted_and_tiles_are_never_counted_short(
    size: tuple[int, int], num_frames: int, counted: float, counted_in_tiles: float
) -> None:
    shape = sizes("1.3B", *size, num_frames)
    assert shape.decode_bytes / GB == pytest.approx(counted, rel=0.08)
    assert counted_in_tiles <= shape.tiled_decode_bytes / GB <= counted


def test_each_measure_takes_less_of_the_device_and_offload_more_of_ram() -> None:
    shape, plain = sizes("14B"), MemorySettings()
    for measure in (
        {"offload": True},
        {"transformer": "fp8_storage"},
        {"text_encoder": "swapped"},
        {"text_encoder": "cpu"},
        {"tiling": True},
    ):
        settings = MemorySettings.model_validate(measure)
        assert device_bytes(shape, settings) < device_bytes(shape, plain)
    assert ram_bytes(shape, MemorySettings(offload=True)) > ram_bytes(shape, plain)
