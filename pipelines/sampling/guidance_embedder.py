"""Guidance as an input of the network: one forward a step at any guidance scale.

    temb = time_embedder(1000 * sigma) + guidance_embedder(1000 * guidance_scale)

The same sinusoid and the same two layers as for the time; the sum also reaches the output's
modulation. Meng et al. 2023, "On Distillation of Guided Diffusion Models" (arXiv:2210.03142).
A new embedder ends in zeros, so a student starts as its teacher is without guidance. Checkpoints of
distill_wan2.1 and DMD2_wanx were trained with 1000 * guidance_scale in bf16 (3 became 3.008), and
are run so.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

GUIDANCE_SCALE_TO_TIME = 1000.0
DTYPE_KEY = "guidance_dtype"  # in the metadata of a file whose embedder was trained so
OWN = "own"  # the name of the embedder that belongs to the base weights, not to an adapter
_NAMED = re.compile(r"(\bguidance_embedder)\.\w+\.(linear_[12]\.(?:weight|bias))$")
_PORTABLE = re.compile(r"(\bguidance_embedder)\.(linear_[12]\.(?:weight|bias))$")


class GuidedTimeEmbedding(nn.Module):
    """Takes the place of a transformer's time embedder; embedders are kept by adapter name."""

    def __init__(self, time_embedder: TimestepEmbedding):
        super().__init__()
        self.linear_1, self.act, self.linear_2 = (
            time_embedder.linear_1,
            time_embedder.act,
            time_embedder.linear_2,
        )
        self.guidance_embedder = nn.ModuleDict()
        self.rounded: set[str] = set()  # the embedders that know guidance in bf16 only
        self.active: str | None = None
        self.strength = 1.0  # of the adapter that brought the active embedder
        self.guidance_scale: Tensor | None = None  # [B]; set for the length of one forward

    def forward(self, sinusoid: Tensor) -> Tensor:
        """sinusoid [B, freq_dim] of the time -> [B, dim]."""
        embedding: Tensor = self.linear_2(self.act(self.linear_1(sinusoid)))
        if self.guidance_scale is None:
            return embedding
        assert self.active is not None  # `guidance_input` has checked
        scaled = self.guidance_scale.float() * GUIDANCE_SCALE_TO_TIME
        guidance = get_timestep_embedding(
            scaled.bfloat16().float() if self.active in self.rounded else scaled,
            sinusoid.shape[-1],
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        guided: Tensor = self.guidance_embedder[self.active](guidance.to(sinusoid.dtype))
        return embedding + self.strength * guided


def time_embedding(transformer: WanTransformer3DModel) -> GuidedTimeEmbedding | None:
    """The transformer's guided time embedding, or None where it takes no guidance."""
    embedder = transformer.condition_embedder.time_embedder
    return embedder if isinstance(embedder, GuidedTimeEmbedding) else None


def add_guidance_embedder(transformer: WanTransformer3DModel, name: str = OWN) -> nn.Module:
    """Adds an embedder of that name and makes it active; it changes nothing until it is trained."""
    embedding = time_embedding(transformer)
    if embedding is None:
        embedding = GuidedTimeEmbedding(transformer.condition_embedder.time_embedder)
        transformer.condition_embedder.time_embedder = embedding
    weight = embedding.linear_1.weight
    embedder = TimestepEmbedding(weight.shape[1], weight.shape[0]).to(weight)
    nn.init.zeros_(embedder.linear_2.weight)
    nn.init.zeros_(embedder.linear_2.bias)
    embedding.guidance_embedder[name] = embedder
    embedding.active = name
    return embedder


def activate_guidance_embedder(
    transformer: WanTransformer3DModel, name: str | None, strength: float = 1.0
) -> None:
    """Switches to the embedder of that name; None switches back to the base's own, if any."""
    embedding = time_embedding(transformer)
    if embedding is None:
        assert name is None
        return
    own = OWN if OWN in embedding.guidance_embedder else None
    embedding.active, embedding.strength = name or own, strength


def delete_guidance_embedder(transformer: WanTransformer3DModel, name: str) -> None:
    """Removes an embedder that is not active."""
    embedding = time_embedding(transformer)
    assert embedding is not None
    assert embedding.active != name
    del embedding.guidance_embedder[name]


@contextmanager
def guidance_input(
    transformer: WanTransformer3DModel, guidance_scale: Tensor | None
) -> Iterator[None]:
    """Feeds guidance_scale [B] to the forward inside; None runs the network without its embedder.

    ValueError where the network has no active embedder.
    """
    if guidance_scale is None:
        yield
        return
    embedding = time_embedding(transformer)
    if embedding is None or embedding.active is None:
        raise ValueError(
            "guidance_mode is embedded but this model does not take guidance as an input; "
            "use two_pass"
        )
    embedding.guidance_scale = guidance_scale
    try:
        yield
    finally:
        embedding.guidance_scale = None


def portable_name(name: str) -> str:
    """A weight's name as files have it: without the name of the adapter."""
    return _NAMED.sub(r"\1.\2", name)


def is_guidance_weight(name: str) -> bool:
    """Whether a weight in a file belongs to a guidance embedder."""
    return _PORTABLE.search(name) is not None


def load_guidance_embedder(
    transformer: WanTransformer3DModel,
    weights: dict[str, Tensor],
    name: str = OWN,
    rounded: bool = False,
) -> None:
    """Adds an embedder with the weights that a file names portably; the rest is ignored.

    `rounded` is for one that was trained with 1000 * guidance_scale in bf16. ValueError where the
    weights are incomplete or were made for another model.
    """
    mine = {
        key.split("guidance_embedder.")[1]: weight
        for key, weight in weights.items()
        if is_guidance_weight(key)
    }
    embedder = transformer.condition_embedder.time_embedder
    expected = {
        f"{layer}.{kind}": getattr(getattr(embedder, layer), kind).shape
        for layer in ("linear_1", "linear_2")
        for kind in ("weight", "bias")
    }
    if {key: weight.shape for key, weight in mine.items()} != expected:
        raise ValueError(
            "the guidance embedder is incomplete or was made for another model; "
            "use weights made for this model"
        )
    with torch.no_grad():
        add_guidance_embedder(transformer, name).load_state_dict(mine)
    if rounded:
        transformer.condition_embedder.time_embedder.rounded.add(name)
