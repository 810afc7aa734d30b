"""A clip as one picture, so that a model of pictures can see motion.

    first frame   middle frame
    last frame    the three in time's colours: their brightness as red, green and blue

What moves right is red, green, blue from left to right in the last one, wherever it is: a local
pattern. From frames side by side alone a small model did not learn motion in the time it learned
all else.
"""

import torch
from torch import Tensor


def contact_sheet(video: Tensor) -> Tensor:
    """[B, F, 3, H, W] in [0, 1] -> [B, 3, 2H, 2W]."""
    last = video.shape[1] - 1
    first, middle, final = video[:, 0], video[:, last // 2], video[:, last]
    brightness = [frame.amax(1) for frame in (first, middle, final)]  # luminance hides blue on grey
    in_colours = torch.stack(brightness, 1)
    above, below = torch.cat([first, middle], -1), torch.cat([final, in_colours], -1)
    return torch.cat([above, below], -2)
