"""Step distillation as distill_wan2.1 does it, kept to compare with `step_distill`.

From the same noisy latents and the same two steps of the teacher, in the notation of that file:

    half    H( d_S(x_a), d_T(x_b) ) + H( x_a + (b - a) v_S, x_c )
            The second term wants (c - a) / (b - a) times the mean velocity, about twice what the
            first (denoised against denoised) wants; the student ends between the two, and is
            run with a larger shift to make up for it.
    half2   H( d_S(x_a), d_T(x_b) ) only: one teacher step, so a student step still lands short.

Both ask for less than two steps in one. H is the pseudo-Huber distance.
"""

from typing import Literal

from torch import Tensor

from pipelines.sampling.flow import denoised_from_velocity, euler_step
from trainers.algorithms import step_distill
from trainers.algorithms.step_distill import ThreeOf
from trainers.losses import pseudo_huber


class Config(step_distill.Config):
    """Settings of distill_wan2.1's step distillation."""

    variant: Literal["half", "half2"] = "half"


class Method(step_distill.Method):
    """A student that is asked for less than its teacher's two steps."""

    Config = Config

    def distance(self, velocity: Tensor, levels: ThreeOf, path: ThreeOf, second: Tensor) -> Tensor:
        """The variant's distance; scalar."""
        (a, b, _), (x_a, x_b, x_c) = levels, path
        denoised = denoised_from_velocity(x_a, velocity, a)
        loss = pseudo_huber(denoised, denoised_from_velocity(x_b, second, b))
        assert isinstance(self.config, Config)
        if self.config.variant == "half":
            loss = loss + pseudo_huber(euler_step(x_a, velocity, a, b), x_c)
        return loss
