"""A reward's LoRA on top of a student: what is merged, what is exported, what stands on what."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.catalog.registry import Registry
from pipelines.model_cache import ModelCache
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.prompt import Prompt
from tests.trainers.runs import trainer

LORA = {"student": {"learning_rate": 3e-2, "lora": {"rank": 2}}}


def exported(config: Any, folder: Path, method: str, **settings: Any) -> Any:
    """A run that is done; its export lies in folder/export."""
    run = trainer(config(method, algorithm=LORA, num_steps=2, **settings), folder)
    assert run.train()
    return run


def velocity(model: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 16, 2, 4, 4, generator=generator)
    prompt = Prompt(torch.randn(1, 12, 16, generator=generator))
    with torch.no_grad():
        return model.velocity(noisy, torch.full((1,), 0.5), prompt)


def test_the_exported_lora_stands_on_the_student_and_both_make_the_trained_network(
    config, tmp_path: Path
) -> None:
    exported(config, tmp_path / "first", "finetune")
    student = tmp_path / "first" / "export"
    run = exported(config, tmp_path / "second", "draft", model=str(student))
    rewarded = tmp_path / "second" / "export"
    assert json.loads((rewarded / "sampler.json").read_text())["base"] == str(student)
    models = ModelCache(Registry(), "cpu")
    found = {}
    for folder in (student, rewarded):
        recipe = models.registry.recipe(str(folder), "a red circle")
        entry = models.registry.entry(recipe.model)
        components = models.components(recipe, entry)
        models.adapt(recipe, entry, components)
        found[folder] = velocity(Denoiser(components.transformer))
    trained, before = (velocity(run.roles[name].call) for name in ("student", "teacher"))
    close = {"atol": 2e-3, "rtol": 2e-2}  # exports are fp16
    torch.testing.assert_close(found[rewarded], trained, **close)
    torch.testing.assert_close(found[student], before, **close)
    assert (trained - before).abs().max() > 10 * (found[rewarded] - trained).abs().max()


def test_loras_that_the_export_could_not_name_are_refused(config, tmp_path: Path) -> None:
    exported(config, tmp_path / "first", "finetune")
    adapters = [{"path": str(tmp_path / "first" / "export" / "lora.safetensors")}]
    with pytest.raises(ValueError, match=r"^adapters: draft trains a LoRA on top of a model"):
        trainer(config("draft", algorithm=LORA, adapters=adapters), tmp_path / "second")
