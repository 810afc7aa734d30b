"""The rewards: each file holds a class `RewardModel`; its name is the reward's.

A new reward is a new file here.
Imports torch.
"""
