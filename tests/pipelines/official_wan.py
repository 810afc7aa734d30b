"""Wan's transformer as its authors publish it, over weights by their names: the reference of tests.

Written from the published network (Wan-Video/Wan2.1, Apache-2.0) without its modules, in the dtype
of the inputs. `native_shapes` lists what a checkpoint of any size holds.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

TEXT_TOKENS = 512
PATCH = (1, 2, 2)
DIM, NUM_HEADS, NUM_BLOCKS, FFN, FREQ, TEXT, IMAGE = 32, 2, 2, 48, 32, 24, 40

Weights = dict[str, Tensor]


def native_shapes(image: bool = False, guidance: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a small checkpoint: text to video, or image to video."""
    linears = dict(_linears(image, guidance))
    shapes = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": (shape[0],) for name, shape in linears.items()}
    shapes["patch_embedding.weight"] = (DIM, 36 if image else 16, *PATCH)
    shapes["patch_embedding.bias"] = (DIM,)
    shapes["head.modulation"] = (1, 2, DIM)
    for number in range(NUM_BLOCKS):
        block = f"blocks.{number}"
        shapes[f"{block}.modulation"] = (1, 6, DIM)
        norms = [f"{a}.norm_{b}" for a in ("self_attn", "cross_attn") for b in ("q", "k")]
        norms += ["cross_attn.norm_k_img"] if image else []
        shapes |= {f"{block}.{norm}.weight": (DIM,) for norm in [*norms, "norm3"]}
        shapes[f"{block}.norm3.bias"] = (DIM,)
    if image:
        for norm, size in (("0", IMAGE), ("4", DIM)):
            shapes |= {f"img_emb.proj.{norm}.{kind}": (size,) for kind in ("weight", "bias")}
    return shapes


