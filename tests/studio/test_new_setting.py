"""A sampler setting is written down twice: what it is in `SamplerSpec`, its hint in `Variant`."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.studio.conftest import ROOT

PLACES = {
    "pipelines/recipe.py": '    eta: float = Field(0.5, title="Eta", description="New noise.")',
    "studio/compare/variants.py": '    eta: float | None = Field(None, description="0: none")',
}
BEFORE = "    flow_shift: float"
USE = """
import shlex
import gradio as gr
from pipelines import __main__ as command_line
from pipelines.catalog.registry import Registry
from pipelines.recipe import Recipe
from studio.compare.panels import draw_panel
from studio.compare.variants import Variant, cli_command, from_recipe, own_variant, to_recipe

registry = Registry()
with gr.Blocks():
    eta = draw_panel(registry, "A", own_variant(registry, "tiny-wan"), True).fields["eta"]
assert (type(eta), eta.value, eta.elem_id) == (gr.Number, 0.5, "variant-A-eta")
assert (eta.label, eta.info) == ("Eta", "0: none")

recipe = to_recipe(registry, Variant(model="tiny-wan", eta=0.25), "a red circle")
assert recipe.sampler.eta == 0.25
linked = Recipe.model_validate_json(recipe.to_json())
assert from_recipe(linked).eta == 0.25
assert to_recipe(registry, from_recipe(linked), "a red circle") == recipe

made = []
command_line.image_problem = lambda preset, recipe: made.append(recipe) or "enough"
assert command_line.main(shlex.split(cli_command(registry, recipe, "a.mp4"))[3:]) == 2
assert made == [recipe]
"""


def test_it_is_in_the_form_the_recipe_the_link_and_the_command_line(tmp_path: Path) -> None:
    for package in ("pipelines", "studio"):
        shutil.copytree(ROOT / package, tmp_path / package)
    for folder in ("assets", "presets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for file, setting in PLACES.items():
        text = (tmp_path / file).read_text()
        assert text.count(BEFORE) == 1
        (tmp_path / file).write_text(text.replace(BEFORE, f"{setting}\n{BEFORE}"))
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
