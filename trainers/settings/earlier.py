"""Settings of configurations that an earlier version wrote, in the words of this one."""

from collections.abc import Mapping
from typing import Any

# Flags of a method that made another one of it, by method: that one's name now, and the values of
# the flags that meant the method itself.
MOVED: dict[str, tuple[str, dict[str, Any]]] = {
    "dmd2": ("dmd2_wanx", {"normaliser": "sample", "shared_noise": True}),
    "step_distill": ("step_distill_half", {"variant": "progressive"}),
}


def in_todays_words(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration, not validated: a tree of today comes back as it is."""
    method, algorithm = tree.get("method"), tree.get("algorithm")
    if method not in MOVED or not isinstance(algorithm, Mapping):
        return dict(tree)
    other, plain = MOVED[method]
    flags = {name: value for name, value in algorithm.items() if name in plain}
    rest = {name: value for name, value in algorithm.items() if name not in plain}
    if all(value == plain[name] for name, value in flags.items()):
        return {**tree, "algorithm": rest}
    return {**tree, "method": other, "algorithm": {**rest, **plain, **flags}}
