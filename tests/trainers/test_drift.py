"""Each figure of the drift monitor on videos whose value is known."""

import math

import pytest
import torch

from trainers.scoring import figures
from trainers.validation import drift


def grey(level: float, num_frames: int = 4) -> torch.Tensor:
    """One clip [1, F, 3, 8, 8] of one level."""
    return torch.full((1, num_frames, 3, 8, 8), level)


def test_only_pixels_at_the_ends_of_the_range_are_clipped() -> None:
    video = grey(0.5)
    video[:, :, :, :2] = 0.0
    video[:, :, :, 2:4] = 1.0
    video[:, :, :, 4] = 0.05
    assert figures.clipped_share(video).tolist() == [0.5]


def test_saturation_is_the_spread_of_the_channels_and_contrast_that_of_the_luminance() -> None:
    red = torch.zeros(1, 2, 3, 4, 4)
    red[:, :, 0] = 0.8
    assert figures.saturation(red).item() == pytest.approx(0.8)
    assert figures.contrast(red).item() == pytest.approx(0, abs=1e-6)
    halves = grey(0.2)
    halves[..., 4:] = 0.6
    assert figures.saturation(halves).item() == 0
    assert figures.contrast(halves).item() == pytest.approx(0.2)


def test_luminance_weighs_green_most() -> None:
    channels = torch.eye(3).view(3, 1, 3, 1, 1)
    assert figures.luminance(channels).flatten().tolist() == pytest.approx([0.2126, 0.7152, 0.0722])


def test_motion_is_the_mean_change_and_a_repeated_frame_is_static() -> None:
    video = torch.cat([grey(0.1, 1), grey(0.1, 1), grey(0.3, 1)], dim=1)
    assert figures.motion(video).item() == pytest.approx(0.1)
    assert figures.static_share(video).item() == 0.5
    assert figures.static_share(grey(0.5, 1)).item() == 1


def test_diversity_is_zero_for_equal_clips_and_their_distance_for_others() -> None:
    thumbnails = figures.thumbnail(torch.cat([grey(0.2), grey(0.5), grey(0.5)]))
    assert figures.diversity(thumbnails[1:]).item() == 0
    assert figures.diversity(thumbnails).item() == pytest.approx((0.3 + 0.3 + 0) / 3, rel=1e-4)


def test_a_teacher_has_no_distance_to_itself_and_drift_counts_the_same_either_way() -> None:
    teacher = {"clipped_share": 0.1, "saturation": 0.3, "motion": 0.02, "prompt_accuracy": 0.5}
    assert drift.distance(drift.drift(teacher, teacher)) == 0
    paler, stronger = (drift.drift(teacher | {"saturation": s}, teacher) for s in (0.1495, 0.601))
    assert drift.distance(paler) == pytest.approx(math.log(2), rel=1e-3)
    assert drift.distance(stronger) == pytest.approx(math.log(2), rel=1e-3)
    burnt = drift.drift(teacher | {"clipped_share": 0.4}, teacher)
    assert drift.distance(burnt) == pytest.approx(0.3)
    assert set(burnt) == {"clipped_share", "saturation", "motion"}  # accuracy is no drift
