"""The file of a preview decoder, checked without torch: TAEHV's decoder for Wan2.1's latents.

Published as taew2_1 and lighttaew2_1, .pth or .safetensors (github.com/madebyollin/taehv, MIT): the
decoder's layers are numbered from 0, those without weights included; `encoder.*` is not read.
"""

from itertools import pairwise
from pathlib import Path

from pipelines.files.tensors import tensor_shapes
from pipelines.geometry import WAN21

Shapes = dict[str, tuple[int, ...]]
NUM_LATENT_CHANNELS = WAN21.num_channels
WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)  # how many frames the end of each of the first three widths makes of one
NUM_BLOCKS = 3  # at each of these widths
SUFFIXES = (".safetensors", ".pth", ".pt")


def preview_shapes() -> Shapes:
    """Shapes of the decoder's tensors by their names in the file."""
    shapes = _conv("decoder.1", NUM_LATENT_CHANNELS, WIDTHS[0])
    index = 3
    for (width, next_width), growth in zip(pairwise(WIDTHS), GROWTH, strict=True):
        for block in range(index, index + NUM_BLOCKS):
            shapes |= _conv(f"decoder.{block}.conv.0", 2 * width, width)
            shapes |= _conv(f"decoder.{block}.conv.2", width, width)
            shapes |= _conv(f"decoder.{block}.conv.4", width, width)
        shapes[f"decoder.{index + 4}.conv.weight"] = (growth * width, width, 1, 1)
        shapes[f"decoder.{index + 5}.weight"] = (next_width, width, 3, 3)
        index += 6
    return shapes | _conv(f"decoder.{index + 1}", WIDTHS[-1], 3)


def _conv(name: str, before: int, after: int) -> Shapes:
    return {f"{name}.weight": (after, before, 3, 3), f"{name}.bias": (after,)}


def check_preview_decoder(file: Path) -> None:
    """ValueError in one sentence where the file is no preview decoder of Wan2.1's latents."""
    if not file.is_file():
        raise ValueError(f"preview_decoder {file} does not exist; check the path")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"preview_decoder {file} must be a {', '.join(SUFFIXES)} file")
    found, expected = tensor_shapes(file), preview_shapes()
    own = {name: shape for name, shape in found.items() if not name.startswith("encoder.")}
    first = own.get("decoder.1.weight")
    if own.keys() == expected.keys() and first and first[1] != NUM_LATENT_CHANNELS:
        raise ValueError(
            f"preview_decoder {file} is for latents of {first[1]} channels, and Wan2.1's have "
            f"{NUM_LATENT_CHANNELS}; use taew2_1"
        )
    wrong = sorted(n for n in own.keys() | expected.keys() if own.get(n) != expected.get(n))
    if wrong:
        raise ValueError(
            f"preview_decoder {file} is not TAEHV's decoder for Wan2.1 ({len(wrong)} tensors do "
            f"not fit, the first is {wrong[0]}); use taew2_1"
        )
