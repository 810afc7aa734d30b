"""Validation while training: the student's videos beside its teacher's, measured and ranked.

Always the same prompts and seeds. The student is sampled as its export will be; the teacher once,
with its own model's sampler, before training. Each video also has the run's reward and, where there
is one, the held-out reward. Files: samples/{teacher,step_NNNNNN}/*.mp4, figures in metrics.jsonl
(`validation/`, `drift/`), alarms in events.jsonl, `best.json` with step and score.

    score = accuracy - distance      distance: trainers/validation/drift.py, 0 without a teacher
                                     accuracy: mean of prompt and slot accuracy, 0 for score=drift
          or the held-out reward     (score=held_out)

The scores so far are read back from metrics.jsonl, so that a resumed run ranks like a whole one.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from pipelines.catalog.entries import image_problem
from pipelines.catalog.overrides import Overrides, negative_prompt_for, override
from pipelines.catalog.steps import step_name
from pipelines.recipe import Adapter, Recipe
from trainers.ranks.ranks import any_rank
from trainers.run.checkpoint import write_best
from trainers.run.export import student_spec
from trainers.run.log import Tracker
from trainers.run.run import Run
from trainers.scoring.figures import Figures
from trainers.scoring.reward import HELD_OUT, TRAINED
from trainers.settings.roles import Frozen
from trainers.settings.validation import Validation
from trainers.validation import drift
from trainers.validation.samples import VideoDrawer, summary
from trainers.worlds.shapes import Caption


class Validator:
    """Draws, measures and ranks. `exhausted` says whether the patience is at its end."""

    def __init__(self, run: Run, sampler: VideoDrawer, tracker: Tracker):
        assert run.config.validation is not None
        if run.algorithm.component == "vae":
            raise ValueError("validation: an autoencoder draws no videos; leave it out")
        self.settings, self.tracker, self.ranks = run.config.validation, tracker, run.ranks
        self.student, self.teacher = run.exported_role, run.roles.get("teacher")
        self.student_recipes = student_recipes(run)
        self.teacher_recipes = teacher_recipes(run) if self.teacher else {}
        self.sampler = sampler
        sampler.check_captions = _are_captions(self.settings)
        self.teacher_figures: Figures = {}
        self.hacked = False  # known to the main rank
        self.scores: list[tuple[int, float]] = []  # step and score, on the main rank
        self.exhausted = False

    def begin(self) -> None:
        """Draws the teacher's videos that are not there yet, and reads the scores so far."""
        if self.teacher is not None:
            drawn = [
                self.sampler.draw_once(recipe, self.teacher, f"teacher/{name}")
                for name, recipe in self.teacher_recipes.items()
            ]
            self.teacher_figures = summary(drawn)
        if self.ranks.is_main:
            self.scores = self.tracker.history("validation/score")
            self.hacked = self._hacking() is not None
            write_best(self.tracker.run_dir, self.best())
        self._check_patience()

    def validate(self, step: int) -> bool:
        """Draws and measures the student after `step` steps.

        Returns whether it is the best so far: then its checkpoint is to be saved.
        """
        folder = step_name(step)
        drawn = [
            self.sampler.draw(recipe, self.student, f"{folder}/{name}")
            for name, recipe in self.student_recipes.items()
        ]
        if self.ranks.is_main:
            self.tracker.event("sampled", step=step, folder=f"samples/{folder}")
            self._rank(step, summary(drawn))
        self._check_patience()
        best = self.best()
        return any_rank(best is not None and best[0] == step, self.ranks)

    def best(self) -> tuple[int, float] | None:
        """Step and score of the best validation, the first of equals; known to the main rank."""
        finite = [entry for entry in self.scores if math.isfinite(entry[1])]
        return max(finite, key=lambda entry: entry[1], default=None)

    def _rank(self, step: int, figures: Figures) -> None:
        """Writes the figures of one validation, its alarms and its score."""
        drifted = drift.drift(figures, self.teacher_figures)
        logged = {f"validation/{name}": figure for name, figure in figures.items()}
        logged |= {f"validation/teacher_{name}": f for name, f in self.teacher_figures.items()}
        logged |= {f"drift/{name}": figure for name, figure in drifted.items()}
        if drifted:
            logged["drift/distance"] = drift.distance(drifted)
        if self.settings.score is not None:
            logged["validation/score"] = score(self.settings, figures, drifted)
            self.scores.append((step, logged["validation/score"]))
        self.tracker.metrics(step, logged)
        reason = self._hacking()
        if reason is not None:
            self.hacked = True
            self.tracker.event("hacking", step=step, reason=reason)
        thresholds = self.settings.alarms.model_dump()
        for name, figure in drifted.items():
            limit = thresholds[name]
            if not drift.size(name, figure) <= drift.size(name, limit):  # nan is an alarm too
                self.tracker.event("alarm", step=step, figure=name, value=figure, threshold=limit)

    def _check_patience(self) -> None:
        patience, best = self.settings.patience, self.best()
        since = [step for step, _ in self.scores if best is None or step > best[0]]
        ended = patience is not None and len(since) >= patience
        self.exhausted = any_rank(ended or self.hacked, self.ranks)

    def _hacking(self) -> str | None:
        """Whether the trained reward has risen while the held-out one fell, too often in a row."""
        wanted = self.settings.hacking_patience
        if wanted is None:
            return None
        names = (TRAINED, HELD_OUT)
        trained, held_out = (
            [value for _, value in self.tracker.history(f"validation/{name}")][-wanted - 1 :]
            for name in names
        )
        rises = len(trained) > wanted and all(a < b for a, b in pairwise(trained))
        if not (rises and all(a > b for a, b in pairwise(held_out))):
            return None
        return (
            f"the trained reward rose from {trained[0]:.4g} to {trained[-1]:.4g} while the "
            f"held-out one fell from {held_out[0]:.4g} to {held_out[-1]:.4g}, "
            f"{wanted} validations in a row"
        )


