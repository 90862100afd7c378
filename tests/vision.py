"""torchvision, which deepinv and spandrel import, finds its compiled part missing beside torch's CPU build.

Its import asks for the schemas of two operators that none of our tests calls; where they are missing, they are
declared here, without code. Importing this module does it.
"""

from __future__ import annotations

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

try:
    import torchvision
except (RuntimeError, ImportError):
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}{SCHEMA}")
    import torchvision  # noqa: F401
