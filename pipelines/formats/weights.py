"""Weights in files, one tensor at a time: safetensors, or a pickle that holds nothing but weights.

A pickle is opened with `weights_only=True`, and a tensor of it stays on the disk until it is read.
"""

import json
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipelines.files.tensors import Header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
WRITTEN = CODES | {torch.uint8: "U8"}
# Where a trainer's checkpoint keeps a generator: the averaged one where there is one.
GENERATORS = ("generator_ema", "generator")


@dataclass(frozen=True)
class Weight:
    """One tensor of a file, read when it is needed.

    `read(mapped=True)` leaves the bytes in the file until they are used, where that is possible:
    for what wants all tensors at once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[..., Tensor]

    @property
    def num_bytes(self) -> int:
        """What the tensor takes in memory and in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """Tensors by name, of one file or of all shards, with the metadata of all."""

    tensors: dict[str, Weight]
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: weight.shape for name, weight in self.tensors.items()}


def open_weights(files: Sequence[Path]) -> Weights:
    """All tensors of the files, none of them read yet.

    ValueError in one sentence for a file that is missing, damaged, quantised, or a pickle with
    anything but weights in it.
    """
    tensors: dict[str, Weight] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"weights {file} are missing; copy or download that file again")
        if file.suffix == ".safetensors":
            metadata |= Header(file).metadata  # names a damaged file
            tensors |= _open_safetensors(file)
        else:
            tensors |= _open_pickle(file)
    return Weights(tensors, metadata)


def _open_safetensors(file: Path) -> dict[str, Weight]:
    handle = safe_open(file, "pt", backend="pread")
    found = {}
    for name in handle.keys():  # noqa: SIM118
        stored = handle.get_slice(name)
        if stored.get_dtype() not in DTYPES:
            raise ValueError(
                f"weights {file} are quantised ({name} is {stored.get_dtype()}), which is not "
                "read; use the file in bf16, fp16 or fp32"
            )
        read = partial(_read, file, handle, name)
        found[name] = Weight(tuple(stored.get_shape()), DTYPES[stored.get_dtype()], read)
    return found


def _read(file: Path, handle: Any, name: str, mapped: bool = False) -> Tensor:
    if mapped:
        handle = _map(file, file.stat().st_mtime_ns)
    tensor: Tensor = handle.get_tensor(name)
    return tensor


@lru_cache(maxsize=1)
def _map(file: Path, mtime_ns: int) -> Any:
    """Only on demand: Linux refuses to map a file that is larger than the memory.

    The time is an argument so that a changed file is opened again.
    """
    return safe_open(file, "pt", backend="mmap")


def _open_pickle(file: Path) -> dict[str, Weight]:
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"weights {file} are damaged, or a pickle from before PyTorch 1.6; copy or download "
            "the file again, or ask for it as .safetensors"
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights {file} are a pickle that holds more than weights, so it is not opened; ask "
            "for it as .safetensors"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"weights {file} are damaged ({str(error).splitlines()[0]}); copy or download the file "
            "again"
        ) from error
    held = next((content[name] for name in GENERATORS if name in content), content)
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(
            f"weights {file} do not hold tensors by name; ask for the file as .safetensors"
        )
    for name, tensor in held.items():
        if tensor.dtype not in CODES:
            raise ValueError(
                f"weights {file} are quantised ({name} is {tensor.dtype}), which is not read; use "
                "the file in bf16, fp16 or fp32"
            )
    return {
        name: Weight(tuple(tensor.shape), tensor.dtype, partial(_itself, tensor))
        for name, tensor in held.items()
    }


def _itself(tensor: Tensor, mapped: bool = True) -> Tensor:
    return tensor  # `torch.load(mmap=True)` has mapped it


def save_safetensors(path: Path, tensors: Mapping[str, Weight], metadata: dict[str, str]) -> None:
    """Writes a safetensors file with one tensor in memory at a time.

    safetensors' own `save_file` wants all of them at once, and a 14B model in one file is 57 GB.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        weight, end = tensors[name], offset + tensors[name].num_bytes
        header[name] = {
            "dtype": WRITTEN[weight.dtype],
            "shape": weight.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8, as the format wants
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].read().reshape(-1).view(torch.uint8).numpy().data)
