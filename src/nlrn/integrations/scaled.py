"""A bare network on the range of values that the Restorer would choose (nlrn.functional.ranges)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nlrn.functional.ranges import scale_of


def on_own_range(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, level: Tensor) -> Tensor:
    """run(x, level) of images [B, C, H, W], each on its range; level: [B], on the images' scale (0..1, not 0..255).

    The range is a constant for gradients. Values far beyond it, such as hot pixels, bypass the network.
    """
    arrays = (image.movedim(0, -1).cpu().double().numpy() for image in x.detach())
    scales = [scale_of(image, "auto", 255 * float(one)) for image, one in zip(arrays, level.detach(), strict=True)]
    if all(scale.limits == (0.0, 1.0) for scale in scales) and not any(
        bool(((image < scale.least) | (image > scale.most)).any())
        for image, scale in zip(x.detach(), scales, strict=True)
    ):
        return run(x, level)

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=x.device).to(x.dtype)[:, None, None, None]

    low, spread = each([scale.low for scale in scales]), each([scale.spread for scale in scales])
    inside = ((x - low) / spread).clamp(each([s.least for s in scales]), each([s.most for s in scales]))
    return run(inside, level / spread.flatten()) * spread + (x - inside * spread)
