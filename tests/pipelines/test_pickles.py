"""What is told of a pickle without running it, and the LoRAs that are choices by it."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pipelines.catalog.registry import Registry
from pipelines.files.lora_outline import lora_shapes
from pipelines.files.tensors import pickle_shapes
from pipelines.lora.file import read_lora
from pipelines.recipe import Adapter
from tests.pipelines.conftest import Payload, lora_tensors


def test_a_bare_pickle_of_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"a pickle from before PyTorch 1\.6"):
        pickle_shapes(tmp_path / "bare.pt")
    assert not (tmp_path / "ran").exists()


def test_pickled_loras_are_choices_where_they_hold_plain_weights_alone(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = tmp_path / "loras"
    (loras / "peft").mkdir(parents=True)
    plain, marker = lora_tensors(1), tmp_path / "ran"
    torch.save({name: t.bfloat16() for name, t in plain.items()}, loras / "style.pt")
    torch.save(OrderedDict(plain), loras / "style.bin")
    torch.save(plain, loras / "peft" / "adapter_model.bin")
    (loras / "peft" / "adapter_config.json").write_text('{"lora_alpha": 4}')
    torch.save({"state_dict": plain, "step": 3}, loras / "checkpoint.pt")
    torch.save(plain, loras / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(plain | {"code": Payload(marker)}, loras / "code.pt")
    torch.save({"blocks.0.weight": torch.zeros(3)}, loras / "full.pt")
    (loras / "cut.pt").write_bytes((loras / "style.pt").read_bytes()[:-100])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("weights were read"))
    registry = Registry([models_dir, loras])
    found = [path for path in registry.loras() if path.is_relative_to(loras)]
    assert found == [loras / "style.bin", loras / "style.pt", loras / "peft"]
    assert not marker.exists()
    expected = {name: tuple(tensor.shape) for name, tensor in plain.items()}
    assert all(dict(lora_shapes(path)) == expected for path in found)
    monkeypatch.undo()
    for path in found:
        assert read_lora(path).shapes == {
            name.removesuffix(".lora_A.weight"): (32, 32) for name in plain if ".lora_A." in name
        }
    assert set(read_lora(loras / "peft").alphas.values()) == {4}
    recipe = registry.recipe("mini", "a", adapters=[Adapter(path=str(loras / "style.pt"))])
    assert recipe.adapters[0].fingerprint
