"""The export of a student, at the end of a run or from one of its checkpoints.

Weights in the diffusers layout, or a LoRA file, with the sampler they want. What is distilled is
stored as fp16; a base model keeps fp32.
"""

import os
import shutil
from pathlib import Path

import torch
from diffusers import ModelMixin
from huggingface_hub import save_torch_state_dict

from pipelines.catalog.entries import CheckpointSpec
from pipelines.catalog.students import StudentSpec
from pipelines.lora.file import save_lora
from pipelines.sampling.guidance_embedder import portable_name
from trainers.run.checkpoint import full_weights
from trainers.run.run import Run


def export_student(run: Run, folder: Path) -> None:
    """Writes `folder/transformer`, `folder/vae` or `folder/lora.safetensors`, and `sampler.json`.

    Replaces an older export whole.
    """
    role = run.exported_role
    weights = full_weights(role.own_parameters, run.ranks)
    if not run.ranks.is_main:
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec = student_spec(run)
    (partial / "sampler.json").write_text(spec.model_dump_json(indent=2))
    lora = run.roles["student"].lora
    if lora is not None:
        own = {name: weight.half() for name, weight in weights.items()}
        save_lora(own, partial / "lora.safetensors", lora.rank, lora.alpha, spec.sampler)
    else:
        component = run.algorithm.component
        assert isinstance(role.network, ModelMixin)
        role.network.save_config(partial / component)
        dtype = torch.float16 if "teacher" in run.roles else torch.float32
        save_torch_state_dict(
            {portable_name(name): weight.to(dtype) for name, weight in weights.items()},
            partial / component,
            filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def student_spec(run: Run) -> StudentSpec:
    """How the student is to be sampled, and which model it stands on."""
    preset = run.entry.preset
    own = {name: getattr(preset, name) for name in CheckpointSpec.model_fields}
    own["sampler"] = run.algorithm.sampler(preset.sampler)
    base = preset.name if run.config.algorithm.on_top else run.entry.base or preset.name
    return StudentSpec(**own, base=base)
