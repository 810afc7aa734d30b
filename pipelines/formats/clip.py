"""CLIP of image-to-video Wan: in Wan's file one layer for query, key and value, and a text half.

Wan never reads the text half nor the projection at the end, transformers' network for the image has
neither, and neither survives a conversion.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from pipelines.files.weight_configs import image_encoder_config
from pipelines.files.weight_names import NameTable
from pipelines.formats.build import build_network
from pipelines.formats.parts import StoredNetwork
from pipelines.formats.weights import Weight, open_weights

UNREAD = ("textual.", "log_scale", "visual.head")
OLD_PREFIX = "vision_model."  # of transformers before version 5, and so of published repositories
FUSED, SPLIT = "visual.transformer.{}.attn.to_qkv", "encoder.layers.{}.self_attn.{}_proj"
TABLE = NameTable(
    (
        ("visual.patch_embedding", "embeddings.patch_embedding"),
        ("visual.pre_norm", "pre_layrnorm"),
        ("visual.post_norm", "post_layernorm"),
        ("visual.transformer.{}.norm1", "encoder.layers.{}.layer_norm1"),
        ("visual.transformer.{}.norm2", "encoder.layers.{}.layer_norm2"),
        ("visual.transformer.{}.attn.proj", "encoder.layers.{}.self_attn.out_proj"),
        ("visual.transformer.{}.mlp.0", "encoder.layers.{}.mlp.fc1"),
        ("visual.transformer.{}.mlp.2", "encoder.layers.{}.mlp.fc2"),
    )
)
# Parameters that one side keeps with a batch dimension of one.
BATCHED = {
    "visual.cls_embedding": ("embeddings.class_embedding", (1, 1)),
    "visual.pos_embedding": ("embeddings.position_embedding.weight", (1,)),
}


def open_image_encoder(file: Path) -> StoredNetwork:
    """The half of models_clip_*.pth that sees, by transformers' names."""
    weights = open_weights([file])
    tensors: dict[str, Weight] = {}
    for name, weight in weights.tensors.items():
        if name.startswith(UNREAD):
            continue
        if name in BATCHED:
            theirs, batch = BATCHED[name]
            tensors[theirs] = _reshaped(weight, weight.shape[len(batch) :])
        elif ".attn.to_qkv." in name:
            tensors |= _split(name, weight)
        else:
            theirs_or_none = TABLE.to_diffusers(name)
            if theirs_or_none is None:
                raise ValueError(
                    f"model: {file} is not what its name says ({name} is unknown); copy or "
                    "download it again"
                )
            tensors[theirs_or_none] = weight
    shapes = {name: weight.shape for name, weight in tensors.items()}
    if "embeddings.patch_embedding.weight" not in shapes:
        raise ValueError(f"model: {file} is incomplete; copy or download it again")
    return StoredNetwork(tensors, image_encoder_config(shapes))


def load_native_image_encoder(file: Path, device: str) -> CLIPVisionModel:
    """CLIP of models_clip_*.pth, frozen, fp32."""
    part = open_image_encoder(file)
    config = CLIPVisionConfig(**part.config)
    encoder = build_network(lambda: CLIPVisionModel(config), part.tensors, torch.float32, file)
    return encoder.requires_grad_(False).eval().to(device)


def native_image_encoder(part: StoredNetwork) -> dict[str, Weight]:
    """The weights of a transformers network by Wan's names."""
    tensors = {n.removeprefix(OLD_PREFIX): weight for n, weight in part.tensors.items()}
    native: dict[str, Weight] = {}
    for ours, (theirs, batch) in BATCHED.items():
        weight = tensors.pop(theirs)
        native[ours] = _reshaped(weight, (*batch, *weight.shape))
    for name, weight in tensors.items():
        if ".self_attn.q_proj." in name:
            number, leaf = name.split(".")[2], name.rpartition(".")[2]
            parts = [tensors[SPLIT.format(number, p) + f".{leaf}"] for p in "qkv"]
            native[FUSED.format(number) + f".{leaf}"] = _joined(parts)
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            ours_or_none = TABLE.to_native(name)
            if ours_or_none is None:
                raise ValueError(f"source: {name} has no place in Wan's own layout")
            native[ours_or_none] = weight
    return native


def _split(name: str, weight: Weight) -> dict[str, Weight]:
    number, leaf = name.split(".")[2], name.rpartition(".")[2]
    shape = (weight.shape[0] // 3, *weight.shape[1:])
    return {
        SPLIT.format(number, part) + f".{leaf}": Weight(
            shape, weight.dtype, partial(_third, weight, index)
        )
        for index, part in enumerate("qkv")
    }


def _third(weight: Weight, index: int, mapped: bool = False) -> Tensor:
    return weight.read(mapped=mapped).chunk(3)[index].clone()


def _joined(parts: list[Weight]) -> Weight:
    shape = (3 * parts[0].shape[0], *parts[0].shape[1:])
    return Weight(shape, parts[0].dtype, partial(_cat, parts))


def _cat(parts: list[Weight], mapped: bool = False) -> Tensor:
    return torch.cat([part.read(mapped=mapped) for part in parts])


def _reshaped(weight: Weight, shape: tuple[int, ...]) -> Weight:
    return Weight(shape, weight.dtype, partial(_reshape, weight, shape))


def _reshape(weight: Weight, shape: tuple[int, ...], mapped: bool = False) -> Tensor:
    return weight.read(mapped=mapped).reshape(shape)
