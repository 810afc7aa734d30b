"""A look at a source before anything is prepared, for the studio. Imports no torch."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.catalog.registry import Registry
from pipelines.recipe import explain
from trainers.settings.prepare import PrepareConfig
from trainers.sources.inspect import Probe, probe
from trainers.sources.listing import Item, Kind, kind_of, read_items


@dataclass(frozen=True)
class Look:
    """What a source holds. `probes` are of the first videos, as many as there was time for."""

    config: dict[str, Any]  # complete
    kind: Kind
    items: tuple[Item, ...]
    probes: tuple[Probe, ...]


def read_config(tree: Mapping[str, Any]) -> tuple[PrepareConfig, list[Item]]:
    """The complete settings, and the items of their source. ValueError in one sentence."""
    try:
        config = PrepareConfig.model_validate(tree)
        items = read_items(config.source)
        preset = Registry().entry(config.model).preset
        config = config.complete(kind_of(items), preset)
        return config.model_copy(update={"num_steps": len(items)}), items
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def look(tree: Mapping[str, Any], within_sec: float) -> Look:
    """Validates the settings and looks at the videos, one after the other, until time is up."""
    config, items = read_config(tree)
    kind = kind_of(items)
    probes = _probes(items, config, within_sec) if kind == "videos" else ()
    return Look(config.model_dump(mode="json"), kind, tuple(items), probes)


def _probes(items: Sequence[Item], config: PrepareConfig, within_sec: float) -> tuple[Probe, ...]:
    end, found = time.monotonic() + within_sec, []
    for item in items:
        if time.monotonic() > end:
            break
        found.append(probe(item, config.clips))
    return tuple(found)
