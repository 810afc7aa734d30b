"""How transformers compute: attention backend, compiled blocks."""

from collections.abc import Iterable

from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName

from trainers.config import Discriminator
from trainers.roles import BuiltRole


def tune_compute(
    roles: Iterable[BuiltRole], attention_backend: str | None, compile_blocks: bool
) -> None:
    """Sets how transformers compute; ValueError for a backend that diffusers does not know.

    Networks that only predict are compiled where they share their weights with a trained role; the
    others run too seldom to earn it back.
    """
    known = [name.value for name in AttentionBackendName]
    if attention_backend is not None and attention_backend not in known:
        raise ValueError(f"attention_backend: choose one of {', '.join(known)}")
    compiled: set[int] = set()
    for role in roles:
        if isinstance(role.settings, Discriminator):
            continue
        if not isinstance(role.network, WanTransformer3DModel):
            if attention_backend is not None or compile_blocks:
                raise ValueError("attention_backend, compile_blocks: only transformers have them")
            continue
        if attention_backend is not None:
            role.network.set_attention_backend(attention_backend)
        if compile_blocks and role.trained and id(role.network) not in compiled:
            compiled.add(id(role.network))
            for block in role.blocks:
                block.compile()
