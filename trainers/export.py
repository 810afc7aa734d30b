"""What a finished run hands over.

Weights in the diffusers layout, or a LoRA file, with the sampler they want.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict

from pipelines.adapters import save_lora
from pipelines.registry import CheckpointSpec, Registry
from trainers.checkpoint import full_weights
from trainers.config import Ema, Trainable, TrainConfig
from trainers.distributed import World
from trainers.registry import algorithm_class
from trainers.roles import BuiltRole


def exported_role(roles: dict[str, BuiltRole]) -> BuiltRole:
    """The role a run samples and exports.

    The student's moving average where one is kept, else the student.
    """
    for role in roles.values():
        if isinstance(role.settings, Ema) and role.settings.of == "student":
            return role
    return roles["student"]


def export_role(
    config: TrainConfig[Any], roles: dict[str, BuiltRole], folder: Path, world: World
) -> None:
    """Writes `folder/transformer`, `folder/vae` or `folder/lora.safetensors`, and `sampler.json`.

    Replaces an older export whole. The sampler is the base model's own.
    """
    role = exported_role(roles)
    weights = full_weights(role.network)
    if not world.is_main:
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    preset = Registry().entry(config.model).preset
    spec = CheckpointSpec(**{name: getattr(preset, name) for name in CheckpointSpec.model_fields})
    (partial / "sampler.json").write_text(spec.model_dump_json(indent=2))
    student = roles["student"].settings
    assert isinstance(student, Trainable)
    if student.lora is not None:
        file, lora = partial / "lora.safetensors", student.lora
        save_lora(weights, file, lora.rank, lora.alpha, spec.sampler)
    else:
        component = algorithm_class(config.method).component
        role.network.save_config(partial / component)
        save_torch_state_dict(
            weights,
            partial / component,
            filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
