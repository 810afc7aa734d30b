"""Names and shapes of the tensors in a weights file, without reading them: safetensors, pickles.

The pickle in a file of `torch.save` is not run: it is read by an unpickler that knows only the few
names that plain tensors need, each with a stand-in of ours; any other name is refused, as
`weights_only` refuses it.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


class Header:
    """What a safetensors file says about itself: `shapes` by tensor name, and `metadata`."""

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.shapes = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys()  # noqa: SIM118
                }
        except SafetensorError as error:
            raise ValueError(
                f"weights {path} are damaged ({error}); copy or download the file again"
            ) from error


MAX_PICKLE_BYTES = 16 * 2**20  # names and shapes of a 14B transformer take 0.2 MB


class _Shape(tuple[int, ...]):
    """What stands in for a tensor."""


def _tensor(storage: object, offset: int, size: tuple[int, ...], *_: object) -> _Shape:
    return _Shape(size)


def _parameter(data: _Shape, *_: object) -> _Shape:
    return data


STAND_INS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no plain weight")

    def persistent_load(self, pid: Any) -> None:
        """The bytes of a tensor, which stay where they are."""


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a safetensors file or a pickle of plain weights, none of them read.

    ValueError for a file that is damaged or holds anything else.
    """
    return Header(file).shapes if file.suffix == ".safetensors" else pickle_shapes(file)


def pickle_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what `torch.save` wrote. ValueError where that is not tensors by name."""
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = (n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"])
            if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
                raise pickle.UnpicklingError("it is too large for names and shapes")
            content: Any = _Reader(io.BytesIO(archive.read(name))).load()
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"weights {file} are damaged, or a pickle from before PyTorch 1.6; copy or download "
            "the file again, or ask for it as .safetensors"
        ) from error
    except Exception as error:  # a pickle that is not what it seems may raise anything
        raise ValueError(
            f"weights {file} are a pickle that holds more than weights, so it is not opened; ask "
            "for it as .safetensors"
        ) from error
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(shape, _Shape) for shape in content.values()):
        raise ValueError(
            f"weights {file} do not hold tensors by name; ask for the file as .safetensors"
        )
    return {name: tuple(shape) for name, shape in content.items()}
