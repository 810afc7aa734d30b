"""Scores of videos: rewards around a VAE, CLIP models, figures that need no reference.

Call `reward.LatentScore` for the reward of latents; a reward itself is a file in
trainers/rewards/.
Imports torch; `server` runs alone, in an environment of its own.
"""
