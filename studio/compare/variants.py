"""Variants, what the panels of Compare say: their fields, and their way into recipes and back."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipelines.catalog.entries import image_problem
from pipelines.catalog.registry import STUDENTS, Registry
from pipelines.files.lora_alpha import own_alpha
from pipelines.geometry import read_size
from pipelines.recipe import SETTINGS, Adapter, Recipe, SamplerName, SamplerSpec
from pipelines.strict import Strict

LABELS = ("A", "B", "C", "D")
SHARED_FIELDS = (
    "seed",
    "size",
    "num_frames",
)  # locked across variants unless the user unlocks them
# A variant's LoRAs, each with its strength; the order does not matter.
LORA_FIELDS = (("lora", "strength"), ("lora_2", "strength_2"), ("lora_3", "strength_3"))
NO_HINT = "A small file that changes the model"
SWEEP_FACTORS = (0, 0.5, 0.75, 1)  # of a LoRA's own alpha; a reward's is best below its own


Strength = Annotated[
    float, Field(ge=-10, le=10, title="Strength", description="Multiplies the LoRA")
]
Another = Annotated[str | None, Field(title="Another LoRA", description=NO_HINT)]


class Variant(Strict):
    """The fields of one panel; their descriptions are its hints. Empty: the checkpoint's own.

    Where a field becomes one of the recipe or its sampler, that one has the label and the bounds.
    """

    model: str  # a name from list_models
    lora: str | None = Field(default=None, title="LoRA", description=NO_HINT)
    strength: Strength = 1.0
    lora_alpha: float | None = Field(
        default=None, ge=0, title="lora_alpha", description="Empty: the file's own"
    )
    lora_2: Another = None
    strength_2: Strength = 1.0
    lora_3: Another = None
    strength_3: Strength = 1.0
    num_inference_steps: int | None = Field(default=None, description="Fewer is faster")
    flow_shift: float | None = Field(default=None, description="Favours high noise")
    guidance_scale: float | None = Field(default=None, description="1 turns it off")
    sampler: SamplerName | None = Field(default=None, description="How steps are taken")
    seed: int = Field(default=0, description="same seed, same noise")
    size: str | None = Field(default=None, description="width x height")
    num_frames: int | None = Field(default=None, description="4n+1: 17, 33, 81")

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The LoRAs that are chosen."""
        chosen = [(getattr(self, lora), getattr(self, strength)) for lora, strength in LORA_FIELDS]
        return tuple(
            Adapter(path=lora, strength=strength, lora_alpha=self.lora_alpha)
            for lora, strength in chosen
            if lora is not None
        )


# A variant's sampler settings, and how `SamplerSpec` calls them: the same but for the solver.
SAMPLER_FIELDS = {name: name for name in Variant.model_fields if name in SamplerSpec.model_fields}
SAMPLER_FIELDS |= {"sampler": "name"}


def to_recipe(
    registry: Registry,
    variant: Variant,
    prompt: str,
    image: Path | None = None,
    memory: str = "plain",
) -> Recipe:
    """The full recipe of a variant. ValueError in one sentence when it cannot work.

    `image` is what all variants of a comparison start from whose model continues an image, and
    `memory` how all of them lie in memory.
    Only models and LoRAs that the registry lists are accepted: a recipe from outside must not open
    other folders of this machine.
    """
    entry = registry.models().get(variant.model)
    if entry is None:
        raise ValueError(f"model {variant.model!r} is not in the list; choose one that is")
    if entry.missing is not None:
        raise ValueError(f"model {variant.model!r}: {entry.missing}")
    require_listed(registry, variant.adapters)
    if len({adapter.path for adapter in variant.adapters}) < len(variant.adapters):
        raise ValueError("the same lora is chosen twice; choose it once with the sum of strengths")
    if not prompt.strip():
        raise ValueError("prompt is empty; describe what the video should show")
    width, height = read_size(variant.size) if variant.size else (None, None)
    recipe = registry.recipe(
        variant.model,
        prompt.strip(),
        image=image if entry.preset.takes_image else None,
        adapters=variant.adapters,
        seed=variant.seed,
        memory=memory,
        sampler={theirs: getattr(variant, name) for name, theirs in SAMPLER_FIELDS.items()},
        width=width,
        height=height,
        num_frames=variant.num_frames,
    )
    problem = recipe.sampler.problem() or image_problem(entry.preset, recipe)
    if problem is not None:
        raise ValueError(problem)
    return recipe


def require_listed(registry: Registry, adapters: Sequence[Adapter]) -> None:
    """ValueError for a LoRA that is not among the registry's."""
    listed = {str(path) for path in registry.loras()}
    for adapter in adapters:
        if adapter.path not in listed:
            raise ValueError(f"lora {adapter.path!r} is not in the models folders; put it there")


