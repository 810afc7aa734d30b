"""The form of a method's settings, in a real browser: what it shows is what a run would get."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page

from studio.tabs.train import ESSENTIALS, SCRIPT
from studio.train.html import css_text, problem
from studio.train.schema_form import SchemaForm
from studio.train.schemas import Schema, check, field_path, read_schemas
from trainers.registry import build_config, methods

PRESETS = sorted(Path("presets/train").glob("*.yaml"))
SHOW = """(html) => {
  const [element, props, trigger, watch] = [document.body, { value: { html } }, () => {}, () => {}];
  (() => { SCRIPT })();
  window.values = () => props.value.values;
}""".replace("SCRIPT", SCRIPT.read_text())
CHOICES = {"model": ["tiny-wan"], "start_from": ["tiny-dmd4"], "kind": ["shapes"]}

schemas = functools.cache(read_schemas)


def shown(page: Page, tree: dict[str, Any]) -> SchemaForm:
    """The form of the tree's method, filled, in the page."""
    form = SchemaForm(schemas()[tree["method"]], CHOICES)
    page.set_content("<form></form>")
    page.evaluate(SHOW, form.draw(tree, ESSENTIALS, hidden="method"))
    return form


def read(page: Page, form: SchemaForm, method: str) -> dict[str, Any]:
    return {**form.read(page.evaluate("window.values()")), "method": method}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_goes_through_the_form_unchanged(page: Page, path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    form = shown(page, tree)
    through = build_config(read(page, form, tree["method"]))
    assert through.model_dump() == build_config(tree).model_dump()


def test_the_whole_configuration_of_a_run_goes_through_the_form_unchanged(page: Page) -> None:
    tree = yaml.safe_load(Path("presets/train/tiny_base.yaml").read_text())
    whole = build_config(tree).model_dump(mode="json")
    form = shown(page, whole)
    assert build_config(read(page, form, "finetune")).model_dump(mode="json") == whole


def test_what_is_edited_is_what_is_read(page: Page) -> None:
    form = shown(page, yaml.safe_load(Path("presets/train/tiny_dmd4.yaml").read_text()))
    for fold in ("set-algorithm", "set-validation"):
        page.locator(f"#{fold} > summary").click()
    page.locator("[name='algorithm.ema.used']").evaluate("(box) => box.click()")
    page.locator("[name='validation.used']").check()
    page.locator("[name='validation.every']").fill("20")
    page.locator("[name='validation.prompts']").fill("one\n  two <b>&\n")
    page.locator("[name='algorithm.student.learning_rate']").fill("2e-6")
    page.locator("#set-algorithm-guidance_scale input[type=range]").fill("4.5")
    tree = read(page, form, "dmd2")
    assert tree["algorithm"]["ema"] is None
    assert tree["validation"]["every"] == 20
    assert tree["validation"]["prompts"] == ["one", "two <b>&"]
    assert tree["algorithm"]["student"]["learning_rate"] == 2e-6
    assert tree["algorithm"]["guidance_scale"] == 4.5


def test_another_source_of_data_brings_its_own_settings(page: Page) -> None:
    form = shown(page, yaml.safe_load(Path("presets/train/tiny_dmd4.yaml").read_text()))
    page.locator("[name='data.source'][value=prepared]").check()
    page.locator("[name='data.prepared.folder']").fill("runs/some")
    assert page.locator("[name='data.prompts.file']").is_hidden()
    data = read(page, form, "dmd2")["data"]
    assert data == {"source": "prepared", "folder": "runs/some", "batch_size": 1}


def test_every_method_has_a_form_that_names_what_is_required(page: Page) -> None:
    for method in methods():
        form = shown(page, {"method": method})
        found = check(read(page, form, method))
        assert found.tree is None
        assert found.path == ("name",), method


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("num_steps", "many", "num_steps: 'many' is not a whole number"),
        ("algorithm.student.betas", "0.9; x", "algorithm.student.betas: '0.9;' is not a number"),
        ("adapters", "{path", "adapters: is not YAML"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_the_name_of_its_field(
    page: Page, name: str, text: str, complaint: str
) -> None:
    form = shown(page, {"method": "finetune"})
    values = page.evaluate("window.values()") | {name: text}
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        form.read(values)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"num_steps": 0}, ("num_steps",)),
        ({"data": {"source": "prompts", "file": "a", "width": 5}}, ("data", "prompts", "width")),
        ({"algorithm": {"guidance_scale": 99}}, ("algorithm", "guidance_scale")),
        ({"adapters": [{}]}, ("adapters",)),
    ],
)
def test_an_invalid_value_is_said_at_its_field(
    page: Page, change: dict[str, Any], path: tuple[str, ...]
) -> None:
    tree = yaml.safe_load(Path("presets/train/tiny_dmd4.yaml").read_text()) | change
    found = check(tree)
    assert found.path == path
    form = SchemaForm(schemas()["dmd2"], CHOICES)
    drawn = form.draw(tree, ESSENTIALS, hidden="method")
    page.set_content(f"<form>{drawn}</form>{problem(found.problem, found.path)}")
    field = f"getComputedStyle(document.querySelector('#set-{'-'.join(path)}'), '::after').content"
    assert json.loads(page.evaluate(field)) == found.problem


def test_hostile_text_stays_text(page: Page) -> None:
    attack = (
        """<img src=x onerror="window.hacked=1"> "quoted" ' </style><script>1</script> \\ `x`"""
    )
    form = shown(page, {"method": "finetune", "name": attack, "model": attack})
    tree = read(page, form, "finetune")
    assert (tree["name"], tree["model"]) == (attack, attack)
    page.set_content(f"<form id=set-x></form>{problem('x: ' + attack, ('x',))}")
    assert page.locator("p").inner_text() == f"x: {attack}"
    assert "</style><script>" not in css_text(attack)
    assert page.evaluate("window.hacked") is None


def test_a_schema_says_what_the_form_needs() -> None:
    schema: Schema = schemas()["dmd2"]
    assert {"name", "method", "algorithm", "data"} <= schema["properties"].keys()
    assert field_path(("data", "prompts", "buckets", 0, "width")) == ("data", "prompts", "buckets")


def test_settings_whose_names_only_their_reader_knows_are_yaml(page: Page) -> None:
    choice = {"kind": "hps", "settings": {"version": "v2.0", "fit": "squash"}}
    tree = yaml.safe_load(Path("presets/train/wan1.3b_draft_hps.yaml").read_text())
    form = shown(page, tree | {"reward": choice})
    assert read(page, form, "draft")["reward"]["settings"] == choice["settings"]
    values = page.evaluate("window.values()")
    assert form.read(values | {"reward.settings": ""})["reward"]["settings"] == {}
    with pytest.raises(ValueError, match=r"^reward\.settings: is not YAML; write"):
        form.read(values | {"reward.settings": "version v2"})
