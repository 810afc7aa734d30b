"""Sizes of videos, of their latents and of what a transformer cuts these into."""

import re

from pydantic import Field

from pipelines.strict import Strict


class Geometry(Strict):
    """How a model's VAE and transformer divide a video. The defaults are Wan2.1's."""

    spatial_stride: int = Field(8, ge=1, description="Pixels a latent stands for, on each side.")
    temporal_stride: int = Field(4, ge=1, description="Frames a latent frame stands for.")
    num_channels: int = Field(16, ge=1, description="Channels of the latents.")
    patch: int = Field(2, ge=1, description="Latents a token stands for, on each side.")

    @property
    def size_multiple(self) -> int:
        """Width and height in pixels are multiples of it."""
        return self.spatial_stride * self.patch

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the latents of a video; its first frame has a latent frame of its own."""
        latent_frames = (num_frames - 1) // self.temporal_stride + 1
        sides = height // self.spatial_stride, width // self.spatial_stride
        return self.num_channels, latent_frames, *sides

    def video_size(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Width, height and frames of the video that has latents (C, F, H, W)."""
        _, latent_frames, height, width = latent_shape
        num_frames = (latent_frames - 1) * self.temporal_stride + 1
        return width * self.spatial_stride, height * self.spatial_stride, num_frames

    def num_tokens(self, width: int, height: int, num_frames: int) -> int:
        """Tokens of a video in the transformer, which cuts each latent frame into patches."""
        _, latent_frames, rows, columns = self.latent_shape(width, height, num_frames)
        return latent_frames * (rows // self.patch) * (columns // self.patch)

    def problem(self, width: int, height: int, num_frames: int) -> str | None:
        """Why no video can have this size, in a sentence with the nearest that works, or None."""
        for field, size in (("width", width), ("height", height)):
            if size < self.size_multiple or size % self.size_multiple:
                nearest = max(round(size / self.size_multiple), 1) * self.size_multiple
                multiple = f"a multiple of {self.size_multiple}"
                return f"{field} is {size} but must be {multiple}; try {nearest}"
        problem = self.frames_problem(num_frames)
        return problem and f"num_frames {problem}"

    def frames_problem(self, num_frames: int) -> str | None:
        """Why no video can have so many frames, without the name of the field, or None."""
        stride = self.temporal_stride
        if num_frames > 0 and (num_frames - 1) % stride == 0:
            return None
        nearest = max(round((num_frames - 1) / stride), 0) * stride + 1
        return f"is {num_frames} but must be {stride}n+1; try {nearest}"


WAN21 = Geometry()  # that of every model whose preset says nothing else


def read_size(text: str, field: str = "size") -> tuple[int, int]:
    """`832x480` -> (832, 480): width and height in pixels. ValueError naming `field`."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*x\s*(\d{1,5})\s*", text)
    if match is None:
        raise ValueError(f"{field} is {text!r} but must be WIDTHxHEIGHT, for example 832x480")
    return int(match[1]), int(match[2])
