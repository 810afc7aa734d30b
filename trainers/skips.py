"""Steps that are left out because a gradient is not finite: counted, named, and never too many."""

from collections.abc import Iterable

import torch
from torch import Tensor

from trainers.ranks.ranks import World, from_all_ranks
from trainers.run.log import Tracker

MAX_IN_A_ROW = 20


class SkippedSteps:
    """The count of each trained role since the run was started."""

    def __init__(self, roles: Iterable[str], tracker: Tracker, world: World):
        self.tracker, self.world = tracker, world
        self.num_skipped = dict.fromkeys(roles, 0)
        self.num_in_a_row = dict.fromkeys(roles, 0)

    def may_step(self, role: str, step: int, norm: Tensor, prompts: list[str]) -> bool:
        """Whether the gradient's norm is finite; where it is not, an event names the prompts.

        `prompts` are this rank's that made a loss that is not finite. ValueError after too many
        skipped steps of a role in a row.
        """
        if torch.isfinite(norm):
            self.num_in_a_row[role] = 0
            return True
        self.num_skipped[role] += 1
        self.num_in_a_row[role] += 1
        named = from_all_ranks(prompts, self.world)
        if self.world.is_main:
            reason = "loss not finite" if named else "gradient not finite"
            self.tracker.event("skipped", step=step, role=role, reason=reason, prompts=named)
        if self.num_in_a_row[role] >= MAX_IN_A_ROW:
            raise ValueError(
                f"algorithm.{role}.learning_rate: the gradient was not finite for "
                f"{MAX_IN_A_ROW} steps in a row; lower it or check the data"
            )
        return False
