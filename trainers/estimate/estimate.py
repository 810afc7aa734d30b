"""The estimate of a run before it starts: parameters, memory a rank, seconds a step.

No weights are needed or loaded. The bytes of a rank, where n ranks split a copy of the weights:

    weights      all stored tensors / n; if n > 1 also two gathered blocks, this one and the next
    gradients    4 a parameter of the role that trains most / n
    Adam         8 a trained parameter / n
    activations  of one forward with a gradient: blocks x what a block keeps / context, or with
                 checkpointing (blocks x its input + what one block keeps) / context

Seconds are operations (blocks only) over operations a second. Embedders, the VAE, the text encoder
and communication are not counted.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import Tensor, nn

from pipelines.catalog.entries import ModelEntry, ModelPreset
from pipelines.catalog.registry import Registry
from pipelines.files.disk import read_json
from pipelines.formats.parts import transformer_settings
from trainers.estimate.costs import (
    NUM_STEPS_COUNTED,
    BlockCost,
    Runs,
    block_cost,
    count_runs,
    measured_flops,
    stand_ins,
)
from trainers.networks.build import build_roles
from trainers.networks.models import load_models, model_folder
from trainers.networks.performance import store_frozen_in_bf16, transformers_of
from trainers.networks.role import BuiltRole
from trainers.registry import algorithm_class
from trainers.settings.data import PromptData
from trainers.settings.roles import Ema, Frozen
from trainers.settings.run import TrainConfig

Rows = list[tuple[str, str]]  # names and figures
H100_FLOPS = 0.4 * 989e12  # a second: 40 % of the bf16 peak in its data sheet, an assumption


@dataclass(frozen=True)
class Estimate:
    """What is told of a run: titles with rows of a name and a figure, and the time of a step.

    Its seconds are `flops` over each of the `speeds`, which are named by where they come from.
    """

    groups: list[tuple[str, Rows]]
    flops: float = 0.0  # operations of a step on a rank
    speeds: dict[str, float] = field(default_factory=dict)  # operations a second

    def text(self) -> str:
        """A line a row, numbers under each other."""
        lines = []
        for title, rows in self.groups:
            lines.append(title)
            for name, figure in rows:
                number, _, unit = figure.partition(" ")
                lines.append(f"  {name:<14}{number:>10} {unit}")
        for where, speed in self.speeds.items():
            lines.append(f"  {self.flops / speed:12.4g} s at {speed / 1e12:.3f} TFLOP/s, {where}")
        return "\n".join(lines)


def estimate(config: TrainConfig[Any], registry: Registry) -> Estimate:
    """What a run of this configuration takes. ValueError where an architecture is unknown."""
    preset = registry.entry(config.model).preset
    with torch.device("meta"):
        models = load_models(config, registry, _skeleton)
    if algorithm_class(config.method).component == "vae":
        parameters = _parameters(build_roles(config.algorithm, models))
        return Estimate(
            [("parameters", parameters), ("memory and time: for transformers only", [])]
        )
    runs = count_runs(config, stand_ins(models), preset.sampler)
    shape, batch_size = _largest_batch(config, preset)
    with torch.device("meta"):
        roles = build_roles(config.algorithm, models)
    for transformer, own in transformers_of(roles.values()):
        if config.precision == "bf16":
            store_frozen_in_bf16(transformer, own)
    costs = {name: block_cost(roles[name], shape, batch_size, config.precision) for name in runs}
    speed, where = measured_flops(config, roles["student"].transformer)
    flops = _step_flops(config, roles, runs, costs)
    size = f"latents {'x'.join(map(str, shape))}, batch {batch_size}, {_num_ranks(config)} rank(s)"
    groups = [
        ("parameters", _parameters(roles)),
        (f"memory a rank, {size}", _memory(config, roles, costs)),
        (
            f"a micro-batch of a step, mean of the first {NUM_STEPS_COUNTED} steps",
            [
                (name, f"{each.num_forwards:.2f} forwards{each.num_backwards:8.2f} backwards")
                for name, each in runs.items()
            ],
        ),
        (f"time a step: {flops / 1e12:.3f} TFLOP a rank", []),
    ]
    return Estimate(
        groups, flops, {f"measured on {where}": speed, "assumed of an H100": H100_FLOPS}
    )


def _skeleton(entry: ModelEntry, component: str) -> ModelMixin:
    """A network without its weights: by its config.json, else by the preset's architecture."""
    if component == "vae":
        return AutoencoderKLWan.from_config(read_json(model_folder(entry) / "vae" / "config.json"))
    architecture = entry.preset.architecture
    if entry.folder is not None or architecture is None:
        architecture = transformer_settings(entry.loaded_transformer)
    return WanTransformer3DModel.from_config(architecture)


