"""The costs of a run, counted without its weights: a block's operations, and how often roles run.

A transformer block runs at the run's own size on tensors without storage; a one-block stand-in goes
through the method's own losses.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.guidance_embedder import add_guidance_embedder, time_embedding
from pipelines.sampling.prompt import Prompt
from trainers.algorithm import Batch, Rng
from trainers.networks.build import build_roles
from trainers.networks.models import LoadedModel
from trainers.networks.role import BuiltRole
from trainers.networks.shared_base import RoleDenoiser
from trainers.registry import algorithm_class
from trainers.settings.run import TrainConfig

NUM_STEPS_COUNTED = 20
TEXT_TOKENS = 512
IMAGE_TOKENS = 257  # of Wan2.1's CLIP, for 224x224 pixels
MEASURED_TOKENS = {"cpu": 128, "cuda": 8192}
NUM_MEASURED = 3
ENOUGH_SEC = 0.5  # a forward that takes this long needs no second opinion


@dataclass(frozen=True)
class BlockCost:
    """What one block of a role costs for one micro-batch, on one rank."""

    forward_flops: float
    backward_flops: float
    kept_bytes: float  # by autograd, until backward
    input_bytes: float


@dataclass(frozen=True)
class Runs:
    """How often a role runs in one micro-batch of one step, on average."""

    num_forwards: float
    num_backwards: float


def block_cost(
    role: BuiltRole, shape: tuple[int, ...], batch_size: int, precision: str
) -> BlockCost:
    """The cost of a role's first block for latents of shape (F, H, W); the role may be on meta."""
    if isinstance(role.call, RoleDenoiser):
        role.call.switch.activate(role.adapter)
    with FakeTensorMode():  # as on a CPU, where autocast and attention are as in training
        return _fake_block_cost(role.transformer, shape, batch_size, precision)


