"""The Compare form: variants, what they cost, hints, first frames.

Call `variants.to_recipe` for what a variant means, `panels.draw_form` for its fields.
Torch is never imported.
"""
