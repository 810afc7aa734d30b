"""A JSON schema as an HTML form: one rule a type. What the form holds is read back as a tree.

    enum -> select       boolean -> checkbox      number with two bounds -> slider and number
    number, string -> one line      list of numbers -> numbers with commas between
    list -> one item a line: as it stands, or as YAML where items are no text
    object -> fold       object or null -> fold with a switch      union -> choice of one group
    object whose names are not in the schema -> YAML

The field's description is the hint; empty stands for null, or for "not given" where null is none.
Values travel as text by dotted name, the one that pydantic gives errors. Plain HTML, because a
method has over a hundred settings and as many Gradio components keep a browser busy for seconds.
form.js collects the values. Bounds are pydantic's to check: nothing is corrected in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from studio.train.schema_values import (
    Path,
    Schema,
    as_text,
    branches,
    hint,
    is_group,
    is_numbers,
    label,
    read_plain,
    resolve,
    whole_tree,
)

SWITCH = "used"  # the name of the switch of a group that may be null


@dataclass(frozen=True)
class SchemaForm:
    """The form of one schema. `choices` are suggestions by the last part of a setting's name."""

    schema: Schema
    choices: Mapping[str, Sequence[str]]

    # ---------------------------------------------------------------- drawing

    def draw(self, tree: Mapping[str, Any], essentials: Sequence[Path], hidden: str) -> str:
        """Essentials first, then groups folded, then the rest; without the setting `hidden`.

        The tree may leave out what has a default.
        """
        whole = whole_tree(self.schema, self.schema, tree)
        declared = {
            name: resolve(self.schema, each)
            for name, each in self.schema["properties"].items()
            if name != hidden
        }
        first = "".join(self._essential(path, whole) for path in essentials)
        unions = [name for name, each in declared.items() if "oneOf" in each]
        folds = [name for name, each in declared.items() if is_group(each) and name not in unions]
        rest = {n: e for n, e in declared.items() if not is_group(e) and (n,) not in essentials}
        parts = [f'<div class="settings">{first}</div>']
        parts += [self._union((name,), declared[name], whole.get(name)) for name in unions]
        for name in folds:
            parts.append(self._group((name,), declared[name], whole.get(name), essentials))
        plain = "".join(self._plain((name,), each, whole.get(name)) for name, each in rest.items())
        folded = f'<div class="settings">{plain}</div>'
        return "".join([*parts, fold((), "Everything else", folded)])

    def _essential(self, path: Path, tree: Mapping[str, Any]) -> str:
        schema, value = self.schema, tree
        for name in path:
            schema = resolve(self.schema, schema["properties"][name])
            value = value.get(name, {})
        return self._plain(path, schema, None if value == {} else value)

    def _object(
        self, path: Path, schema: Schema, tree: Mapping[str, Any], drawn: Sequence[Path]
    ) -> str:
        """Its plain settings side by side, then its groups."""
        plain, groups = [], []
        for name, declared in schema["properties"].items():
            each, own = resolve(self.schema, declared), (*path, name)
            if own in drawn or "const" in each:
                continue
            if is_group(each):
                groups.append(self._group(own, each, tree.get(name), drawn))
            else:
                plain.append(self._plain(own, each, tree.get(name)))
        about = f'<p class="hint">{escape(hint(schema))}</p>' if hint(schema) else ""
        return f'{about}<div class="settings">{"".join(plain)}</div>{"".join(groups)}'

    def _group(self, path: Path, schema: Schema, tree: Any, drawn: Sequence[Path]) -> str:
        """An object, or one that may be null, folded."""
        if not schema.get("optional"):
            return fold(path, label(path[-1]), self._object(path, schema, tree or {}, drawn))
        filled = whole_tree(self.schema, schema, {}) if tree is None else tree
        name, on = ".".join((*path, SWITCH)), "checked" if tree is not None else ""
        switch = f'<label class="switch"><input type="checkbox" name="{name}" {on}> Use it</label>'
        inside = self._object(path, schema, filled, drawn)
        body = f'{switch}<div data-when="{name}" data-is="true">{inside}</div>'
        return fold(path, label(path[-1]), body, used=tree is not None)

    def _union(self, path: Path, schema: Schema, tree: Any) -> str:
        """A choice, and the settings of what is chosen."""
        tag, found = branches(self.schema, schema)
        chosen = (tree or {}).get(tag, next(iter(found)))
        name = ".".join((*path, tag))
        radios, groups = [], []
        for value, branch in found.items():
            on = "checked" if value == chosen else ""
            radio = f'<input type="radio" name="{name}" value="{value}" {on}>'
            radios.append(f"<label>{radio} {label(value)}</label>")
            filled = tree if value == chosen and tree else whole_tree(self.schema, branch, {})
            inside = self._object((*path, value), branch, filled, ())
            groups.append(f'<div data-when="{name}" data-is="{value}">{inside}</div>')
        title = label(path[-1])
        choice = (
            f'<div class="choice" role="radiogroup" aria-label="{title}">{"".join(radios)}</div>'
        )
        body = f"<h3>{title}</h3>{choice}{''.join(groups)}"
        return f'<section id="{element_id(path)}">{body}</section>'

    def _plain(self, path: Path, schema: Schema, value: Any) -> str:
        name = ".".join(path)
        shown = control(name, schema, value, self.choices.get(path[-1]))
        about = f"<small>{escape(hint(schema))}</small>"
        title = f"<span>{label(path[-1])}</span>"
        return f'<label class="setting" id="{element_id(path)}">{title}{about}{shown}</label>'

    # ---------------------------------------------------------------- reading

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The tree. ValueError naming the field whose text cannot be read."""
        return self._read_object(self.schema, (), values)

    def _read_object(self, schema: Schema, path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        tree = {}
        for name, declared in schema["properties"].items():
            each, own = resolve(self.schema, declared), (*path, name)
            value = self._read(each, own, values)
            if value is not ...:
                tree[name] = value
        return tree

    def _read(self, schema: Schema, path: Path, values: Mapping[str, Any]) -> Any:
        """A value, or ... where there is none."""
        if "const" in schema:
            return schema["const"]
        if "oneOf" in schema:
            tag, found = branches(self.schema, schema)
            chosen = values.get(".".join((*path, tag)))
            if chosen not in found:
                return ...
            return self._read_object(found[chosen], (*path, chosen), values)
        if is_group(schema):
            if schema.get("optional") and not values.get(".".join((*path, SWITCH))):
                return None
            return self._read_object(schema, path, values)
        name = ".".join(path)
        try:
            return read_plain(schema, values.get(name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def element_id(path: Sequence[str]) -> str:
    """The id of a setting or group in the page."""
    return f"set-{'-'.join(path)}"


def fold(path: Path, title: str, body: str, used: bool = True) -> str:
    """A group that is closed at first; one that is not used says so."""
    state = "" if used else ' <em class="hint">not used</em>'
    name = element_id(path) if path else "set-rest"
    return f'<details id="{name}"><summary>{title}{state}</summary><div>{body}</div></details>'


def control(name: str, schema: Schema, value: Any, suggestions: Sequence[str] | None) -> str:
    """The input of a setting that is no group."""
    kind, named = schema.get("type"), f'name="{escape(name)}"'
    if "enum" in schema:
        options = [""] * bool(schema.get("optional")) + schema["enum"]
        items = "".join(option(each, each == (value or "")) for each in options)
        return f"<select {named}>{items}</select>"
    if kind == "boolean":
        return f'<input type="checkbox" {named} {"checked" if value else ""}>'
    if kind in ("array", "object", None):
        text = as_text(value, schema)
        if "\n" in text or not is_numbers(schema):
            rows = min(max(text.count("\n") + 1, 2), 8)
            return f'<textarea {named} rows="{rows}">{escape(text)}</textarea>'
        return f'<input type="text" {named} value="{escape(text)}">'
    text = "" if value is None else str(value)
    field = f'<input type="text" {named} value="{escape(text)}" autocomplete="off"'
    if {"minimum", "maximum"} <= schema.keys() and not schema.get("optional"):
        low, high = schema["minimum"], schema["maximum"]
        step = 1 if kind == "integer" else 0.01 if high - low <= 2 else 0.1
        bounds = f'min="{low}" max="{high}" step="{step}" value="{escape(text)}"'
        title = f'aria-label="{label(name.rpartition(".")[2])}"'
        return f'<div class="slider"><input type="range" {bounds} {title}>{field}></div>'
    if suggestions is not None:
        items = "".join(option(each, False) for each in suggestions)
        listed = f"list-{escape(name)}"
        return f'{field} list="{listed}"><datalist id="{listed}">{items}</datalist>'
    return f"{field}{' inputmode=decimal' if kind in ('integer', 'number') else ''}>"


def option(value: str, selected: bool) -> str:
    text = escape(str(value))
    return f'<option value="{text}" {"selected" if selected else ""}>{text or "none"}</option>'
