"""How far LoRAs have gone from where they started: the Frobenius norm of what they add."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainers.networks.build import BuiltRole, adapter_weights
from trainers.ranks.ranks import whole
from trainers.settings.run import Trainable


def lora_norms(roles: Mapping[str, BuiltRole]) -> dict[str, Tensor]:
    """`ROLE/lora_norm` = sqrt( sum over layers || alpha / rank B A ||^2 ), of each trained LoRA.

    Every rank takes part. The products stay as small as the rank: || B A ||^2 = <B'B, A A'>.
    """
    norms = {}
    for name, role in roles.items():
        settings = role.settings
        if not isinstance(settings, Trainable) or settings.lora is None:
            continue
        lora, squares = adapter_weights(role), []
        for layer, part in lora.down.items():
            down, up = whole(part).float(), whole(lora.up[layer]).float()
            squares.append(((up.T @ up) * (down @ down.T)).sum())
        scale = settings.lora.alpha / settings.lora.rank
        norms[f"{name}/lora_norm"] = scale * torch.stack(squares).sum().sqrt()
    return norms
