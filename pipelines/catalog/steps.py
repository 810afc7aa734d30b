"""How a training step's folder is called, in the checkpoints, exports and samples of a run."""

import re


def step_name(step: int) -> str:
    """500 -> `step_000500`."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """`step_000500` -> 500; None for a folder that is not of one step."""
    match = re.fullmatch(r"step_([0-9]{6,})", name)
    return int(match[1]) if match else None
