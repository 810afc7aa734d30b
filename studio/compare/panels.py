"""Draws the form of Compare: prompt, what all variants share, and the panels."""

import random
from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from pipelines.catalog.registry import ModelEntry, Registry
from pipelines.recipe import SamplerName
from studio.compare.first_frame import draw_first_frame
from studio.compare.form import NO_LORA, Form, Panel
from studio.compare.hints import NO_HINT, PLAIN_HINT, memory_choices
from studio.compare.html import field_id
from studio.compare.images import Example
from studio.compare.variants import (
    LABELS,
    LORA_FIELDS,
    SHARED_FIELDS,
    SWEEP_FACTORS,
    Variant,
    lora_name,
    own_variant,
)
from studio.page.handlers import PRIVATE

MIN_VARIANTS = 2
FEW_STEPS = 4  # what B starts with: the question that this studio is about
MAX_SEED = 2**32 - 1
SWEEP = f"Compare lora_alpha x {', '.join(f'{factor:g}' for factor in SWEEP_FACTORS)}"
LOCK_CHOICES = [("Seed", "seed"), ("Size", "size"), ("Frames", "num_frames")]


def draw_form(
    registry: Registry, first_model: str, examples: Sequence[Example], memory: str
) -> Form:
    """Everything that Generate reads: A as the model itself wants it, B the same in few steps."""
    first = own_variant(registry, first_model)
    few = first.model_copy(update={"num_inference_steps": FEW_STEPS})
    prompt = _draw_prompt(registry)
    takes_image = registry.entry(first_model).preset.takes_image
    first_frame = draw_first_frame(examples, takes_image)
    with gr.Row(elem_id="shared"):
        new_seed = gr.Button("New seed", elem_id="new-seed", render=False)
        shared = {
            name: draw_shared(
                name,
                getattr(first, name),
                buttons=[new_seed] if name == "seed" else None,
                min_width=150,
                elem_id=f"shared-{name}",
            )
            for name in SHARED_FIELDS
        }
        locks = gr.CheckboxGroup(
            LOCK_CHOICES,
            value=list(SHARED_FIELDS),
            label="🔒 Same for all variants",
            info="Untick to set it in each variant",
            min_width=290,
            elem_id="locks",
        )
        held = gr.Radio(
            memory_choices(memory),
            value=memory,
            label="Memory",
            info=PLAIN_HINT,
            min_width=290,
            elem_id="memory",
        )
    num_variants = gr.State(MIN_VARIANTS)
    with gr.Row(elem_id="variants"):
        panels = tuple(
            draw_panel(registry, label, few if index else first, index < MIN_VARIANTS)
            for index, label in enumerate(LABELS)
        )
    new_seed.click(lambda: random.randint(0, MAX_SEED), outputs=shared["seed"], **PRIVATE)
    return Form(prompt, first_frame, held, shared, locks, num_variants, panels)


def _draw_prompt(registry: Registry) -> gr.Textbox:
    """Own words, or a prompt picked from a list."""
    lists = registry.prompt_lists()
    prompts = registry.prompts(lists[0])
    with gr.Row(elem_id="prompts"):
        prompt = gr.Textbox(
            prompts[0],
            label="Prompt",
            info="What the video should show: your own words, or one from a list",
            lines=4,
            scale=3,
            min_width=300,
            elem_id="prompt",
        )
        with gr.Column(scale=2, min_width=260):
            chosen = gr.Dropdown(lists, value=lists[0], label="Prompt list", elem_id="prompt-list")
            picked = gr.Dropdown(
                prompts, value=prompts[0], label="Pick a prompt", elem_id="prompt-pick"
            )

    def show_list(name: str) -> dict[str, Any]:
        return gr.update(choices=registry.prompts(name), value=None)

    chosen.input(show_list, chosen, picked, **PRIVATE)
    picked.input(lambda text: text, picked, prompt, **PRIVATE)
    return prompt


def model_choices(registry: Registry) -> list[tuple[str, str]]:
    """Title and name; a model that is not here stays in the list, so that one sees it."""
    return [(_model_label(entry), name) for name, entry in registry.models().items()]


