"""Small networks with nothing idle in them, and an image of noise, for every test that needs one."""

from __future__ import annotations

import numpy as np
import torch

from nlrn.inference.restorer import Settings
from nlrn.models.nlrn import NLRN, NLRNConfig

FP32 = Settings(precision="fp32")


def random_model(seed: int = 0, **changes: object) -> NLRN:
    """A small network whose every parameter and statistic is random, so that no part of it is idle."""
    settings = {"channels": 8, "embed_channels": 4, "states": 2, "window": 5, "sigma_input": True} | changes
    model = NLRN(NLRNConfig(**settings))  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=random) * 0.3
            tensor.copy_(values.abs() + 0.5 if "running_var" in name else values)
    return model


def random_image(*shape: int) -> np.ndarray:
    return np.random.RandomState(1).rand(*shape).astype(np.float32)
