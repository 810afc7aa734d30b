"""What a Wan model is and how a video is made with it; knows neither the page nor training.

Call `generate.generate` with a `recipe.Recipe`; `python -m pipelines` is the same from a shell.
Rooms from the ground up: files, sampling, catalog, formats, models, lora, commands.
"""
