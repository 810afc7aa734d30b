"""The LoRA of what tells two checkpoints apart: truncated SVD of every weight's difference.

    tuned - base ~ U_r S_r V_r^T;  B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T

Eckart and Young 1936: no other product of rank r is nearer. What is no matrix (biases, norms,
modulation, the patch embedding) or would not get smaller is kept in full. Factors are fp16.
"""

import torch
from torch import Tensor

from pipelines.catalog.entries import ModelEntry
from pipelines.lora.file import Lora
from pipelines.lora.merge import open_merged

FULL_SVD_SIZE = 1024  # larger matrices: randomised (Halko et al. 2011), minutes instead of hours
OVERSAMPLING, NUM_POWER_ITERATIONS = 16, 8


@torch.no_grad()
def extract_lora(tuned: ModelEntry, base: ModelEntry, rank: int) -> tuple[Lora, float]:
    """The LoRA that makes `tuned` of `base`, and the share of the squared change that it keeps.

    ValueError where the two are not the same architecture, or are equal.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank} but must be 1 or more")
    after, before = (open_merged(entry)[0] for entry in (tuned, base))
    unlike = {name for name, _ in after.shapes.items() ^ before.shapes.items()}
    if unlike:
        raise ValueError(
            f"tuned and base differ at {min(unlike)}, so one is no tuning of the other; "
            "name two models of one architecture"
        )
    lora = Lora({}, {}, {})
    total = lost = 0.0
    for name, weight in after.tensors.items():
        delta = weight.read().float() - before.tensors[name].read().float()
        if not delta.any():
            continue
        total += float(delta.square().sum())
        if delta.dim() != 2 or rank * sum(delta.shape) >= delta.numel():
            lora.deltas[name] = delta
            continue
        layer = name.removesuffix(".weight")
        up, down = _factors(delta, rank)
        lora.up[layer], lora.down[layer] = up.half(), down.half()
        lora.alphas[layer] = float(rank)
        lost += float((delta - lora.product(layer)).square().sum())
    if total == 0:
        raise ValueError("tuned and base are equal, so there is nothing to extract")
    return lora, 1 - lost / total


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in] whose product is the nearest of that rank."""
    if min(matrix.shape) <= FULL_SVD_SIZE:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            num = min(rank + OVERSAMPLING, *matrix.shape)
            u, s, v = torch.svd_lowrank(matrix, num, NUM_POWER_ITERATIONS)
            vt = v.mT
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (root[:, None] * vt[:rank]).contiguous()
