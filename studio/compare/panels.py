"""Draws the form of Compare: prompt, what all variants share, and the panels."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from pipelines.catalog.entries import ModelEntry
from pipelines.catalog.registry import Registry
from pipelines.recipe import Recipe, SamplerSpec
from studio.compare.first_frame import draw_first_frame
from studio.compare.form import NO_LORA, Form, Panel
from studio.compare.hints import PLAIN_HINT, memory_choices
from studio.compare.html import field_id
from studio.compare.images import Example
from studio.compare.variants import (
    LABELS,
    LORA_FIELDS,
    SAMPLER_FIELDS,
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
OF_VARIANT = Variant.model_json_schema()["properties"]
OF_RECIPE = Recipe.model_json_schema()["properties"] | SamplerSpec.model_json_schema()["properties"]
SWEEP = f"Compare lora_alpha x {', '.join(f'{factor:g}' for factor in SWEEP_FACTORS)}"


def draw_form(
    registry: Registry, first_model: str, examples: Sequence[Example], memory: str
) -> Form:
    """The form of Compare: A as the model itself wants it, B the same in few steps."""
    first = own_variant(registry, first_model)
    few = first.model_copy(update={"num_inference_steps": FEW_STEPS})
    prompt = _draw_prompt(registry)
    takes_image = registry.entry(first_model).preset.takes_image
    first_frame = draw_first_frame(examples, takes_image)
    with gr.Row(elem_id="shared"):
        new_seed = gr.Button("New seed", elem_id="new-seed", render=False)
        shared = {
            name: draw_field(
                name,
                getattr(first, name),
                buttons=[new_seed] if name == "seed" else None,
                min_width=150,
                elem_id=f"shared-{name}",
            )
            for name in SHARED_FIELDS
        }
        locks = gr.CheckboxGroup(
            [(field_schema(name)["title"], name) for name in SHARED_FIELDS],
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
    """The prompt: own words, or one picked from a list."""
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
    """The models, title and name; what is not here stays in the list, so that one sees it."""
    return [(_model_label(entry), name) for name, entry in registry.models().items()]


def _model_label(entry: ModelEntry) -> str:
    if entry.missing is not None:
        return f"{entry.preset.title} (missing)"
    return entry.preset.title if entry.base is None else f"{entry.preset.title} (distilled)"


def lora_choices(registry: Registry) -> list[tuple[str, str]]:
    """The LoRAs, name and path; the path is what a recipe holds."""
    paths = registry.loras()
    return [("none", NO_LORA), *((lora_name(registry, path), str(path)) for path in paths)]


def field_schema(name: str) -> dict[str, Any]:
    """A field of `Variant` as JSON schema: its own hint, the rest from where a recipe has it."""
    own = OF_VARIANT[name] | OF_VARIANT[name].get("anyOf", [{}])[0]
    made = OF_RECIPE.get(SAMPLER_FIELDS.get(name, name), {})
    return own | made | {"description": own.get("description")}


def draw_field(name: str, value: Any, **look: Any) -> Component:
    """The component of a field of `Variant`, by its type; `look` is what Gradio takes beside."""
    schema = field_schema(name)
    shown = {"value": value, "label": schema["title"], "info": schema["description"], **look}
    if "enum" in schema:
        shown["choices"] = schema["enum"]
    if "choices" in shown:
        return gr.Dropdown(**shown)
    if schema["type"] == "string":
        return gr.Textbox(**shown)
    if schema["type"] == "integer":
        return gr.Number(precision=0, minimum=schema.get("minimum"), **shown)
    return gr.Number(**{"step": 0.5, **shown})  # its bounds are told by the forecast, with its name


def draw_panel(registry: Registry, label: str, variant: Variant, visible: bool) -> Panel:
    """One variant, in a column of its own."""

    def field(name: str) -> dict[str, Any]:
        return {"elem_id": field_id(label, name), "min_width": 110}

    with gr.Column(
        visible=visible, min_width=250, elem_id=f"variant-{label}", elem_classes="variant"
    ) as column:
        gr.HTML(f"<h3>Variant {label}</h3>", apply_default_css=False)
        models = model_choices(registry)
        fields = {"model": draw_field("model", variant.model, choices=models, **field("model"))}
        lora_fields, sweep = _draw_lora_fields(registry, field)
        fields |= lora_fields
        with gr.Row():
            for name in SAMPLER_FIELDS:
                fields[name] = draw_field(name, getattr(variant, name), **field(name))
        with gr.Row():
            for name in SHARED_FIELDS:
                value = getattr(variant, name)
                fields[name] = draw_field(name, value, visible=False, **field(name))
    return Panel(label, column, {name: fields[name] for name in Variant.model_fields}, sweep)


def _draw_lora_fields(
    registry: Registry, field: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Component], gr.Button]:
    """The first LoRA; the others show when the one before is chosen. And the alphas' button."""
    choices = lora_choices(registry)
    fields: dict[str, Component] = {}
    for index, (lora, strength) in enumerate(LORA_FIELDS):
        shown = index == 0 and len(choices) > 1
        fields[lora] = draw_field(lora, NO_LORA, choices=choices, visible=shown, **field(lora))
        fields[strength] = draw_field(strength, 1.0, step=0.1, visible=False, **field(strength))
        if index == 0:
            alpha = field("lora_alpha")
            fields["lora_alpha"] = draw_field("lora_alpha", None, step=1, visible=False, **alpha)
            sweep = gr.Button(SWEEP, size="sm", visible=False, **field("sweep"))
    return fields, sweep
