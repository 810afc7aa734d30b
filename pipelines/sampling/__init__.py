"""The mathematics of sampling: `denoised = model(noisy_latents, sigma, prompt)`.

Call `denoiser.Denoiser` for the model, `guidance.guide` around it, `samplers.sample` to run it.
Imports torch and diffusers.
"""
