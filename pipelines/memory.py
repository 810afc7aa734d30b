"""How a model lies in memory, as a choice: `plain`, `fit`, or settings of one's own.

    --memory fit
    --memory transformer=fp8_storage,offload=true,text_encoder=cpu

`pipelines.models.placement` does what is said here, and `pipelines.models.fit_memory` chooses.
"""

from importlib.util import find_spec
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from pipelines.strict import Strict, explain

Attention = Literal["native", "_native_cudnn", "flex", "flash", "_flash_3", "sage", "xformers"]
PACKAGES: dict[str, str] = {  # what each needs beside torch; the names are diffusers'
    "flash": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "sage": "sageattention",
    "xformers": "xformers",
}
QUANTIZED = ("int8", "fp8")  # by torchao, which PEFT cannot put a LoRA on
EXPLAINED = "Memory: "  # how the sentences begin that say what `fit` chose and why
LOSSY = {
    "transformer": "transformer in {}",
    "text_encoder": "text encoder in {}",
    "vae": "VAE in {}",
    "attention": "attention by {}",
}


class MemorySettings(Strict):
    """The defaults are what the weights were made for: all on the device, the VAE in fp32."""

    transformer: Literal["plain", "fp8_storage", "int8", "fp8"] = Field(
        "plain",
        description="plain: bf16 on a GPU, fp32 on a CPU. fp8_storage: half of that, computed as "
        "plain. int8, fp8: by torchao, without LoRAs.",
    )
    offload: bool = Field(
        False, description="Blocks wait in RAM and come to the device one by one: equal videos."
    )
    text_encoder: Literal["device", "swapped", "cpu", "fp8_storage"] = Field(
        "device",
        description="swapped: on the device only while it encodes. cpu: computes there.",
    )
    vae: Literal["fp32", "bf16"] = "fp32"
    tiling: bool = Field(False, description="The VAE decodes in overlapping tiles of 256 pixels.")
    attention: Attention = "native"
    compile_blocks: bool = Field(
        False, description="torch.compile of the repeated blocks; the first step pays for it."
    )

    @property
    def changes(self) -> str:
        """What changes the videos a little, in words; empty where nothing does."""
        default = MemorySettings()
        return ", ".join(
            words.format(getattr(self, name).removeprefix("_"))
            for name, words in LOSSY.items()
            if getattr(self, name) not in (getattr(default, name), "swapped", "cpu")
        )


Memory = MemorySettings | Literal["fit"]
PLAIN = MemorySettings()


def parse_memory(text: str) -> Memory:
    """plain, fit, or NAME=VALUE,... ValueError in one sentence naming the setting."""
    if text == "fit":
        return "fit"
    if text == "plain":
        return PLAIN
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if not separator:
            raise ValueError(
                f"memory: {part!r} must be plain, fit, or NAME=VALUE with a name of "
                f"{', '.join(MemorySettings.model_fields)}"
            )
        given[name.strip()] = value.strip()
    try:
        settings = MemorySettings.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"memory: {explain(error)}") from error
    require_installed(settings)
    return settings


def memory_words(memory: Memory) -> str:
    """What `parse_memory` reads as this."""
    if memory == "fit" or memory == PLAIN:
        return "fit" if memory == "fit" else "plain"
    changed = memory.model_dump(mode="json", exclude_defaults=True)
    return ",".join(f"{name}={str(value).lower()}" for name, value in changed.items())


def require_installed(settings: MemorySettings) -> None:
    """ValueError where a package is missing that the settings need."""
    package = PACKAGES.get(settings.attention)
    if package is not None and find_spec(package) is None:
        raise ValueError(
            f"memory: attention={settings.attention} needs the package {package}, which is not "
            f"installed; choose from {', '.join(installed_attention())}"
        )
    if settings.transformer in QUANTIZED and find_spec("torchao") is None:
        raise ValueError(
            f"memory: transformer={settings.transformer} needs the package torchao, which is not "
            "installed; install it or choose fp8_storage"
        )


def installed_attention() -> list[str]:
    """The attention backends whose packages are here."""
    return [
        name for name in get_args(Attention) if name not in PACKAGES or find_spec(PACKAGES[name])
    ]
