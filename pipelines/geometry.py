"""Sizes of videos and of their latents."""

SPATIAL_MULTIPLE = 16  # VAE stride 8 times transformer patch 2
TEMPORAL_STRIDE = 4
