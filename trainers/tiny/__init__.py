"""TinyWan and its CLIP from random weights: what the repository ships and its tests run on.

`python -m trainers.tiny.wan` and `python -m trainers.tiny.clip`; `make tiny` calls them in
order.
Imports torch.
"""
