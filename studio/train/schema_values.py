"""What a JSON schema says of one setting: its type, label and hint; its value as text and back."""

import json
from collections.abc import Callable
from typing import Any

import yaml

Schema = dict[str, Any]
Path = tuple[str, ...]
BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
    "multipleOf": "a multiple of {:g}",
}


def resolve(root: Schema, schema: Schema) -> Schema:
    """The schema with its reference followed; `X or null` becomes X with `optional` set."""
    beside = {name: value for name, value in schema.items() if name not in ("$ref", "anyOf")}
    if "$ref" in schema:
        target = resolve(root, root["$defs"][schema["$ref"].rpartition("/")[2]])
        if "properties" in target:  # a group's own docstring says more than the field's line
            beside |= {"description": target.get("description", "")}
        return target | beside
    if "anyOf" in schema:
        others = [each for each in schema["anyOf"] if each.get("type") != "null"]
        if len(others) == 1 and len(others) < len(schema["anyOf"]):
            return resolve(root, others[0]) | beside | {"optional": True}
    return schema


def is_group(schema: Schema) -> bool:
    """Whether settings lie inside; of a resolved schema."""
    return "properties" in schema or "oneOf" in schema


def label(name: str) -> str:
    """`learning_rate` -> `Learning rate`, `num_steps` -> `Number of steps`."""
    words = f"number of {name[4:]}" if name.startswith("num_") else name
    return words.replace("_", " ").capitalize()


def hint(schema: Schema) -> str:
    """The first paragraph of the description, and the bounds that no slider shows."""
    about = schema.get("description", "").partition("\n\n")[0].replace("\n", " ")
    bounds = [text.format(schema[name]) for name, text in BOUNDS.items() if name in schema]
    if {"minimum", "maximum"} <= schema.keys() and not schema.get("optional"):
        bounds = []
    limits = ", ".join(bounds).capitalize()
    empty = "Empty: none" if schema.get("optional") and "mpty" not in about else ""
    return " ".join(f"{part.rstrip('.')}." for part in (about, limits, empty) if part)


def item_of(schema: Schema) -> Schema:
    """The schema of a list's items."""
    item: Schema = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
    return item


def is_numbers(schema: Schema) -> bool:
    """Whether it is a list of numbers."""
    return item_of(schema).get("type") in ("number", "integer")


def as_text(value: Any, schema: Schema) -> str:
    """A value as a text field shows it, null as nothing."""
    if value is None or value == {}:
        return ""
    if schema.get("type") == "object":
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, list | tuple):
        return str(value)
    if is_numbers(schema):
        return ", ".join(map(repr, value))
    if item_of(schema).get("type") == "string":
        return "\n".join(value)
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in value)


def read_plain(schema: Schema, value: Any) -> Any:
    """What a field's text or tick says; None for null, ... for "not given".

    ValueError where text is not what the type asks for; the bounds are not looked at.
    """
    kind = schema.get("type")
    if kind == "boolean":
        return bool(value)
    text = str(value or "").strip()
    empty = None if schema.get("optional") else ...
    if kind == "array" or kind is None:
        return read_list(schema, text)
    if kind == "object":
        return read_mapping(text)
    if not text:
        return empty
    if kind == "integer":
        return read_number(text, int, "a whole number")
    if kind == "number":
        return read_number(text, float, "a number")
    return text


def read_number(text: str, number: Callable[[str], float], what: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not {what}; correct it") from error


def read_mapping(text: str) -> dict[str, Any]:
    """Settings whose names only their reader knows, as YAML."""
    try:
        found = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("is not YAML; write {name: value, ...}")
    return found


def read_list(schema: Schema, text: str) -> list[Any] | None:
    """Numbers with commas between, or one item a line."""
    if not text:
        return None if schema.get("optional") else []
    if is_numbers(schema):
        return [read_number(word, float, "a number") for word in text.replace(",", " ").split()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if item_of(schema).get("type") == "string":
        return lines
    try:
        return [yaml.safe_load(line) for line in lines]
    except yaml.YAMLError as error:
        raise ValueError("is not YAML; write one {name: value, ...} a line") from error
