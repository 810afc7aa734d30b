"""Compare: up to four variants of one prompt, generated and played side by side."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from pipelines.recipe import Adapter
from pipelines.video import read_recipe
from studio.compare import html
from studio.compare.form import Form, Values
from studio.compare.hints import lora_hint, memory_hint
from studio.compare.images import Example
from studio.compare.panels import MIN_VARIANTS, draw_form, model_choices
from studio.compare.variants import (
    LABELS,
    LORA_FIELDS,
    SHARED_FIELDS,
    alpha_sweep,
    differing_fields,
    from_recipe,
    lost_fields,
    own_variant,
    to_recipe,
)
from studio.page.handlers import PRIVATE, Updates, explained, on_choice, warn
from studio.page.player import draw_player
from studio.page.words import sentence
from studio.studio import Studio

TITLE = "Compare"
ORDER = 1
LINK = "v"
STYLE = None
FOR_VIEWERS = True


def build(studio: Studio, page: gr.Blocks) -> None:
    """Draws the tab, then wires it. A studio for viewers has the player and nothing else."""
    if studio.viewer:
        player, history = draw_player(studio), draw_history()
        wire_page_load(studio, page, None, player, history)
        return
    first_model = studio.first_model() or next(iter(studio.registry.models()))
    examples = studio.images.examples()
    form = draw_form(studio.registry, first_model, examples, studio.memory)
    with gr.Row(elem_id="actions"):
        add = gr.Button("Add variant", size="sm", min_width=120, elem_id="add-variant")
        remove = gr.Button("Remove last", size="sm", min_width=120, elem_id="remove-variant")
        forecast = gr.HTML(apply_default_css=False, elem_id="forecast")
        generate = gr.Button("Generate", variant="primary", min_width=200, elem_id="generate")
    player, history = draw_player(studio), draw_history()
    wire_count(form, add, remove)
    wire_panels(studio, form)
    wire_first_frame(studio, form, examples)
    wire_memory(studio, page, form, player)
    wire_forecast(studio, page, form, player, forecast)
    wire_generate(studio, form, generate, player, history)
    wire_sweep(studio, form, player, history)
    draw_from_video(studio, form)
    wire_page_load(studio, page, form, player, history)


def draw_history() -> gr.HTML:
    return gr.HTML(apply_default_css=False, elem_id="history")


def wire_count(form: Form, add: gr.Button, remove: gr.Button) -> None:
    """Shows and hides panels; a new panel starts as a copy of the last."""

    @explained
    def add_variant(values: Values) -> Updates:
        variants = form.read(values).variants
        if len(variants) == len(LABELS):
            raise ValueError(f"There is room for {len(LABELS)} variants.")
        panel = form.panels[len(variants)]
        copied = form.panel_filled(panel, variants[-1].model_dump(), values[form.locks])
        return copied | form.counted(len(variants) + 1)

    def remove_variant(num_variants: int) -> Updates:
        return form.counted(max(num_variants - 1, MIN_VARIANTS))

    add.click(add_variant, form.inputs, form.outputs, **PRIVATE)
    remove.click(remove_variant, form.num_variants, [form.num_variants, *form.columns], **PRIVATE)


def wire_panels(studio: Studio, form: Form) -> None:
    """A newly chosen model or LoRA brings its own settings; locks move fields in and out."""

    def fill(index: int, model: str, locks: list[str], *values: Any) -> Updates:
        panel = form.panels[index]
        chosen = zip(values[::2], values[1::2], strict=True)  # LoRA and strength in turn
        adapters = [Adapter(path=path, strength=by or 0) for path, by in chosen if path]
        own = own_variant(studio.registry, model, adapters)
        updates = form.panel_filled(panel, own.model_dump(exclude={"seed"}), locks)
        for name, _ in LORA_FIELDS:
            hint = lora_hint(studio.registry, model, getattr(own, name))
            updates[panel.fields[name]] |= gr.update(info=hint)
        if index == 0:  # A sets what all share
            for name in {"size", "num_frames"} & set(locks):
                updates[form.shared[name]] = gr.update(value=getattr(own, name))
        return updates

    for index, panel in enumerate(form.panels):
        pairs = [panel.fields[name] for pair in LORA_FIELDS for name in pair]
        for name in ("model", *(lora for lora, _ in LORA_FIELDS)):
            on_choice(
                panel.fields[name],
                partial(fill, index),
                [panel.fields["model"], form.locks, *pairs],
                [*panel.filled, *form.shared.values()],
            )
    own_shared = [panel.fields[name] for panel in form.panels for name in SHARED_FIELDS]
    form.locks.input(
        lambda locks, *shared: form.locked(locks, shared),
        [form.locks, *form.shared.values()],
        [*form.shared.values(), *own_shared],
        **PRIVATE,
    )


def wire_first_frame(studio: Studio, form: Form, examples: Sequence[Example]) -> None:
    """Asks for an image where a model wants one, keeps it, and fills in examples with prompts."""
    first = form.first_frame

    @explained
    def keep(path: str | None) -> str:
        return studio.add_image(path) if path else ""

    def show(index: int) -> dict[Component, Any]:
        example = examples[index]
        return {form.prompt: example.prompt, **first.filled(example.name, example.image)}

    def show_row(num_variants: int, *models: str) -> Any:
        return gr.update(visible=studio.takes_image(models[:num_variants]))

    models = [panel.fields["model"] for panel in form.panels]
    gr.on(
        [form.num_variants.change, *(model.change for model in models)],
        show_row,
        [form.num_variants, *models],
        first.row,
        trigger_mode="always_last",
        **PRIVATE,
    )
    first.image.input(keep, first.image, first.name, show_progress="hidden", api_name="add_image")
    first.examples.click(show, first.examples, [form.prompt, *first.outputs], **PRIVATE)


def wire_memory(studio: Studio, page: gr.Blocks, form: Form, player: gr.HTML) -> None:
    """Says beside the choice what it does, and of `fit` what it chose for these models and why."""
    models = [panel.fields["model"] for panel in form.panels]

    def hint(memory: str, num_variants: int, *models: str) -> Any:
        return gr.update(
            info=memory_hint(studio.registry, studio.store, memory, models[:num_variants])
        )

    inputs = [form.memory, form.num_variants, *models]
    gr.on(
        [page.load, *(component.change for component in inputs)],
        hint,
        inputs,
        form.memory,
        trigger_mode="always_last",
        **PRIVATE,
    )
    player.made(hint, inputs, form.memory, **PRIVATE)


def wire_forecast(
    studio: Studio, page: gr.Blocks, form: Form, player: gr.HTML, shown: gr.HTML
) -> None:
    """Says before anything runs what Generate would do, and marks what differs."""

    def forecast(values: Values) -> str:
        try:
            request = form.read(values)
            outlook = studio.forecast(*request)
        except ValueError as error:
            return html.problems([sentence(error)])
        labels = LABELS[: len(request.variants)]
        return html.forecast(outlook, differing_fields(request.variants), labels)

    gr.on(
        [page.load, *(component.change for component in form.inputs)],
        forecast,
        form.inputs,
        shown,
        trigger_mode="always_last",
        **PRIVATE,
    )
    player.made(forecast, form.inputs, shown, **PRIVATE)  # it says when all clips are there


def wire_generate(
    studio: Studio, form: Form, button: gr.Button, player: gr.HTML, history: gr.HTML
) -> None:
    """Submits and returns at once; the player watches from then on."""

    @explained
    def generate(values: Values) -> tuple[dict[str, Any], str]:
        comparison_id = studio.submit(*form.read(values))
        return studio.status(comparison_id), html.history(studio.history())

    button.click(generate, form.inputs, [player, history], **PRIVATE)


def wire_sweep(studio: Studio, form: Form, player: gr.HTML, history: gr.HTML) -> None:
    """One click fills the panels with one variant at several alphas of its LoRA, and generates."""

    @explained
    def sweep(index: int, values: Values) -> Updates:
        request = form.read(values)
        swept = alpha_sweep(studio.registry, request.variants[index])
        comparison_id = studio.submit(*request._replace(variants=swept))
        shown = {player: studio.status(comparison_id), history: html.history(studio.history())}
        return form.filled(request.prompt, swept) | shown

    for index, panel in enumerate(form.panels):
        outputs = [*form.outputs, player, history]
        panel.sweep.click(partial(sweep, index), form.inputs, outputs, **PRIVATE)


def draw_from_video(studio: Studio, form: Form) -> None:
    """A clip of ours, dropped here, fills a variant with the recipe inside it."""
    with gr.Accordion("Settings from a video", open=False, elem_id="from-video"), gr.Row():
        target = gr.Radio(list(LABELS), value=LABELS[0], label="Into variant", min_width=160)
        dropped = gr.File(label="Drop an MP4 made by this studio", file_types=[".mp4"], height=120)

    @explained
    def take(values: Values) -> Updates:
        recipe = read_recipe(Path(values[dropped]))
        variant, image = from_recipe(recipe), studio.images.name(recipe.image)
        if recipe.image is not None and not image:
            raise ValueError("The image of this clip is not in this studio; upload it first.")
        first_frame = studio.images.path(image) if image else None
        rebuilt = to_recipe(studio.registry, variant, recipe.prompt, first_frame, recipe.memory)
        lost = lost_fields(recipe, rebuilt)
        if lost:
            gr.Warning(f"The clip itself was made with another {', '.join(lost)}.")
        variants = form.read(values).variants
        index = LABELS.index(values[target])
        variants[index : index + 1] = [variant]
        updates = form.filled(recipe.prompt, variants) | form.memory_filled(recipe.memory)
        if first_frame is not None:
            updates |= form.first_frame.filled(image, first_frame)
        return updates

    dropped.upload(take, {dropped, target, *form.inputs}, form.outputs, **PRIVATE)


def wire_page_load(
    studio: Studio, page: gr.Blocks, form: Form | None, player: gr.HTML, history: gr.HTML
) -> None:
    """Lists recent comparisons, and reopens the one that a `?v=` link names."""

    def load(request: gr.Request) -> dict[Any, Any]:
        updates: dict[Any, Any] = {history: html.history(studio.history())}
        comparison_id = request.query_params.get("v")
        if form is not None:  # a run may have exported since the page was built
            updates = form.listing(model_choices(studio.registry), updates)
        if comparison_id is None:
            return updates
        try:
            comparison = studio.comparison(comparison_id)
        except ValueError as error:
            warn(str(error))
            return updates
        updates[player] = studio.status(comparison_id)
        if form is not None:
            recipes = [cell.recipe for cell in comparison.cells]
            updates |= form.filled(recipes[0].prompt, [from_recipe(recipe) for recipe in recipes])
            updates |= form.memory_filled(recipes[0].memory)
            updates = form.listing(model_choices(studio.registry), updates)
            images = [name for recipe in recipes if (name := studio.images.name(recipe.image))]
            if images:
                updates |= form.first_frame.filled(images[0], studio.images.path(images[0]))
        return updates

    outputs = [player, history]
    if form is not None:
        outputs += form.outputs
    page.load(load, outputs=outputs, **PRIVATE)