def score(settings: Validation, figures: Figures, drifted: Figures) -> float:
    """What ranks checkpoints: accuracy - distance, as the module's docstring has it."""
    if settings.score == "held_out":
        return float(f"{figures[HELD_OUT]:.6g}")
    accuracy = 0.0
    if settings.score == "shapes":
        accuracy = (figures["prompt_accuracy"] + figures["slot_accuracy"]) / 2
    return float(f"{accuracy - drift.distance(drifted):.6g}")  # as it is read back from the log


def student_recipes(run: Run) -> dict[str, Recipe]:
    """The videos of the run's student by file name, sampled as its export will be.

    `num_inference_steps` and `guidance_scale` of the settings come first. ValueError where the
    student cannot be asked so.
    """
    config, settings = run.config, run.config.validation
    assert settings is not None
    changes = settings.model_dump(include={"num_inference_steps", "guidance_scale"})
    sampler = override(student_spec(run).sampler, changes)
    if problem := sampler.problem():
        raise ValueError(f"validation.guidance_scale: {problem}")
    own = {
        "model": config.name,  # the name of its export
        "model_fingerprint": None,
        "adapters": (),
        "sampler": sampler,
        "negative_prompt": negative_prompt_for(run.entry.preset, sampler, None),
    }
    recipes = _recipes(run, config.model, ())
    return {name: recipe.model_copy(update=own) for name, recipe in recipes.items()}


def teacher_recipes(run: Run) -> dict[str, Recipe]:
    """The same videos of the teacher's model, with that model's own sampler."""
    teacher = run.config.algorithm.roles()["teacher"]
    assert isinstance(teacher, Frozen)
    if teacher.model is not None:
        return _recipes(run, teacher.model, ())
    return _recipes(run, run.config.model, run.config.adapters)


def _recipes(run: Run, model: str, adapters: Sequence[Adapter]) -> dict[str, Recipe]:
    registry, settings = run.registry, run.config.validation
    assert settings is not None
    size: Overrides = {
        "width": settings.width,
        "height": settings.height,
        "num_frames": settings.num_frames,
    }
    images = settings.images or [None] * len(settings.prompts)
    recipes = {
        f"{number:02d}-seed{seed}": registry.recipe(
            model, prompt, image=image, adapters=adapters, seed=seed, **size
        )
        for number, (prompt, image) in enumerate(zip(settings.prompts, images, strict=True))
        for seed in settings.seeds
    }
    problem = image_problem(registry.entry(model).preset, next(iter(recipes.values())))
    if problem is not None:
        raise ValueError(f"validation.images: {problem}")
    return recipes


def _are_captions(settings: Validation) -> bool:
    """Whether all prompts are captions of the shapes world; ValueError where they must be."""
    try:
        for prompt in settings.prompts:
            Caption.parse(prompt)
    except ValueError as error:
        if settings.score == "shapes":
            raise ValueError(f"validation.prompts: {error}") from error
        return False
    return True
