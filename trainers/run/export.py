"""What a run hands over, at its end or from one of its checkpoints.

Weights in the diffusers layout, or a LoRA file, with the sampler they want. What is distilled is
stored as fp16; a base model keeps fp32.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from huggingface_hub import save_torch_state_dict

from pipelines.catalog.registry import CheckpointSpec, Registry
from pipelines.catalog.steps import step_name
from pipelines.catalog.students import StudentSpec
from pipelines.lora.apply import save_lora
from pipelines.sampling.guidance_embedder import portable_name
from trainers.algorithm import Algorithm
from trainers.networks.role import BuiltRole
from trainers.ranks.ranks import Ranks
from trainers.run.checkpoint import checkpoint_folder, full_weights, load_checkpoint
from trainers.settings.roles import Ema, Trainable
from trainers.settings.run import TrainConfig


def exported_role(roles: dict[str, BuiltRole]) -> BuiltRole:
    """The role a run samples and exports.

    The student's moving average where one is kept, else the student.
    """
    for role in roles.values():
        if isinstance(role.settings, Ema) and role.settings.of == "student":
            return role
    return roles["student"]


def export_role(
    config: TrainConfig[Any],
    trained: Algorithm[Any],
    roles: dict[str, BuiltRole],
    folder: Path,
    ranks: Ranks,
) -> None:
    """Writes `folder/transformer`, `folder/vae` or `folder/lora.safetensors`, and `sampler.json`.

    Replaces an older export whole.
    """
    role = exported_role(roles)
    weights = full_weights(role.own_parameters, ranks)
    if not ranks.is_main:
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec = student_spec(config, trained)
    (partial / "sampler.json").write_text(spec.model_dump_json(indent=2))
    student = roles["student"].settings
    assert isinstance(student, Trainable)
    if student.lora is not None:
        file, lora = partial / "lora.safetensors", student.lora
        own = {name: weight.half() for name, weight in weights.items()}
        save_lora(own, file, lora.rank, lora.alpha, spec.sampler)
    else:
        component = trained.component
        assert isinstance(role.network, ModelMixin)
        role.network.save_config(partial / component)
        dtype = torch.float16 if "teacher" in roles else torch.float32
        save_torch_state_dict(
            {portable_name(name): weight.to(dtype) for name, weight in weights.items()},
            partial / component,
            filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def export_checkpoint(
    config: TrainConfig[Any],
    trained: Algorithm[Any],
    roles: dict[str, BuiltRole],
    run_dir: Path,
    step: int,
    ranks: Ranks,
) -> Path:
    """Exports the student of one checkpoint; the registry calls it RUN@STEP. Returns the folder.

    ValueError where the run has no such checkpoint.
    """
    load_checkpoint(checkpoint_folder(run_dir, step), roles, {}, ranks)
    folder = run_dir / "exports" / step_name(step)
    if ranks.is_main:
        folder.parent.mkdir(exist_ok=True)
    export_role(config, trained, roles, folder, ranks)
    return folder


def student_spec(config: TrainConfig[Any], trained: Algorithm[Any]) -> StudentSpec:
    """How the student is to be sampled, and which model it stands on."""
    registry = Registry()
    entry = registry.entry(config.model)
    preset = entry.preset
    own = {name: getattr(preset, name) for name in CheckpointSpec.model_fields}
    own["sampler"] = trained.sampler(preset.sampler)
    base = preset.name if config.algorithm.on_top else entry.base or preset.name
    return StudentSpec(**own, base=base)