def _fake_block_cost(
    transformer: WanTransformer3DModel, shape: tuple[int, ...], batch_size: int, precision: str
) -> BlockCost:
    head_dim = transformer.config.attention_head_dim
    dim = transformer.config.num_attention_heads * head_dim
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sides = zip(shape, transformer.config.patch_size, strict=True)
    num_tokens = math.prod(side // patch for side, patch in sides)
    tokens = torch.empty(batch_size, num_tokens, dim, dtype=dtype, requires_grad=True)
    num_context = TEXT_TOKENS
    if transformer.config.added_kv_proj_dim is not None:
        num_context += IMAGE_TOKENS
    text = torch.empty(batch_size, num_context, dim, dtype=dtype)
    modulation = torch.empty(batch_size, 6, dim)
    rotary = (torch.empty(1, num_tokens, 1, head_dim), torch.empty(1, num_tokens, 1, head_dim))
    block = transformer.blocks[0]
    weights = {
        name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
        for name, p in block.named_parameters()
    }
    own = {_storage_id(weight) for weight in weights.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as forward, autocast, hooks:
        output = functional_call(block, weights, (tokens, text, modulation, rotary))
    with FlopCounterMode(display=False) as backward:
        output.float().sum().backward()
    return BlockCost(
        forward_flops=forward.get_total_flops(),
        backward_flops=backward.get_total_flops(),
        kept_bytes=sum(size for storage, size in kept.items() if storage not in own),
        input_bytes=tokens.numel() * tokens.element_size(),
    )


def _storage_id(tensor: Tensor) -> int:
    """Views share it; a tensor without storage has no address."""
    return int(tensor.untyped_storage()._cdata)


def stand_ins(models: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
    """One-block networks in place of others; models that share a network still share one."""
    by_network = {id(model.network): _stand_in(model) for model in models.values()}
    return {name: LoadedModel(by_network[id(model.network)]) for name, model in models.items()}


def _stand_in(model: LoadedModel) -> ModelMixin:
    network = model.transformer
    small = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=network.config.in_channels,
        out_channels=network.config.out_channels,
        text_dim=8,
        freq_dim=8,
        ffn_dim=8,
        num_layers=1,
        image_dim=None if network.config.image_dim is None else 8,
        added_kv_proj_dim=None if network.config.added_kv_proj_dim is None else 12,
    )
    if time_embedding(network) is not None or (model.lora is not None and model.lora.guidance):
        add_guidance_embedder(small)
    return small


class MeanOfLatents:
    """Stands in for a reward, as cheap as can be."""

    differentiable = True

    def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """latents [B, C, F, H, W] -> [B]."""
        return latents.flatten(1).mean(1)


def count_runs(
    config: TrainConfig[Any], models: Mapping[str, LoadedModel], own_sampler: SamplerSpec
) -> dict[str, Runs]:
    """What the method's losses run in a micro-batch, over its first steps, by role.

    `own_sampler` is that of the run's model.
    """
    roles = build_roles(config.algorithm, models)
    network = models[""].transformer
    shape = (network.config.out_channels, 1, 2, 2)
    latents, embeds = torch.randn(1, *shape), torch.randn(1, TEXT_TOKENS, 8)
    batch = Batch(
        prompts=("",),
        latents=latents,
        prompt=Prompt(embeds, image=_image(network, latents)),
        negative_embeds=embeds,
        latent_shape=shape,
    )
    # a copy for each role: where they share a transformer, nobody could say whose forward it is
    calls = {name: copy.deepcopy(role.call) for name, role in roles.items()}
    num_forwards: Counter[str] = Counter()
    num_backwards: Counter[str] = Counter()

    def count(name: str, module: nn.Module, inputs: Any, output: tuple[Tensor]) -> None:
        num_forwards[name] += 1
        num_backwards[name] += output[0].requires_grad

    denoisers = {name: call for name, call in calls.items() if isinstance(call, Denoiser)}
    for name, call in denoisers.items():
        call.transformer.register_forward_hook(partial(count, name))
    score = MeanOfLatents() if config.reward else None
    method = algorithm_class(config.method)(config.algorithm, calls, score, own_sampler)
    rng = Rng(torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    for step in range(NUM_STEPS_COUNTED):
        for update in method.updates(step):
            update.loss(batch, rng)
    return {
        name: Runs(num_forwards[name] / NUM_STEPS_COUNTED, num_backwards[name] / NUM_STEPS_COUNTED)
        for name in denoisers
    }


def _image(network: WanTransformer3DModel, latents: Tensor) -> ImageCondition | None:
    """An image for a stand-in that continues one."""
    if not Denoiser(network).takes_image:
        return None
    image_dim = network.config.image_dim
    return ImageCondition(latents, None if image_dim is None else torch.randn(1, 4, image_dim))


def measured_flops(config: TrainConfig[Any], network: WanTransformer3DModel) -> tuple[float, str]:
    """Operations a second of one forward of a block as wide as the network's, and where it ran."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with torch.device("meta"):
        small = WanTransformer3DModel.from_config({**network.config, "num_layers": 1})
    block = small.blocks[0].to(dtype).to_empty(device=device).requires_grad_(False)
    for parameter in block.parameters():
        parameter.zero_()  # what lies in fresh memory may be slow to compute with
    dim = network.config.num_attention_heads * network.config.attention_head_dim
    tokens = torch.zeros(1, MEASURED_TOKENS[device], dim, dtype=dtype, device=device)
    text = torch.zeros(1, TEXT_TOKENS, dim, dtype=dtype, device=device)
    modulation = torch.zeros(1, 6, dim, device=device)

    def run() -> None:
        block(tokens, text, modulation, None)
        if device == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        run()
    seconds: list[float] = []
    while len(seconds) < NUM_MEASURED and sum(seconds) < ENOUGH_SEC:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    where = torch.cuda.get_device_name() if device == "cuda" else "this machine's CPU"
    return counter.get_total_flops() / min(seconds), where
