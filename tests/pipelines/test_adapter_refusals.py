import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from pipelines.lora.apply import apply_adapters
from pipelines.lora.file import read_lora
from pipelines.recipe import Adapter
from tests.pipelines.conftest import lora_tensors, velocity


def write_foreign_names(path: Path) -> None:
    save_file({f"unet.down.{name}": t for name, t in lora_tensors(1).items()}, path)


def write_other_model_size(path: Path) -> None:
    save_file({f"transformer.{k}": v for k, v in lora_tensors(1, dim=48).items()}, path)


def write_full_weights(path: Path) -> None:
    save_file({"blocks.0.attn1.to_q.weight": torch.zeros(32, 32)}, path)


def write_dora(path: Path) -> None:
    magnitude = {"blocks.0.attn1.to_q.lora_magnitude_vector": torch.ones(32)}
    save_file(lora_tensors(1) | magnitude, path)


def write_half(path: Path) -> None:
    tensors = lora_tensors(1)
    del tensors["blocks.0.attn1.to_q.lora_B.weight"]
    save_file(tensors, path)


def write_truncated(path: Path) -> None:
    save_file(lora_tensors(1), path)
    path.write_bytes(path.read_bytes()[:-100])


def write_nothing(path: Path) -> None:
    save_file({}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_foreign_names, "fits no layer of Wan2.1"),
        (write_other_model_size, "made for another model: .* 48x48 in the file and 32x32 here"),
        (write_full_weights, "to_q.weight is not a plain LoRA weight"),
        (write_dora, "lora_magnitude_vector is not a plain LoRA weight"),
        (write_half, "is incomplete: .*to_q has only one of A and B"),
        (write_truncated, "are damaged"),
        (write_nothing, "is incomplete: it is empty"),
        (lambda path: path.mkdir(), "is a folder without adapter_config.json"),
        (lambda path: None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_applied_is_refused_and_the_base_stays_usable(
    write: Callable[[Path], None],
    message: str,
    transformer: WanTransformer3DModel,
    tmp_path: Path,
) -> None:
    base = velocity(transformer)
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(ValueError, match=message):
        apply_adapters(transformer, [Adapter(path=str(path), fingerprint="0")])
    apply_adapters(transformer, [])
    assert torch.equal(velocity(transformer), base)


def test_the_same_file_twice_is_refused(
    transformer: WanTransformer3DModel, lora_file: Path
) -> None:
    with pytest.raises(ValueError, match="not all different; list each once"):
        apply_adapters(
            transformer, [Adapter(path=str(lora_file)), Adapter(path=str(lora_file), strength=0.5)]
        )


def test_a_pickle_of_plain_weights_is_read_and_one_that_runs_code_is_not(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pt"
    torch.save(lora_tensors(1), plain)
    assert len(read_lora(plain).down) == 8

    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return open, (str(marker), "w")  # type: ignore[return-value]

    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(pickle.dumps({"a": Payload()}))
    zipped = tmp_path / "zipped.bin"
    torch.save({"a": Payload()}, zipped)
    text = tmp_path / "notes.pt"
    text.write_text("not weights at all")
    for path in (hostile, zipped, text):
        with pytest.raises(ValueError, match="neither safetensors nor a pickle of plain weights"):
            read_lora(path)
    assert not marker.exists()
