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
from typing import Any

from studio.page.markup import render
from studio.train.schema_values import (
    Path,
    Schema,
    as_text,
    hint,
    is_group,
    is_numbers,
    label,
    read_plain,
    resolve,
)

SWITCH = "used"  # the name of the switch of a group that may be null
Placed = tuple[Path, Schema, Any]  # a setting or group, what is declared of it, its value


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
        drawn = (*essentials, (hidden,))
        rest, groups = self.parts((), self.schema, tree, drawn)
        return render(
            "form",
            form=self,
            essentials=[self._essential(path, tree) for path in essentials],
            drawn=drawn,
            groups=groups,
            rest=rest,
            used=SWITCH,
            **{each.__name__: each for each in (as_text, element_id, hint, is_numbers, label)},
        )

    def _essential(self, path: Path, tree: Mapping[str, Any]) -> Placed:
        schema, value = self.schema, tree
        for name in path:
            schema = resolve(self.schema, schema["properties"][name])
            value = (value or {}).get(name, schema.get("default"))
        return path, schema, value

    def parts(
        self, path: Path, schema: Schema, tree: Any, drawn: Sequence[Path]
    ) -> tuple[list[Placed], list[Placed]]:
        """The plain settings and the groups of an object, without those that are drawn already.

        What is not in the tree has its default. Text in place of the tree is the one setting that
        is enough by itself.
        """
        given = {schema["shorthand"]: tree} if isinstance(tree, str) else tree or {}
        fields: list[Placed] = []
        groups: list[Placed] = []
        for name, declared in schema["properties"].items():
            each, own = resolve(self.schema, declared), (*path, name)
            if own not in drawn and "const" not in each:
                placed = own, each, given.get(name, each.get("default"))
                (groups if is_group(each) else fields).append(placed)
        return fields, groups

    def branches(self, schema: Schema) -> tuple[str, dict[str, Schema]]:
        """The field that tells the members of a union apart, and the members by its values."""
        mapping = schema["discriminator"]["mapping"]
        found = {name: resolve(self.schema, {"$ref": ref}) for name, ref in mapping.items()}
        return schema["discriminator"]["propertyName"], found

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
            tag, found = self.branches(schema)
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
