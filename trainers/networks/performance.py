"""How networks compute: attention backend, compiled and checkpointed blocks, bf16 storage."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.networks.role import BuiltRole
from trainers.networks.shared_base import RoleDenoiser
from trainers.ranks.context import share_context
from trainers.ranks.ranks import Ranks
from trainers.settings.roles import Discriminator, Ema, Trainable
from trainers.settings.run import TrainConfig


def tune_compute(roles: Mapping[str, BuiltRole], config: TrainConfig, ranks: Ranks) -> None:
    """Sets how the networks of all roles compute, before they are sharded.

    ValueError names a setting that does not fit.
    """
    transformers = transformers_of(roles.values())
    settings = (config.attention_backend, config.compile_blocks, config.activation_checkpointing)
    if not transformers:
        if any(settings) or ranks.context > 1:
            raise ValueError(
                "attention_backend, compile_blocks, activation_checkpointing, parallel.context: "
                "only transformers have them"
            )
        return
    if ranks.context > 1 and any(isinstance(r.settings, Discriminator) for r in roles.values()):
        raise ValueError(
            "parallel.context: a discriminator reads the tokens of a whole video; set it to 1"
        )
    for transformer, own in transformers:
        if config.precision == "bf16":
            store_frozen_in_bf16(transformer, own)
            # everywhere it is called: with weights of two types there is no forward without
            hooks = HookRegistry.check_if_exists_or_initialize(transformer)
            hooks.register_hook(_Within(autocast(config.precision, ranks)), "autocast")
        _choose_attention(transformer, config.attention_backend)
        share_context(transformer, ranks)
        if config.activation_checkpointing:
            checkpoint_blocks(transformer, next(role.call for role in own))
        # Networks that only predict run too seldom to earn compiling back.
        if config.compile_blocks and any(role.trained for role in own):
            for block in transformer.blocks:
                block.compile()


def autocast(precision: Literal["fp32", "bf16"], ranks: Ranks) -> torch.autocast:
    """The context that losses are computed in; it can be entered again and again.

    Weights that are split are rounded anew in every forward: a cast that is kept from a forward
    without gradients (a rollout's) is an older node of autograd than the block that uses it again.
    Its gradient comes after FSDP2 has reduced the block's, and is lost without a word (pytorch
    #158232). It would also keep in memory what FSDP2 frees.
    """
    device, keep = ranks.device.type, ranks.weights_mesh is None
    return torch.autocast(device, torch.bfloat16, precision == "bf16", cache_enabled=keep)


class _Within(ModelHook):
    """Runs every forward of a network in a context."""

    def __init__(self, context: torch.autocast):
        super().__init__()
        self.context = context

    def new_forward(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """What diffusers calls in place of the network's own forward."""
        with self.context:
            return self.fn_ref.original_forward(*inputs, **named)


def transformers_of(
    roles: Iterable[BuiltRole],
) -> list[tuple[WanTransformer3DModel, list[BuiltRole]]]:
    """Every transformer once, with the roles that are views of it."""
    found: dict[int, tuple[WanTransformer3DModel, list[BuiltRole]]] = {}
    for role in roles:
        if isinstance(role.network, WanTransformer3DModel):
            found.setdefault(id(role.network), (role.network, []))[1].append(role)
    return list(found.values())


def _choose_attention(transformer: WanTransformer3DModel, backend: str | None) -> None:
    """ValueError for a backend that diffusers does not know."""
    known = [name.value for name in AttentionBackendName]
    if backend is None:
        return
    if backend not in known:
        raise ValueError(f"attention_backend: choose one of {', '.join(known)}")
    transformer.set_attention_backend(backend)


def checkpoint_blocks(transformer: WanTransformer3DModel, call: nn.Module) -> None:
    """Keeps only the input of each block, and runs the block again in backward.

    Where roles share the transformer, that raises RuntimeError unless the adapter of the forward is
    on again.
    """
    switch = call.switch if isinstance(call, RoleDenoiser) else None

    def run(block: nn.Module, *inputs: Tensor) -> Any:
        adapter = switch.active if switch is not None else None

        def forward(*inputs: Tensor) -> Any:
            if switch is not None:
                switch.require(adapter)
            return block(*inputs)

        # preserve_rng_state: a block draws no random numbers
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    transformer.enable_gradient_checkpointing(run)


def store_frozen_in_bf16(transformer: WanTransformer3DModel, roles: Iterable[BuiltRole]) -> None:
    """Halves what a frozen base takes: its linear and convolution weights are kept in bf16.

    These are what autocast rounds to bf16 at every use, so no result changes. All else stays fp32:
    norms, tables, what trains or averages, and what the model asks for (`_keep_in_fp32_modules`).
    `roles` are the views of the transformer.
    """
    kept = {
        id(parameter)
        for role in roles
        if isinstance(role.settings, Trainable | Ema)
        for parameter in role.own_parameters.values()
    }
    fp32_parts = set(transformer._keep_in_fp32_modules)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and not fp32_parts & set(name.split(".")):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in kept:
                    parameter.data = parameter.data.to(torch.bfloat16)