def alpha_sweep(registry: Registry, variant: Variant) -> list[Variant]:
    """The variant at several shares of its LoRA's own alpha, weakest first.

    ValueError where it has no LoRA, or LoRAs of several alphas: `lora_alpha` replaces them all.
    """
    require_listed(registry, variant.adapters)
    alphas = {own_alpha(Path(adapter.path)) for adapter in variant.adapters}
    if len(alphas) != 1:
        raise ValueError(
            "lora_alpha replaces the alpha of all LoRAs, so it is compared for LoRAs of the same "
            "alpha; choose one LoRA"
        )
    (alpha,) = alphas
    return [variant.model_copy(update={"lora_alpha": factor * alpha}) for factor in SWEEP_FACTORS]


def from_recipe(recipe: Recipe) -> Variant:
    """The panel that shows a recipe, with every field spelled out."""
    return Variant(
        model=recipe.model,
        **lora_values(recipe.adapters),
        **{name: getattr(recipe.sampler, theirs) for name, theirs in SAMPLER_FIELDS.items()},
        seed=recipe.seed,
        size=f"{recipe.width}x{recipe.height}",
        num_frames=recipe.num_frames,
    )


def lora_values(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The LoRA fields of a variant with these LoRAs; more than there are fields are left out."""
    values: dict[str, Any] = {"lora_alpha": adapters[0].lora_alpha if adapters else None}
    for index, (lora, strength) in enumerate(LORA_FIELDS):
        chosen = adapters[index] if index < len(adapters) else None
        values |= {lora: chosen.path if chosen else None}
        values |= {strength: chosen.strength if chosen else 1.0}
    return values


def lora_name(registry: Registry, path: Path) -> str:
    """A LoRA's place below its folder: files are often all named alike."""
    for folder in (*registry.model_dirs, STUDENTS, registry.runs_dir):
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
    return path.with_suffix("").as_posix()


def own_variant(registry: Registry, model: str, adapters: Sequence[Adapter] = ()) -> Variant:
    """What the checkpoint itself wants, or the first LoRA that carries its own sampler."""
    if registry.entry(model).missing is not None:
        preset = registry.entry(model).preset
        size = f"{preset.width}x{preset.height}"
        return Variant(model=model, size=size, num_frames=preset.num_frames)
    return from_recipe(registry.recipe(model, prompt="", adapters=adapters))


def differing_fields(variants: Sequence[Variant]) -> list[str]:
    """Names of the fields that are not equal in all variants."""
    return [
        name
        for name in Variant.model_fields
        if any(getattr(v, name) != getattr(variants[0], name) for v in variants[1:])
    ]


def lost_fields(given: Recipe, rebuilt: Recipe) -> list[str]:
    """Where a recipe rebuilt from its panel differs from the one that was given."""
    old, new = given.model_dump(), rebuilt.model_dump()
    old |= {f"sampler.{name}": value for name, value in old.pop("sampler").items()}
    new |= {f"sampler.{name}": value for name, value in new.pop("sampler").items()}
    return [name for name in old if old[name] != new[name]]


def cli_command(registry: Registry, recipe: Recipe, out: str) -> str:
    """The shell command that makes the same clip, to be run in the repository's folder."""
    spec = recipe.sampler
    words = ["python", "-m", "pipelines", "generate", "--model", recipe.model]
    for folder in registry.model_dirs:
        words += ["--models", str(folder)]
    # one word, so that a prompt that starts with a dash is not read as an option
    words += [f"--prompt={recipe.prompt}", "--seed", str(recipe.seed)]
    if recipe.image is not None:
        words += [f"--image={recipe.image.path}"]
    for word, name in SETTINGS.items():
        value = getattr(spec, name)
        if value is not None:
            listed = isinstance(value, tuple)
            words += [f"--{word}", ",".join(map(str, value)) if listed else str(value)]
    if spec.reads_negative_prompt and recipe.negative_prompt != _own_negative(registry, recipe):
        words += [f"--negative-prompt={recipe.negative_prompt}"]
    words += ["--size", f"{recipe.width}x{recipe.height}", "--frames", str(recipe.num_frames)]
    for adapter in recipe.adapters:
        words += ["--lora", f"{adapter.path}:{adapter.strength:.12f}".rstrip("0").rstrip(".")]
    if recipe.adapters and recipe.adapters[0].lora_alpha is not None:
        words += ["--lora-alpha", repr(recipe.adapters[0].lora_alpha)]
    if recipe.memory != "plain":
        words += ["--memory", recipe.memory]
    return shlex.join([*words, "--out", out])


def _own_negative(registry: Registry, recipe: Recipe) -> str:
    return registry.entry(recipe.model).preset.negative_prompt
