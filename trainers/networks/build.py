"""Builds the networks that a method declares.

Own weights, or an adapter on the one base that all adapter roles and frozen roles share.
"""

import copy
from collections.abc import Mapping

from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel

from pipelines.lora.file import Lora
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance_embedder import add_guidance_embedder, time_embedding
from trainers.networks.models import LoadedModel
from trainers.networks.role import Autoencoder, BuiltRole, DiscriminatorHead, adapter_weights
from trainers.networks.shared_base import (
    AdapterSwitch,
    RoleDenoiser,
    add_adapter,
    add_embedder,
    merge,
)
from trainers.settings.roles import (
    AlgorithmConfig,
    Discriminator,
    Ema,
    Frozen,
    GuidedTrainable,
    LoraSettings,
    Role,
    Trainable,
)

MUST_AGREE = ("in_channels", "out_channels", "text_dim", "image_dim")


def build_roles(config: AlgorithmConfig, models: Mapping[str, LoadedModel]) -> dict[str, BuiltRole]:
    """The networks of all declared roles, in fp32.

    `models` holds the run's own under "" and every other model that a role names. Full copies are
    taken before any adapter goes into the base. ValueError names the role and the field.
    """
    for model in models.values():
        model.network.requires_grad_(False)
    switches = {  # one a network: several names may mean the same one
        id(model.network): AdapterSwitch(model.network)
        for model in models.values()
        if isinstance(model.network, WanTransformer3DModel)
    }
    built: dict[str, BuiltRole] = {}
    declared = config.roles()
    for name, settings in declared.items():
        try:
            if _owns_weights(settings, declared):
                built[name] = _own_weights(settings, models, built)
        except ValueError as error:
            raise ValueError(f"algorithm.{name}.{error}") from error
    for name, settings in declared.items():
        try:
            if name not in built:
                built[name] = _on_shared_base(name, settings, models, switches, built)
        except ValueError as error:
            raise ValueError(f"algorithm.{name}.{error}") from error
    for name, role in built.items():
        _require_pull_fits(name, role, built)
    for switch in switches.values():
        switch.ready()
    return {name: built[name] for name in declared}


def _owns_weights(settings: Role, declared: Mapping[str, Role]) -> bool:
    if isinstance(settings, Ema):
        of = declared.get(settings.of)
        if not isinstance(of, Trainable):
            raise ValueError(f"of: there is no trained role {settings.of!r}")
        return of.lora is None
    return isinstance(settings, Trainable) and settings.lora is None


def _own_weights(
    settings: Role, models: Mapping[str, LoadedModel], built: Mapping[str, BuiltRole]
) -> BuiltRole:
    """A full copy of the run's model, or of the role that is averaged."""
    if isinstance(settings, Discriminator):
        return _discriminator(settings, models)
    if isinstance(settings, Ema):
        if settings.of not in built:
            raise ValueError(f"of: {settings.of!r} must be declared first")
        network = copy.deepcopy(built[settings.of].network).requires_grad_(False)
    else:
        assert isinstance(settings, Trainable)
        model = _start(settings, models)
        _require_agreement(model.network, models[""].network, "start_from")
        network = copy.deepcopy(model.network)
        if model.lora is not None:
            merge(network, model.lora)
        if isinstance(settings, GuidedTrainable) and time_embedding(network) is None:
            add_guidance_embedder(network)
        network.requires_grad_(True).train()
    if isinstance(network, AutoencoderKLWan):
        call = Autoencoder(network)
        return BuiltRole(settings, network, call, call)
    return BuiltRole(settings, network, Denoiser(network), network)


def _on_shared_base(
    name: str,
    settings: Role,
    models: Mapping[str, LoadedModel],
    switches: Mapping[int, AdapterSwitch],
    built: Mapping[str, BuiltRole],
) -> BuiltRole:
    """The run's base or another model as it is, or an adapter on the run's base."""
    which = settings.model or "" if isinstance(settings, Frozen) else ""
    model = models[which]
    _require_agreement(model.network, models[""].network, "model")
    if not isinstance(model.network, WanTransformer3DModel):
        return BuiltRole(settings, model.network, model.network, model.network)
    transformer, switch = model.network, switches[id(model.network)]
    adapter: str | None = name
    if isinstance(settings, Frozen):
        if model.lora is None:
            adapter = None
        else:
            add_adapter(transformer, name, _room_for(model.lora), model.lora)
    elif isinstance(settings, Ema):
        add_adapter(transformer, name, *_like(built[settings.of]))
    else:
        assert settings.lora is not None
        start = _start(settings, models)
        if start.network is not transformer:
            raise ValueError(
                f"start_from: {settings.start_from} has a transformer of its own, which a LoRA on "
                "the run's base cannot start as; leave lora out or name a LoRA student"
            )
        add_adapter(transformer, name, settings.lora, start.lora)
        if isinstance(settings, GuidedTrainable):
            add_embedder(transformer, name)
    call = RoleDenoiser(transformer, switch, adapter)
    role = BuiltRole(settings, transformer, call, transformer, adapter)
    for parameter in role.own_parameters.values() if adapter is not None else ():
        parameter.requires_grad_(isinstance(settings, Trainable))
    return role


def _start(settings: Trainable, models: Mapping[str, LoadedModel]) -> LoadedModel:
    """What a trained role starts as: the run's model, or the student it names."""
    return models[settings.start_from or ""]


def _room_for(lora: Lora) -> LoraSettings:
    """Settings of an adapter that holds a LoRA exactly."""
    rank = max(down.shape[0] for down in lora.down.values())
    return LoraSettings(rank=rank, alpha=rank, targets=tuple(lora.down))


def _like(role: BuiltRole) -> tuple[LoraSettings, Lora]:
    """The settings and weights of an adapter, for a moving average that starts as its copy."""
    assert role.lora is not None
    return role.lora, adapter_weights(role)


def _discriminator(settings: Discriminator, models: Mapping[str, LoadedModel]) -> BuiltRole:
    """A head of its own; the method feeds it with another role's features."""
    transformer = models[""].network
    assert isinstance(transformer, WanTransformer3DModel)
    dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    head = DiscriminatorHead(dim)
    return BuiltRole(settings, head, head, head)


def _require_agreement(network: ModelMixin, own: ModelMixin, setting: str) -> None:
    """ValueError where two networks do not read and write the same latents and prompts."""
    for field in MUST_AGREE if isinstance(own, WanTransformer3DModel) else ():
        if network.config[field] != own.config[field]:
            raise ValueError(
                f"{setting}: its {field} is {network.config[field]} and that of the run's model is "
                f"{own.config[field]}; choose a model for the same latents and text encoder"
            )


def _require_pull_fits(name: str, role: BuiltRole, built: Mapping[str, BuiltRole]) -> None:
    """ValueError where a role is pulled toward one whose parameters are not like its own."""
    pull = role.settings.pull if isinstance(role.settings, Trainable) else None
    if pull is None:
        return
    other = built.get(pull.toward)
    if other is None or other is role or not isinstance(other.settings, Trainable):
        raise ValueError(
            f"algorithm.{name}.pull.toward: there is no other trained role {pull.toward!r}"
        )
    shapes = [
        {n.replace(f".{each.adapter}.", "."): p.shape for n, p in each.trained.items()}
        for each in (role, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"algorithm.{name}.pull: {name} and {pull.toward} train different parameters; give "
            "both the same lora, or none"
        )
