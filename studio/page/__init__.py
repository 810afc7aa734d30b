"""What every tab is made of: words, handlers, live parts, the player, scripts and templates.

Call `handlers.explained` around what may refuse, `live.draw_live` for what changes by itself.
Torch is never imported.
"""
