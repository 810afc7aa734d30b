"""Variants as Gradio components: a fixed pool of four panels, read and filled as data.

A handler with `Form.inputs`, a set, gets values by component; `Form.read` makes of them what
Generate is asked for, `Form.filled` makes the updates that show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from pipelines.strict import explain
from studio.compare.first_frame import FirstFrame
from studio.compare.hints import memory_choices
from studio.compare.variants import LORA_FIELDS, SHARED_FIELDS, Variant
from studio.page.handlers import Updates

NO_LORA = ""
Values = Mapping[Component, Any]


class Request(NamedTuple):
    """What Generate is asked for, in the order of `Studio.submit`."""

    variants: list[Variant]
    prompt: str
    image: str  # its name in the studio; empty for none
    memory: str


@dataclass(frozen=True)
class Panel:
    """One variant: its column, the component of each field of `Variant`, and a LoRA's button."""

    label: str
    column: gr.Column
    fields: dict[str, Component]
    sweep: gr.Button

    @property
    def filled(self) -> list[Component]:
        """What `Form.panel_filled` updates."""
        return [*self.fields.values(), self.sweep]


@dataclass(frozen=True)
class Form:
    """The components of Compare that Generate reads."""

    prompt: gr.Textbox
    first_frame: FirstFrame
    memory: gr.Radio
    shared: dict[str, Component]  # by name in SHARED_FIELDS
    locks: gr.CheckboxGroup
    num_variants: gr.State
    panels: tuple[Panel, ...]

    @property
    def columns(self) -> list[gr.Column]:
        return [panel.column for panel in self.panels]

    @property
    def inputs(self) -> set[Component]:
        """All components that `read` asks for."""
        panels = {component for panel in self.panels for component in panel.fields.values()}
        texts = {self.prompt, self.first_frame.name, self.memory}
        return {*texts, self.locks, self.num_variants, *self.shared.values(), *panels}

    @property
    def outputs(self) -> list[Any]:
        """Everything that a handler may fill."""
        sweeps = [panel.sweep for panel in self.panels]
        frame = [self.first_frame.image, self.first_frame.row]
        return [*self.inputs, *sweeps, *self.columns, *frame]

    def read(self, values: Values) -> Request:
        """What the visible panels say. ValueError where a field has a value it cannot have."""
        variants = []
        for panel in self.panels[: values[self.num_variants]]:
            given = {name: values[component] for name, component in panel.fields.items()}
            given |= {name: values[self.shared[name]] for name in values[self.locks]}
            given = {name: value for name, value in given.items() if value not in (None, "")}
            try:
                variants.append(Variant.model_validate(given))
            except ValidationError as error:
                raise ValueError(f"Variant {panel.label}: {explain(error)}") from error
        image, memory = values[self.first_frame.name] or "", values[self.memory] or ""
        return Request(variants, values[self.prompt], image, memory)

    def filled(self, prompt: str, variants: Sequence[Variant]) -> Updates:
        """Updates that show these variants; what all agree on comes back locked."""
        locks = [name for name in SHARED_FIELDS if len({getattr(v, name) for v in variants}) == 1]
        updates: Updates = {self.prompt: gr.update(value=prompt)}
        updates |= {self.locks: gr.update(value=locks), self.num_variants: len(variants)}
        for name, component in self.shared.items():
            value = getattr(variants[0], name)
            updates[component] = gr.update(value=value, visible=name in locks)
        for index, panel in enumerate(self.panels):
            updates[panel.column] = gr.update(visible=index < len(variants))
            variant = variants[min(index, len(variants) - 1)]
            updates |= self.panel_filled(panel, variant.model_dump(), locks)
        return updates

    def memory_filled(self, memory: str) -> Updates:
        """Updates that show this memory choice, which becomes one where it was none."""
        known = [words for _, words in self.memory.choices]
        return {self.memory: gr.update(choices=memory_choices(*known, memory), value=memory)}

    def panel_filled(
        self, panel: Panel, values: Mapping[str, Any], locks: Sequence[str]
    ) -> Updates:
        """Updates for one panel from the values of a `Variant`.

        A LoRA's own fields show when it is chosen, and then room for another one.
        """
        updates: Updates = {panel.sweep: gr.update(visible=bool(values["lora"]))}
        needs = {strength: lora for lora, strength in LORA_FIELDS} | {"lora_alpha": "lora"}
        loras = [lora for lora, _ in LORA_FIELDS]
        needs |= dict(zip(loras[1:], loras, strict=False))
        for name, value in values.items():
            visible = {}
            if name in SHARED_FIELDS:
                visible["visible"] = name not in locks
            elif name in needs:
                visible["visible"] = bool(values[needs[name]])
            if name in loras:
                value = value or NO_LORA
            updates[panel.fields[name]] = gr.update(value=value, **visible)
        return updates

    def listing(self, models: Sequence[tuple[str, str]], updates: Updates) -> Updates:
        """The updates, with these models (title and name) to choose from in every panel."""
        fields = [panel.fields["model"] for panel in self.panels]
        listed = {f: updates.get(f, gr.update()) | gr.update(choices=models) for f in fields}
        return updates | listed

    def locked(self, locks: Sequence[str], shared: Sequence[Any]) -> Updates:
        """Shows each shared field once above the panels, or once in every panel."""
        updates: Updates = {}
        for (name, component), value in zip(self.shared.items(), shared, strict=True):
            updates[component] = gr.update(visible=name in locks)
            for panel in self.panels:
                updates[panel.fields[name]] = gr.update(value=value, visible=name not in locks)
        return updates

    def counted(self, num_variants: int) -> Updates:
        """Shows the first panels only."""
        columns = {p.column: gr.update(visible=i < num_variants) for i, p in enumerate(self.panels)}
        return {self.num_variants: num_variants, **columns}
