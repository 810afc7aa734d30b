"""Fields that choose where a run trains: devices of this machine, or what to ask of Slurm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from pipelines.strict import explain
from studio.page.handlers import PRIVATE, Updates
from studio.runs import slurm
from studio.runs.launch import Devices
from studio.runs.slurm import Allocation

HERE, SLURM = "This machine", "Slurm"
LABELS = {
    "nodes": "Nodes",
    "gpus_per_node": "GPUs a node",
    "time_limit": "Time limit",
    "partition": "Partition",
    "account": "Account",
}


@dataclass(frozen=True)
class DeviceChoice:
    """The choice between both, and the fields of each."""

    choice: gr.Radio
    devices: gr.CheckboxGroup
    group: gr.Group
    asked: dict[str, Component]  # by name in Allocation

    @property
    def inputs(self) -> list[Component]:
        """In the order that `read` expects."""
        return [self.choice, self.devices, *self.asked.values()]

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """What `filled` may change."""
        return [*self.inputs, self.group]

    def read(self, choice: str, devices: Sequence[str], *asked: Any) -> Devices:
        """ValueError naming the field that Slurm would not understand."""
        if choice != SLURM:
            return devices
        given = dict(zip(self.asked, asked, strict=True))
        try:
            return Allocation.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            raise ValueError(f"slurm: {explain(error)}") from error

    def shown(self, choice: str) -> Updates:
        """The fields of one choice."""
        in_slurm = choice == SLURM
        return {
            self.devices: gr.update(visible=not in_slurm),
            self.group: gr.update(visible=in_slurm),
        }

    def filled(self, devices: Devices) -> Updates:
        """Shows where another run trains; as it is for a run from a shell."""
        if isinstance(devices, Allocation):
            values = devices.model_dump()
            fields = {field: gr.update(value=values[name]) for name, field in self.asked.items()}
            return {self.choice: SLURM, **fields, **self.shown(SLURM)}
        return {self.devices: gr.update(value=list(devices))} if devices else {}


def draw_device_choice(devices: Sequence[str]) -> DeviceChoice:
    """Slurm is offered where this machine can hand jobs to one."""
    choice = gr.Radio(
        [HERE, SLURM], value=HERE, label="Where", visible=slurm.is_here(), elem_id="place"
    )
    boxes = gr.CheckboxGroup(
        list(devices),
        value=list(devices[:1]),
        label="Devices",
        info="One process each; a run waits until they are free",
        elem_id="devices",
    )
    with gr.Group(visible=False, elem_id="slurm") as group:
        place = DeviceChoice(choice, boxes, group, draw_allocation())
    choice.change(place.shown, choice, [boxes, group], **PRIVATE)
    return place


def draw_allocation() -> dict[str, Component]:
    """A field for everything that is asked of Slurm."""
    fields: dict[str, Component] = {}
    for row in (("nodes", "gpus_per_node", "time_limit"), ("partition", "account")):
        with gr.Row():
            for name in row:
                setting = Allocation.model_fields[name]
                options = {
                    "value": setting.default,
                    "label": LABELS[name],
                    "info": setting.description,
                    "min_width": 120,
                    "elem_id": f"slurm-{name}",
                }
                fields[name] = (
                    gr.Number(precision=0, minimum=0, **options)
                    if setting.annotation is int
                    else gr.Textbox(max_lines=1, **options)
                )
    return fields
