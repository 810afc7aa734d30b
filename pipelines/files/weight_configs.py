"""Configurations that Wan's own files leave out, read off the shapes of their weights.

What a shape cannot say is Wan2.1's constant: heads of 128 channels, 32 buckets of distance, the
VAE's statistics. Files made here that differ say so in a JSON file of their own name beside them,
or, for a transformer, in `config.json` or in the metadata.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.files.weight_names import vae_size

Shapes = Mapping[str, Sequence[int]]
Config = dict[str, Any]

HEAD_DIM = 128
CLIP_HEAD_DIM = 80  # of the only CLIP that Wan2.1 knows, ViT-H/14
# Differences between configurations that no video depends on.
UNREAD = ("_name_or_path", "_diffusers_version", "transformers_version", "dtype", "architectures")


def transformer_config(shapes: Shapes, stated: Config | None = None) -> Config:
    """Of `WanTransformer3DModel`, from its weights' diffusers names.

    `stated` is a config.json, Wan's (`num_heads`) or diffusers' (`attention_head_dim`), or nothing.
    ValueError where the number of heads stays unknown or the weights are not whole.
    """
    stated = stated or {}
    try:
        dim, in_channels, *patch = shapes["patch_embedding.weight"]
        text_dim = shapes["condition_embedder.text_embedder.linear_1.weight"][1]
        freq_dim = shapes["condition_embedder.time_embedder.linear_1.weight"][1]
        ffn_dim = shapes["blocks.0.ffn.net.0.proj.weight"][0]
        out_channels = shapes["proj_out.weight"][0] // math.prod(patch)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in the transformer's weights") from error
    head_dim = _head_dim(stated, dim)
    if dim % head_dim:
        raise ValueError(
            f"the number of heads is not known: {dim} channels are no multiple of {head_dim}; "
            'put config.json with {"num_heads": N} beside the weights'
        )
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    positions = shapes.get("condition_embedder.image_embedder.pos_embed")
    return {
        "patch_size": list(patch),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": _count(shapes, "blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "qk_norm": "rms_norm_across_heads",
        "eps": stated.get("eps", 1e-6),
        "image_dim": image[0] if image else None,
        "added_kv_proj_dim": dim if "blocks.0.attn2.add_k_proj.weight" in shapes else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": positions[1] if positions else None,
    }


def _head_dim(stated: Config, dim: int) -> int:
    """Channels of a head; what is stated counts where it is about a network as wide as this."""
    if "attention_head_dim" in stated:
        head_dim = int(stated["attention_head_dim"])
        return head_dim if head_dim * stated["num_attention_heads"] == dim else HEAD_DIM
    if "num_heads" in stated and stated.get("dim", dim) == dim:
        return dim // int(stated["num_heads"])
    return HEAD_DIM


def native_transformer_config(config: Config, text_length: int) -> Config:
    """Wan's own config.json from diffusers'; `text_length` is the number of tokens of a prompt."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": "i2v" if config["image_dim"] else "t2v",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "text_len": text_length,
        "eps": config["eps"],
    }


def vae_config(shapes: Shapes) -> Config:
    """Of `AutoencoderKLWan`, from its weights' diffusers names."""
    num_res_blocks, num_stages = vae_size(shapes)
    base_dim, in_channels = shapes["encoder.conv_in.weight"][:2]
    step = num_res_blocks + 1
    widths = [
        shapes[f"encoder.down_blocks.{stage * step}.conv2.weight"][0] for stage in range(num_stages)
    ]
    patch = math.isqrt(in_channels // 3)  # pixels go in as patches where channels are more than 3
    samplers = range(num_res_blocks, (num_stages - 1) * step, step)
    temporal = [f"encoder.down_blocks.{index}.time_conv.weight" in shapes for index in samplers]
    return {
        "base_dim": base_dim,
        "z_dim": shapes["post_quant_conv.weight"][0],
        "dim_mult": [width // base_dim for width in widths],
        "num_res_blocks": num_res_blocks,
        "temperal_downsample": temporal,
        "in_channels": in_channels,
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": patch * 2 ** (num_stages - 1),
    }


def text_encoder_config(shapes: Shapes) -> Config:
    """Of `UMT5EncoderModel`, from its weights' diffusers names."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    num_buckets, num_heads = shapes[f"{attention}.relative_attention_bias.weight"]
    return {
        "vocab_size": shapes["shared.weight"][0],
        "d_model": shapes["shared.weight"][1],
        "d_kv": shapes[f"{attention}.q.weight"][0] // num_heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": _count(shapes, "encoder.block."),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "feed_forward_proj": "gated-gelu",
    }


def image_encoder_config(shapes: Shapes) -> Config:
    """Of `CLIPVisionModel`, from its weights' diffusers names."""
    dim, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    num_positions = shapes["embeddings.position_embedding.weight"][0]
    return {
        "hidden_size": dim,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "encoder.layers."),
        "num_attention_heads": dim // CLIP_HEAD_DIM,
        "image_size": math.isqrt(num_positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules follow the prefix."""
    return len({n.removeprefix(prefix).split(".")[0] for n in shapes if n.startswith(prefix)})
