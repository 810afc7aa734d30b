"""Context parallelism: the tokens of one video on several ranks."""

from diffusers import ContextParallelConfig, ParallelConfig, WanTransformer3DModel
from diffusers.hooks import apply_context_parallel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from trainers.ranks.ranks import Ranks


def share_context(transformer: WanTransformer3DModel, ranks: Ranks) -> None:
    """Splits the tokens of every forward over the context group (Ulysses); call before `shard`.

    Every rank returns the whole prediction, and gradients of the weights *sum* over the group to
    what one rank would have. Does what diffusers' `enable_parallelism` does, which divides by the
    number of accelerators and so needs one. ValueError names the setting that does not fit.
    """
    if ranks.context_mesh is None:
        return
    attentions = [m for m in transformer.modules() if isinstance(m, WanAttention)]
    backend = attentions[0].processor._attention_backend or AttentionBackendName.NATIVE
    known = sorted(_AttentionBackendRegistry._supports_context_parallel)
    if AttentionBackendName(backend).value not in known:
        raise ValueError(
            f"attention_backend: {backend} cannot share tokens between ranks (parallel.context); "
            f"choose one of {', '.join(known)}"
        )
    num_heads = transformer.config.num_attention_heads
    if num_heads % ranks.context:
        raise ValueError(
            f"parallel.context: {ranks.context} ranks cannot share {num_heads} attention heads; "
            "choose a divisor of that"
        )
    config = ContextParallelConfig(ulysses_degree=ranks.context, mesh=ranks.context_mesh)
    both = ParallelConfig(context_parallel_config=config)
    both.setup(ranks.rank, ranks.num_ranks, ranks.device, mesh=ranks.context_mesh)
    for attention in attentions:
        attention.processor._parallel_config = both
        for norm in (attention.norm_q, attention.norm_k):
            norm.register_forward_hook(_in_type_of_input)
    # "" would split one timestep a token, which Wan2.1 does not have
    plan = {name: part for name, part in transformer._cp_plan.items() if name}
    apply_context_parallel(transformer, config, plan)
    patch_size = tuple(transformer.config.patch_size)

    def require(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        _require_divisible(kwargs["hidden_states"], patch_size, ranks.context)

    transformer.register_forward_pre_hook(require, with_kwargs=True)


def _in_type_of_input(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Ulysses' backward runs outside autocast and wants query, key and value of one type."""
    return output.to(inputs[0].dtype)


def _require_divisible(latents: Tensor, patch_size: tuple[int, ...], context: int) -> None:
    """ValueError where the tokens of latents [B, C, F, H, W] cannot be split evenly."""
    num_tokens = 1
    for side, patch in zip(latents.shape[2:], patch_size, strict=True):
        num_tokens *= side // patch
    if num_tokens % context:
        raise ValueError(
            f"parallel.context: {context} ranks cannot share the {num_tokens} tokens of a video "
            f"with latents {'x'.join(map(str, latents.shape[2:]))}; change the size or context"
        )
