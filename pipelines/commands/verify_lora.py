"""Whether an exported LoRA makes the same video: it is imported anew, and pixels are compared.

What is written for diffusers is imported by stock diffusers, so that its reading counts, not ours.
"""

from pathlib import Path

from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor

from pipelines.catalog.entries import ModelEntry
from pipelines.files.lora_outline import outline
from pipelines.generate import sample_video
from pipelines.lora.apply import apply_adapters
from pipelines.lora.file import read_shapes
from pipelines.lora.merge import load_merged
from pipelines.models.loading import best_dtype, load_prompt_encoder, load_video_codec
from pipelines.recipe import Adapter, Recipe
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance import require_guidance_fits


def largest_difference(
    base: ModelEntry, recipe: Recipe, export: Path, device: str
) -> tuple[float, str]:
    """Between the recipe's video and the one with `export` in place of its LoRA, in [0, 1].

    Also who imported the export. ValueError for a file that cannot be read or fits nowhere.
    """
    stock = _flavour(export) == "diffusers"
    assert base.folder is not None
    prompts = load_prompt_encoder(base.folder, base.preset.text_length, device)
    codec = load_video_codec(base.folder, device, base.preset.geometry)

    def video(transformer: WanTransformer3DModel) -> Tensor:
        model = Denoiser(transformer)
        require_guidance_fits(model, recipe.sampler)
        return sample_video(recipe, prompts, codec, model)

    transformer = load_merged(base, best_dtype(device), device)
    apply_adapters(transformer, recipe.adapters)
    original = video(transformer)
    if stock:
        del transformer  # one 14B at a time
        transformer = load_merged(base, best_dtype(device), device)
        _import_by_diffusers(transformer, export)
    else:
        apply_adapters(transformer, [Adapter(path=str(export))])
    difference = float((video(transformer) - original).abs().max())
    return difference, "stock diffusers" if stock else "this project"


def _flavour(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"export {path} does not exist; check the path")
    try:
        return outline(read_shapes(path)).flavour
    except ValueError as error:
        raise ValueError(f"export {path} {error}") from error


def _import_by_diffusers(transformer: WanTransformer3DModel, export: Path) -> None:
    """Loads the file with `load_lora_weights`; ValueError where it attached nothing."""
    state_dict, metadata = WanPipeline.lora_state_dict(export, return_lora_metadata=True)
    WanPipeline.load_lora_into_transformer(state_dict, transformer, metadata=metadata)
    if not any(".lora_" in name for name, _ in transformer.named_parameters()):
        raise ValueError(f"export {export} attaches nothing in diffusers; export it again")