def _linears(image: bool, guidance: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in ("time_embedding", *(("guidance_embedding",) if guidance else ())):
        yield f"{name}.0", (DIM, FREQ)
        yield f"{name}.2", (DIM, DIM)
    yield "text_embedding.0", (DIM, TEXT)
    yield "text_embedding.2", (DIM, DIM)
    yield "time_projection.1", (6 * DIM, DIM)
    yield "head.head", (16 * math.prod(PATCH), DIM)
    for number in range(NUM_BLOCKS):
        for attention in ("self_attn", "cross_attn"):
            for layer in ("q", "k", "v", "o"):
                yield f"blocks.{number}.{attention}.{layer}", (DIM, DIM)
        yield f"blocks.{number}.ffn.0", (FFN, DIM)
        yield f"blocks.{number}.ffn.2", (DIM, FFN)
        if image:
            yield f"blocks.{number}.cross_attn.k_img", (DIM, DIM)
            yield f"blocks.{number}.cross_attn.v_img", (DIM, DIM)
    if image:
        yield "img_emb.proj.1", (IMAGE, IMAGE)
        yield "img_emb.proj.3", (DIM, IMAGE)


def random_weights(image: bool = False, guidance: bool = False, seed: int = 0) -> Weights:
    """A small checkpoint of random weights, fp32, large enough to make every layer count."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(native_shapes(image, guidance).items()):
        scale = 1 / math.sqrt(shape[1]) if len(shape) == 2 else 0.3
        weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _rms_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Over all heads at once."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _sinusoid(position: Tensor) -> Tensor:
    """[B] -> [B, FREQ]: cosines, then sines, computed in float64."""
    frequencies = 10000 ** (-torch.arange(FREQ // 2, dtype=torch.float64) / (FREQ // 2))
    angles = torch.outer(position.double(), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _rotations(frames: int, height: int, width: int) -> Tensor:
    """[frames * height * width, head_dim / 2] complex: time, height and width share a head."""
    head_dim = DIM // NUM_HEADS
    third = 2 * (head_dim // 6)
    turns = []
    for axis, (size, dim) in enumerate(
        zip((frames, height, width), (head_dim - 2 * third, third, third), strict=True)
    ):
        frequencies = 1 / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.outer(torch.arange(size, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        turns.append(angles.view(shape).expand(frames, height, width, -1))
    angles = torch.cat(turns, -1).reshape(frames * height * width, -1)
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations[:, None]).flatten(-2).to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, L, heads, head_dim] each -> [B, L, DIM]; softmax written out."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (NUM_HEADS, -1))


def _self_attention(weights: Weights, name: str, x: Tensor, rotations: Tensor) -> Tensor:
    query = _heads(_rms_norm(weights, f"{name}.norm_q", _linear(weights, f"{name}.q", x)))
    key = _heads(_rms_norm(weights, f"{name}.norm_k", _linear(weights, f"{name}.k", x)))
    value = _heads(_linear(weights, f"{name}.v", x))
    mixed = _attend(_rotate(query, rotations), _rotate(key, rotations), value)
    return _linear(weights, f"{name}.o", mixed)


def _cross_attention(weights: Weights, name: str, x: Tensor, context: Tensor) -> Tensor:
    """The text is the last 512 tokens of the context; what comes before is the image."""
    query = _heads(_rms_norm(weights, f"{name}.norm_q", _linear(weights, f"{name}.q", x)))
    image, text = context[:, :-TEXT_TOKENS], context[:, -TEXT_TOKENS:]
    key = _heads(_rms_norm(weights, f"{name}.norm_k", _linear(weights, f"{name}.k", text)))
    mixed = _attend(query, key, _heads(_linear(weights, f"{name}.v", text)))
    if image.shape[1]:
        seen = _linear(weights, f"{name}.k_img", image)
        key = _heads(_rms_norm(weights, f"{name}.norm_k_img", seen))
        mixed = mixed + _attend(query, key, _heads(_linear(weights, f"{name}.v_img", image)))
    return _linear(weights, f"{name}.o", mixed)


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _block(
    weights: Weights, name: str, x: Tensor, time: Tensor, context: Tensor, rotations: Tensor
) -> Tensor:
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
        weights[f"{name}.modulation"] + time
    ).chunk(6, dim=1)
    y = _layer_norm(x) * (1 + scale) + shift
    x = x + _self_attention(weights, f"{name}.self_attn", y, rotations) * gate
    y = _layer_norm(x) * weights[f"{name}.norm3.weight"] + weights[f"{name}.norm3.bias"]
    x = x + _cross_attention(weights, f"{name}.cross_attn", y, context)
    y = _layer_norm(x) * (1 + ffn_scale) + ffn_shift
    y = _linear(weights, f"{name}.ffn.2", _gelu(_linear(weights, f"{name}.ffn.0", y)))
    return x + y * ffn_gate


def _image_tokens(weights: Weights, image_embeds: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"]
        )

    hidden = _linear(weights, "img_emb.proj.1", norm("img_emb.proj.0", image_embeds))
    return norm("img_emb.proj.4", _linear(weights, "img_emb.proj.3", functional.gelu(hidden)))


def official_velocity(
    weights: Weights,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    image_embeds: Tensor | None = None,
    guidance: Tensor | None = None,
) -> Tensor:
    """latents [B, 16 or 36, F, H, W], timestep [B], prompt_embeds [B, L <= 512, TEXT], image_embeds
    [B, tokens, IMAGE], guidance [B], which is 1000 times the scale -> velocity [B, 16, F, H, W].
    """
    weight = weights["patch_embedding.weight"]
    x = functional.conv3d(latents, weight, weights["patch_embedding.bias"], stride=PATCH)
    frames, height, width = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)

    def embedded(name: str, position: Tensor) -> Tensor:
        hidden = _linear(weights, f"{name}.0", _sinusoid(position).to(x.dtype))
        return _linear(weights, f"{name}.2", functional.silu(hidden))

    time = embedded("time_embedding", timestep)
    if guidance is not None:
        time = time + embedded("guidance_embedding", guidance)
    modulation = _linear(weights, "time_projection.1", functional.silu(time)).unflatten(1, (6, DIM))
    padding = (0, 0, 0, TEXT_TOKENS - prompt_embeds.shape[1])
    text = _linear(weights, "text_embedding.0", functional.pad(prompt_embeds, padding))
    context = _linear(weights, "text_embedding.2", _gelu(text))
    if image_embeds is not None:
        context = torch.cat([_image_tokens(weights, image_embeds), context], dim=1)
    rotations = _rotations(frames, height, width)
    for number in range(NUM_BLOCKS):
        x = _block(weights, f"blocks.{number}", x, modulation, context, rotations)
    shift, scale = (weights["head.modulation"] + time[:, None]).chunk(2, dim=1)
    x = _linear(weights, "head.head", _layer_norm(x) * (1 + scale) + shift)
    x = x.view(-1, frames, height, width, *PATCH, 16)
    return torch.einsum("bfhwpqrc->bcfphqwr", x).reshape(
        x.shape[0], 16, frames * PATCH[0], height * PATCH[1], width * PATCH[2]
    )
