"""Networks in memory: loading, where their weights lie, prompts, videos and images in and out.

Call `loading.load_components`; `placement.Placement` moves, quantises or offloads what it gives.
Imports torch, diffusers and transformers.
"""
