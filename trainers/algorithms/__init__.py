"""The methods: each file holds a `Config`, its losses and a class `Method`; its name is the
method's.

A new method is a new file here, a small variant of one may extend that one.
Imports torch.
"""
