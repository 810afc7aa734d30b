"""How far a student's videos have drifted from its teacher's, in figures that need no reference.

Losses of distillation say little about the picture: a student can over-expose, freeze or show every
seed the same video while they fall. These figures are what people otherwise look for by eye. The
video is [B, F, C, H, W] in [0, 1]; each figure but diversity is one number a clip, [B].

    share figures (clipped, static)                  drift = student - teacher
    the others (saturation, contrast, motion, ...)   drift = student / teacher
    distance = sum |student - teacher| + sum |ln(student / teacher)|

so that 0.1 of a share and 10 % of a ratio count the same; 0 is the teacher itself.
"""

import math
from collections.abc import Mapping

from trainers.scoring.figures import FIGURES, Figures

FLOOR = 1e-3  # keeps the ratio of two figures near zero finite
NAMES = (*FIGURES, "diversity")
SHARES = ("clipped_share", "static_share")


def drift(student: Mapping[str, float], teacher: Mapping[str, float]) -> Figures:
    """For every name in NAMES that both have: the difference of shares, the ratio of the others."""
    return {
        name: student[name] - teacher[name]
        if name in SHARES
        else (student[name] + FLOOR) / (teacher[name] + FLOOR)
        for name in NAMES
        if name in student and name in teacher
    }


def size(name: str, drifted: float) -> float:
    """How far a figure of `drift` is from none, in either direction; 0 is no drift."""
    return abs(drifted) if name in SHARES else abs(math.log(drifted))


def distance(drifted: Mapping[str, float]) -> float:
    """The sum over all figures: the distance to the teacher."""
    return sum(size(name, figure) for name, figure in drifted.items())
