"""TinyWan before training: a real Wan, small enough for two CPU cores, in the diffusers layout.

Every part is the class that Wan2.1 uses, only smaller: `WanTransformer3DModel`, `AutoencoderKLWan`, `UMT5EncoderModel`, a
T5 tokenizer and UniPC. The text encoder keeps its random weights: in a closed grammar it only has to keep
words apart, and one attention layer does that. `make tiny` runs the whole recipe.

    python -m trainers.worlds.tiny_wan init FOLDER --seed 0
"""

import argparse
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from trainers.worlds.shapes import all_captions

TEXT_LENGTH = 64
TEXT_DIM = 128


def build_tokenizer() -> T5Tokenizer:
    """Whole words of the grammar, and single characters for everything else, so that no prompt is refused."""
    words = sorted({word for caption in all_captions() for word in str(caption).split()})
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in words if len(word) > 1]
    pieces += [("▁", -6.0)] + [(character, -10.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """One random UMT5 layer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


def build_vae() -> AutoencoderKLWan:
    """Temporal stride 4, spatial stride 8 as in Wan2.1; pixels enter as 2x2 patches, which halves every stage's cost."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=16,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )


def build_transformer() -> WanTransformer3DModel:
    """About 5 M parameters; 80 tokens for 17 frames of 64x64."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=768,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )


def build_pipeline(seed: int) -> WanPipeline:
    """All parts with weights drawn from the seed."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)).eval(),
        vae=build_vae(),
        transformer=build_transformer(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=3.0,
        ),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers.worlds.tiny_wan")
    commands = parser.add_subparsers(required=True)
    init = commands.add_parser("init", help="write an untrained TinyWan")
    init.add_argument("folder", type=Path)
    init.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build_pipeline(options.seed).save_pretrained(options.folder)


if __name__ == "__main__":
    main()
