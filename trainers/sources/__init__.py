"""Where training data come from: folders, lists and prompts, looked at before anything starts.

Call `listing.read_items` for what a source holds, `inspect.look` for what would become of it.
Torch is never imported.
"""
