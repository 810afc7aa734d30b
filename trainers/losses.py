"""Losses as pure functions, each with its equation. All arithmetic is fp32.

Shapes are those of latents, [B, C, F, H, W], unless a docstring says otherwise.
"""

from torch import Tensor
from torch.nn import functional

from pipelines.sampling.flow import expand_sigma

HUBER_C = 1e-3


EPSILON = 1e-4


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """mean( sqrt(d^2 + c^2) - c ), d = prediction - target: near 0 a square, far away |d|."""
    difference = prediction.float() - target.float()
    return ((difference.square() + c * c).sqrt() - c).mean()


def flow_matching(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """mean || velocity - (noise - latents) ||^2 (Lipman et al. 2023, eq. 14)."""
    return (velocity.float() - (noise - latents).float()).square().mean()


def sample_scale(latents: Tensor, teacher_denoised: Tensor) -> Tensor:
    """DMD's normaliser, eq. 8 of Yin et al. 2023: mean over ALL axes but the batch. [B, 1, 1, ...].

    It makes the gradient's size the same at every noise level.
    """
    return mean_distance(latents, teacher_denoised, tuple(range(1, latents.ndim)))


def mean_distance(latents: Tensor, teacher_denoised: Tensor, axes: tuple[int, ...]) -> Tensor:
    """mean over axes | x - d_teacher |, above 0; the axes stay, with length 1."""
    return (latents - teacher_denoised).abs().mean(axes, keepdim=True).clamp_min(1e-6)


def distribution_matching(
    latents: Tensor, gradient: Tensor, weight: Tensor | None = None
) -> Tensor:
    """1/2 mean || x - sg(x - gradient) ||^2, whose derivative by x is gradient / x.numel().

    Yin et al. 2023 (arXiv:2311.18828), eq. 7, in the form of DMD2. weight [B] scales each sample
    (Reward-Forcing, arXiv:2512.04678, weights by exp(beta * reward)).
    """
    target = (latents - gradient).detach()  # d loss / d latents = gradient / numel
    squares = 0.5 * (latents.float() - target.float()).square()
    return (squares if weight is None else squares * expand_sigma(weight, squares)).mean()


def discriminator_loss(data_logits: Tensor, student_logits: Tensor) -> Tensor:
    """softplus(-D(data)) + softplus(D(student)): non-saturating GAN (DMD2, eq. 4). Logits [B]."""
    return (functional.softplus(-data_logits) + functional.softplus(student_logits)).mean()


def generator_loss(student_logits: Tensor) -> Tensor:
    """softplus(-D(student)): the student's side of `discriminator_loss`. Logits [B]."""
    return functional.softplus(-student_logits).mean()


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(reward - mean of its group) / standard deviation over all groups. [N * G] -> [N * G].

    A group's copies lie together and sum to zero. The spread is that of the batch: a group whose
    videos are nearly alike must not count as much as one that differs.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    spread = centred.square().mean().sqrt()
    return (centred / (spread + EPSILON)).flatten()
