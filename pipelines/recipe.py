"""What made a video: `Recipe`, and how a checkpoint wants to be sampled: `SamplerSpec`.

The recipe is the unit of the studio: the same object is in the mp4, the database row, the share
link, the command line and the cache key.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.geometry import WAN21, Geometry
from pipelines.strict import Strict

SamplerName = Literal["unipc", "euler", "lcm"]
SOLVERS: dict[SamplerName, str] = {"unipc": "UniPC", "euler": "Euler", "lcm": "LCM"}  # for people
GuidanceMode = Literal["two_pass", "embedded", "off"]
ImagePreprocessing = Literal["diffusers", "native"]


class SamplerSpec(Strict):
    """How a checkpoint wants to be sampled; travels with the weights as `sampler.json`.

    What has a title is for users to set: it is the label in Compare, and the option's name.
    """

    name: SamplerName = Field(
        "unipc",
        title="Sampler",
        description="Solver: UniPC, Euler, or LCM (re-noise after each step).",
    )
    num_inference_steps: int = Field(
        50, title="Steps", ge=1, le=1000, description="Steps from noise to video."
    )
    flow_shift: float = Field(
        5.0,
        title="Shift",
        gt=0,
        le=100,
        description="Moves steps toward high noise; larger for larger videos.",
    )
    guidance_scale: float = Field(
        5.0,
        title="Guidance",
        ge=0,
        le=30,
        description="How hard the prompt pulls. 1 or less: one forward a step, no negative prompt.",
    )
    sigmas: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        None,
        title="Sigmas",
        description="Noise levels before the shift, descending from 1; replaces the even grid.",
    )
    guidance_mode: GuidanceMode = Field(
        "two_pass",
        description="two_pass: classifier-free guidance. embedded: guidance is an input of the "
        "network, one forward a step. off: distilled, guidance stays at 1.",
    )

    @model_validator(mode="after")
    def _sigmas_descend_and_count(self) -> Self:
        if self.sigmas is not None:
            if any(a <= b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)):
                raise ValueError("sigmas must descend, for example [1.0, 0.75, 0.5, 0.25]")
            if len(self.sigmas) != self.num_inference_steps:
                raise ValueError(
                    f"num_inference_steps is {self.num_inference_steps} but sigmas lists "
                    f"{len(self.sigmas)} levels; "
                    "make them agree or leave sigmas out"
                )
        return self

    @property
    def reads_negative_prompt(self) -> bool:
        """Whether a step also runs the negative prompt: classifier-free guidance above 1."""
        return self.guidance_mode == "two_pass" and self.guidance_scale > 1

    @property
    def forwards_per_step(self) -> int:
        """Transformer forwards one step costs: 2 with classifier-free guidance, else 1."""
        return 2 if self.reads_negative_prompt else 1

    @property
    def guidance_text(self) -> str:
        """Guidance in a word or two, for people."""
        if self.guidance_mode == "off":
            return "no guidance"
        mode = " embedded" if self.guidance_mode == "embedded" else ""
        return f"guidance {self.guidance_scale:g}{mode}"

    @property
    def text(self) -> str:
        """Solver, steps, shift and guidance in one line, for people."""
        steps = f"{self.name} {self.num_inference_steps} steps"
        return f"{steps}, shift {self.flow_shift:g}, {self.guidance_text}"

    def problem(self) -> str | None:
        """Why this combination cannot give a sensible video, or None; shown before it runs."""
        if self.guidance_mode == "off" and self.guidance_scale > 1:
            return (
                f"guidance_scale is {self.guidance_scale:g} but this checkpoint was distilled to "
                "run without guidance; "
                "set guidance_scale to 1"
            )
        return None


# What users may set of a sampler, by the word of its option: `--steps` is `num_inference_steps`.
SETTINGS = {
    field.title.lower(): name for name, field in SamplerSpec.model_fields.items() if field.title
}


class Adapter(Strict):
    """One LoRA on the base model. The weight change is strength * (lora_alpha / rank) * B @ A."""

    path: str = Field(description="Safetensors file or PEFT folder.")
    strength: float = Field(1.0, ge=-10, le=10, description="Multiplies the whole adapter.")
    lora_alpha: float | None = Field(
        None, ge=0, description="Replaces the alpha stored in the file; empty keeps it."
    )
    fingerprint: str | None = Field(
        None, description="Content hash, filled in when the recipe is resolved."
    )


class FirstFrame(Strict):
    """The image that an image-to-video model continues."""

    path: str = Field(description="An image file.")
    fingerprint: str | None = Field(
        None, description="Content hash, filled in when the recipe is resolved."
    )


class Recipe(Strict):
    """Everything that made one video. Equal recipes give equal frames on the same machine."""

    schema_version: Literal[1] = 1
    model: str = Field(description="Registry name or folder.")
    model_fingerprint: str | None = Field(
        None, description="Content hash, filled in when the recipe is resolved."
    )
    adapters: tuple[Adapter, ...] = ()
    sampler: SamplerSpec = SamplerSpec()
    prompt: str = Field(description="What to show.")
    image: FirstFrame | None = Field(None, description="For image-to-video models, and only those.")
    negative_prompt: str = Field("", description="What to avoid; read only with guidance above 1.")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    width: int = Field(
        832, ge=WAN21.size_multiple, le=4096, description="Pixels, a multiple of 16."
    )
    height: int = Field(
        480, ge=WAN21.size_multiple, le=4096, description="Pixels, a multiple of 16."
    )
    num_frames: int = Field(81, title="Frames", ge=1, le=1025, description="4n+1 frames.")
    fps: int = Field(16, ge=1, le=120)
    memory: str = Field(
        "plain", description="How the model lay in memory: plain, fit, or NAME=VALUE,..."
    )

    @model_validator(mode="after")
    def _size_of_any_model(self) -> Self:
        """Wan2.1's rule holds for all; the registry asks the model itself for more."""
        if problem := WAN21.problem(self.width, self.height, self.num_frames):
            raise ValueError(problem)
        return self

    @property
    def num_forwards(self) -> int:
        """Transformer forwards the whole denoising costs."""
        return self.sampler.num_inference_steps * self.sampler.forwards_per_step

    def latent_shape(self, geometry: Geometry) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the video's latents in a model of this geometry."""
        return geometry.latent_shape(self.width, self.height, self.num_frames)

    def num_tokens(self, geometry: Geometry) -> int:
        """Tokens of the video in a transformer of this geometry."""
        return geometry.num_tokens(self.width, self.height, self.num_frames)

    def to_json(self) -> str:
        """One line of JSON, keys sorted: the text that goes into the mp4 and under the hash.

        Without an image it does not speak of one, nor of memory where all was plain: clips that
        were made before there were such choices keep their keys.
        """
        content = self.model_dump(mode="json")
        if self.image is None:
            del content["image"]
        if self.memory == "plain":
            del content["memory"]
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def key(self) -> str:
        """Cache key: the first 32 hex digits of the SHA-256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]
