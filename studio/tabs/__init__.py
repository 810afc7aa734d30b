"""The tabs: each file draws one and wires it, and says where it stands.

A new tab is a new file here.
Torch is never imported.
"""
