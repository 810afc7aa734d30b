"""The head of DMD2's optional GAN term: tokens of a frozen network in, one logit a sample out."""

import torch
from torch import Tensor, nn


class DiscriminatorHead(nn.Module):
    """Attention pooling with one learned query, then two layers.

    Smaller than DMD2_wanx's stack of convolutions, and free of its dropout.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.pool = nn.MultiheadAttention(dim, num_heads=1, batch_first=True)
        self.logit = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L, D] -> logits [B]."""
        tokens = self.norm(tokens)
        pooled, _ = self.pool(self.query.expand(tokens.shape[0], -1, -1), tokens, tokens)
        logits: Tensor = self.logit(pooled[:, 0])
        return logits[:, 0].float()
