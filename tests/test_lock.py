"""requirements.lock fits the bounds in requirements.txt and in the group dev of pyproject.toml."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# NAME==VERSION ; MARKERS \, its hashes, then comments that say what asks for it
ENTRY = re.compile(r"^(\S+)==(\S+).*\\\n((?: {4}--hash=.*\n)+)((?: {4}#.*\n)+)", re.MULTILINE)


def bounds() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    asked = [Requirement(line) for line in [*lines, *dev] if not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in asked}


def test_the_lock_holds_what_the_bounds_ask_for_and_nothing_that_they_no_longer_do() -> None:
    entries = ENTRY.findall((ROOT / "requirements.lock").read_text())
    versions = {name: version for name, version, _, _ in entries}
    asked_by_us = {
        name for name, _, _, why in entries if re.search(r"requirements\.txt|pyproject\.toml", why)
    }
    unmet = [
        f"{bound}, but the lock has {versions.get(name)}"
        for name, bound in bounds().items()
        if name not in versions or versions[name] not in bound.specifier
    ]
    no_longer = [f"{name} is no longer asked for" for name in asked_by_us - bounds().keys()]
    assert unmet + no_longer == [], "run `make lock`"