def _model_label(entry: ModelEntry) -> str:
    if entry.missing is not None:
        return f"{entry.preset.title} (missing)"
    return entry.preset.title if entry.base is None else f"{entry.preset.title} (distilled)"


def lora_choices(registry: Registry) -> list[tuple[str, str]]:
    """Name and path; the path is what a recipe holds."""
    paths = registry.loras()
    return [("none", NO_LORA), *((lora_name(registry, path), str(path)) for path in paths)]


def draw_shared(name: str, value: Any, **kwargs: Any) -> Component:
    """Seed, size or number of frames."""
    if name == "size":
        return gr.Textbox(value, label="Size", info="width x height", **kwargs)
    if name == "num_frames":
        info = "4n+1: 17, 33, 81"
        return gr.Number(value, label="Frames", info=info, precision=0, minimum=1, **kwargs)
    info = "same seed, same noise"
    return gr.Number(value, label="Seed", info=info, precision=0, minimum=0, **kwargs)


def draw_panel(registry: Registry, label: str, variant: Variant, visible: bool) -> Panel:
    """One variant, in a column of its own."""

    def field(name: str) -> dict[str, Any]:
        return {"elem_id": field_id(label, name), "min_width": 110}

    with gr.Column(
        visible=visible, min_width=250, elem_id=f"variant-{label}", elem_classes="variant"
    ) as column:
        gr.HTML(f"<h3>Variant {label}</h3>", apply_default_css=False)
        fields: dict[str, Component] = {
            "model": gr.Dropdown(
                model_choices(registry), value=variant.model, label="Model", **field("model")
            ),
        }
        lora_fields, sweep = _draw_lora_fields(registry, field)
        fields |= lora_fields
        with gr.Row():
            fields |= _draw_sampler_fields(variant, field)
        with gr.Row():
            for name in SHARED_FIELDS:
                value = getattr(variant, name)
                fields[name] = draw_shared(name, value, visible=False, **field(name))
    return Panel(label, column, {name: fields[name] for name in Variant.model_fields}, sweep)


def _draw_lora_fields(
    registry: Registry, field: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Component], gr.Button]:
    """The first LoRA; the others show when the one before is chosen. And the alphas' button."""
    choices = lora_choices(registry)
    number = {"visible": False, "step": 0.1}
    alpha = {"label": "lora_alpha", "info": "Empty: the file's own"}
    fields: dict[str, Component] = {}
    for index, (lora, strength) in enumerate(LORA_FIELDS):
        label, shown = ("LoRA", len(choices) > 1) if index == 0 else ("Another LoRA", False)
        fields[lora] = gr.Dropdown(
            choices, value=NO_LORA, label=label, info=NO_HINT, visible=shown, **field(lora)
        )
        fields[strength] = gr.Number(
            1.0, label="Strength", info="Multiplies the LoRA", **number, **field(strength)
        )
        if index == 0:
            fields["lora_alpha"] = gr.Number(None, visible=False, **alpha, **field("lora_alpha"))
            sweep = gr.Button(SWEEP, size="sm", visible=False, **field("sweep"))
    return fields, sweep


def _draw_sampler_fields(
    variant: Variant, field: Callable[[str], dict[str, Any]]
) -> dict[str, Component]:
    return {
        "num_inference_steps": gr.Number(
            variant.num_inference_steps,
            label="Steps",
            info="Fewer is faster",
            precision=0,
            minimum=1,
            **field("num_inference_steps"),
        ),
        "flow_shift": gr.Number(
            variant.flow_shift,
            label="Shift",
            info="Favours high noise",
            step=0.5,
            **field("flow_shift"),
        ),
        "guidance_scale": gr.Number(
            variant.guidance_scale,
            label="Guidance",
            info="1 turns it off",
            step=0.5,
            **field("guidance_scale"),
        ),
        "sampler": gr.Dropdown(
            list(get_args(SamplerName)),
            value=variant.sampler,
            label="Sampler",
            info="How steps are taken",
            **field("sampler"),
        ),
    }
