"""How LoRA files in circulation name their tensors: one row a flavour, one line to add another.

A key is PREFIX + LAYER + PART; the table says how each flavour writes the three. Whatever the
flavour, the result is a kind and diffusers' name of the layer or parameter.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipelines.files.weight_names import TRANSFORMER, WRAPPERS, NameTable

Kind = Literal["down", "up", "up_bias", "alpha", "guidance", "weight", "bias", "modulation"]
DELTAS = ("weight", "bias", "modulation")  # full differences: `.diff`, `.diff_b`, `.diff_m`

# What stands behind the layer, as a regular expression, and which part it is.
PARTS: dict[str, Kind] = {
    r"[._]lora[._](?:down|A)(?:\.\w+)?\.weight|\.lora_linear_layer\.down\.weight": "down",
    r"[._]lora[._](?:up|B)(?:\.\w+)?\.weight|\.lora_linear_layer\.up\.weight": "up",
    r"\.lora_B(?:\.\w+)?\.bias": "up_bias",
    r"\.alpha": "alpha",
    r"\.diff": "weight",
    r"\.diff_b": "bias",
    r"\.diff_m": "modulation",
    r"(?<=guidance_embedder\.linear_[12])\.(?:weight|bias)": "guidance",
}
# DMD2_wanx multiplies A [out, rank] by B [rank, in], the other way round than everybody else.
REVERSED_PARTS: dict[str, Kind] = {r"\.lora_A": "up", r"\.lora_B": "down"}

NATIVE = TRANSFORMER
DIFFUSERS = NameTable(tuple((name, name) for _, name in NATIVE.pairs))
FLAT = NameTable(
    tuple((name.replace(".", "_"), new) for name, new in (*NATIVE.pairs, *DIFFUSERS.pairs))
)
OWN_PARAMETERS = ("modulation", "scale_shift_table", "emb_pos", "pos_embed")  # no `.weight`


@dataclass(frozen=True)
class Flavour:
    """One row: a title for people, what stands before the layer, and its names of the layers."""

    title: str
    prefix: str  # a regular expression
    layers: NameTable  # its names -> diffusers'
    parts: Mapping[str, Kind]


# The row that knows most of a file's layers wins, the first of equals.
FLAVOURS = (
    Flavour("ComfyUI / LightX2V", r"(?:(?:model\.)?diffusion_model|model|unet)\.", NATIVE, PARTS),
    Flavour("kohya / musubi-tuner", r"lora_(?:unet|transformer)_+", FLAT, PARTS),
    Flavour("diffusers", r"transformer\.", DIFFUSERS, PARTS),
    Flavour("PEFT", r"base_model\.model\.(?:transformer\.)?", DIFFUSERS, PARTS),
    Flavour(
        "PEFT on Wan's own names, as distill_wan2.1 writes it",
        r"base_model\.model\.",
        NATIVE,
        PARTS,
    ),
    Flavour("DMD2_wanx, A and B reversed", r"(?:model\.)?", NATIVE, REVERSED_PARTS),
    Flavour("Wan's own names, no prefix", "", NATIVE, PARTS),
    Flavour("diffusers' names, no prefix", "", DIFFUSERS, PARTS),
)


@dataclass(frozen=True)
class TensorRole:
    """What one tensor of a file is.

    `name` is diffusers' name of the layer, of a delta that of the parameter; the file's own name
    where Wan has no such layer (`known` is False).
    """

    kind: Kind
    name: str
    known: bool


def recognise(keys: Iterable[str]) -> tuple[Flavour, dict[str, TensorRole]]:
    """The flavour of a file with these keys, and what each of them is.

    ValueError, to follow "adapter FILE ", where one is no part of a LoRA or none is a layer of Wan.
    """
    keys = list(keys)
    if not keys:
        raise ValueError("is incomplete: it is empty; copy or download it again")
    best: tuple[Flavour, dict[str, TensorRole | None]] | None = None
    most = -1
    for flavour in FLAVOURS:
        parts = {key: _part(flavour, key) for key in keys}
        num_known = sum(part is not None and part.known for part in parts.values())
        if num_known > most:
            best, most = (flavour, parts), num_known
    assert best is not None
    sorted_parts = {key: part for key, part in best[1].items() if part is not None}
    if len(sorted_parts) < len(keys):
        strange = next(key for key in keys if key not in sorted_parts)
        raise ValueError(
            f"cannot be applied: {strange} is not a plain LoRA weight (DoRA, LoKr, LoHa and full "
            "weights are not read); use a plain LoRA for Wan2.1"
        )
    if most == 0:
        name = next(iter(sorted_parts.values())).name
        raise ValueError(f"fits no layer of Wan2.1 (it names {name}); use a LoRA made for Wan2.1")
    return best[0], sorted_parts


def _part(flavour: Flavour, key: str) -> TensorRole | None:
    """What the key is by one flavour's rules, with an unknown layer where only the part is read."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    for pattern, kind in flavour.parts.items():
        match = re.fullmatch(rf"({flavour.prefix})?(.+?)(?:{pattern})", key)
        if match is None:
            continue
        prefix, layer = match[1], match[2]
        if kind == "modulation":
            layer += ".modulation"
        if kind == "guidance":
            return TensorRole(kind, f"{layer}{key[match.end(2) :]}", True)
        name = None if prefix is None else flavour.layers.to_diffusers(layer)
        if name is None:
            return TensorRole(kind, layer, False)
        own = kind in ("weight", "bias") and not is_parameter(name)
        return TensorRole(kind, f"{name}.{kind}" if own else name, True)
    return None


def is_parameter(name: str) -> bool:
    """Whether the name is a parameter's own, with no weight and no bias below it."""
    return name.rpartition(".")[2] in OWN_PARAMETERS
