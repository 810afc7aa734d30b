"""Strict pydantic models, and what is wrong with the input of one in a sentence."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A frozen model in which an unknown key is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain(error: ValidationError) -> str:
    """The first problem in one sentence that names the field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not a known setting; check the spelling"
    elif first["type"] not in ("value_error", "missing"):
        message += f", not {first['input']!r}"
    return f"{field}: {message}" if field else message