def _largest_batch(config: TrainConfig[Any], own: ModelPreset) -> tuple[tuple[int, int, int], int]:
    """Latents (F, H, W) and samples of the largest micro-batch.

    Videos that are prepared are taken to have the model's own size.
    """
    data = config.data
    assert data.source != "shapes"  # for the autoencoder
    sizes = [(own.width, own.height, own.num_frames, data.batch_size)]
    if isinstance(data, PromptData):
        height, frames = data.height or own.height, data.num_frames or own.num_frames
        sizes = [
            (bucket.width, bucket.height, bucket.num_frames, bucket.batch_size or data.batch_size)
            for bucket in data.buckets
        ] or [(data.width or own.width, height, frames, data.batch_size)]
    *size, batch_size = max(sizes, key=math.prod)
    return own.geometry.latent_shape(*size)[1:], batch_size


def _num_ranks(config: TrainConfig[Any]) -> int:
    parallel = config.parallel
    return (parallel.shard or 1) * parallel.replicate * parallel.context


def _parameters(roles: Mapping[str, BuiltRole]) -> Rows:
    """A row a role, and one for each network that roles share, counted once."""
    rows, shared = [], {}
    for name, role in roles.items():
        own, trained = _count(role.own_parameters.values()), _count(role.trained.values())
        kind = "weights of its own"
        if role.adapter is not None or isinstance(role.settings, Frozen):
            shared[id(role.network)] = role.network
            kind = "adapter on a shared network" if role.adapter else "a shared network as it is"
        own = 0 if kind.startswith("a shared") else own
        rows.append((name, f"{own / 1e6:.2f} M, {trained / 1e6:.2f} M trained: {kind}"))
    adapters = [f".{role.adapter}." for role in roles.values() if role.adapter is not None]
    for network in shared.values():
        base = [
            parameter
            for name, parameter in network.named_parameters()
            if not any(adapter in name for adapter in adapters)
        ]
        rows.append(("(shared)", f"{_count(base) / 1e6:.2f} M frozen, held once"))
    return rows


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _num_bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _memory(
    config: TrainConfig[Any], roles: Mapping[str, BuiltRole], costs: Mapping[str, BlockCost]
) -> Rows:
    """The formula of the module's docstring, in GB of 1e9 bytes."""
    num_split = _num_ranks(config) // config.parallel.replicate
    bodies = list({id(role.body): role for role in roles.values()}.values())
    weights = sum(_num_bytes(role.body) for role in bodies) / num_split
    if num_split > 1:
        weights += 2 * max(_num_bytes(block) for role in bodies for block in role.blocks)
    trained = [_count(role.trained.values()) for role in roles.values()]
    averaged = [role for role in roles.values() if isinstance(role.settings, Ema)]
    kept, checkpointed = [], []
    for name, cost in costs.items():
        if roles[name].trained:
            num_blocks = len(list(roles[name].blocks))
            kept.append(num_blocks * cost.kept_bytes)
            checkpointed.append(num_blocks * cost.input_bytes + cost.kept_bytes)
    gb = {
        "weights": weights,
        "(of these EMA)": sum(4 * _count(r.own_parameters.values()) for r in averaged) / num_split,
        "gradients": 4 * max(trained) / num_split,
        "Adam": 8 * sum(trained) / num_split,
        "activations": max(kept) / config.parallel.context,
        "checkpointed": max(checkpointed) / config.parallel.context,
    }
    chosen = "checkpointed" if config.activation_checkpointing else "activations"
    total = sum(gb[name] for name in ("weights", "gradients", "Adam", chosen))
    rows = [(name, f"{num_bytes / 1e9:.3f} GB") for name, num_bytes in gb.items()]
    return [*rows, ("total", f"{total / 1e9:.3f} GB, {chosen}")]


def _step_flops(
    config: TrainConfig[Any],
    roles: Mapping[str, BuiltRole],
    runs: Mapping[str, Runs],
    costs: Mapping[str, BlockCost],
) -> float:
    """Operations of one step on one rank."""
    flops = 0.0
    for name, cost in costs.items():
        num_forwards, num_backwards = runs[name].num_forwards, runs[name].num_backwards
        if config.activation_checkpointing:
            num_forwards += num_backwards
        once = num_forwards * cost.forward_flops + num_backwards * cost.backward_flops
        flops += len(list(roles[name].blocks)) * once
    return flops * config.accumulation_steps / config.parallel.context
