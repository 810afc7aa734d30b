"""The page: comparisons, training runs, data and models, in one Gradio app.

Call `ui.build_page` with a `studio.Studio`; a tab is a file in tabs/.
Rooms from the ground up: page, runs, clips, train, compare, run_page, models, data, tabs; none
imports torch.
"""
