"""A run's rewards, ready to be asked: the one it trains on and the one it never does."""

from typing import Any

from trainers.networks.models import Codecs
from trainers.ranks.ranks import World
from trainers.registry import load_reward
from trainers.scoring.reward import LatentScore
from trainers.settings.run import TrainConfig

TRAINED, HELD_OUT = "reward", "held_out_reward"  # their names among figures


def rewards_of(config: TrainConfig[Any], codecs: Codecs, world: World) -> dict[str, LatentScore]:
    """By name, those that the configuration asks for."""
    held_out = config.validation.held_out if config.validation else None
    choices = {TRAINED: config.reward, HELD_OUT: held_out}
    return {
        name: LatentScore(load_reward(choice, world.device), choice, codecs.video.vae, world)
        for name, choice in choices.items()
        if choice is not None
    }
