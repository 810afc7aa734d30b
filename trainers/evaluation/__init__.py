"""How well models of the shapes world obey: accuracy, Frechet distance, diversity, as tables.

`python -m trainers.evaluation students NAME ...` and its siblings; `measure` holds the figures.
Imports torch.
"""
