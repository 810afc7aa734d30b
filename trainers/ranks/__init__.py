"""This process among its peers: the process group, sharded weights, shared tokens.

Call `ranks.join_ranks`; everything that ranks must agree on is asked of it.
Imports torch.
"""
