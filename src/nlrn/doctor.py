"""What this installation can do here, and why not more."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from nlrn.checkpoint import list_models, load_model, released
from nlrn.errors import ModelError
from nlrn.evaluation import machine
from nlrn.hardware import hardware_bf16, memory, usable_device
from nlrn.model import PRESETS
from nlrn.ops import BACKENDS, select_backend, unsupported
from nlrn.ops.cpu import INSTRUCTION_SETS
from nlrn.restore import MEMORY

EXTRAS = {"plots": "matplotlib", "curves of a training": "tensorboard", "the GPU kernel": "triton"}


def examine() -> dict[str, Any]:
    """Versions, machine, backends ("runs", or why not), models ("as released", or what is wrong) and extras."""
    device = usable_device("auto")
    where = machine(device)
    base = PRESETS["base"]
    q = torch.empty(1, 64, 64, base.embed_channels, device=device)
    return {
        "versions": {
            "nlrn": where["nlrn"],
            "commit": where["commit"],
            "python": where["python"],
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "machine": {
            "device": str(device),
            "processor or GPU": where["device"],
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": where["threads"],
            "instruction sets": list(INSTRUCTION_SETS),
            "multiplies bf16": hardware_bf16(device),
            "GPU": _gpus(),
            "memory, MiB": memory(),
            "a picture may take, MiB": MEMORY >> 20,
        },
        "backends": {name: unsupported(name, q, base.window) or "runs" for name in BACKENDS},
        "backend in use": select_backend(q, base.window),
        "models": {info.name: _condition(info.name, info.path, info.sha256) for info in list_models()},
        "extras": {what: _installed(package) for what, package in EXTRAS.items()},
    }


def is_well(found: dict[str, Any]) -> bool:
    """Whether every shipped model is as it was released and a fused kernel runs."""
    intact = all(condition.startswith("as released") for condition in found["models"].values())
    return intact and bool(found["models"]) and found["backend in use"] in ("cpu", "gpu")


def _gpus() -> str | list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "none found" if torch.version.cuda else "this build of torch has no CUDA"


def _condition(name: str, path: Path, digest: str) -> str:
    if digest != released().get(path.name):
        return f"not the file that was released: sha256 {digest}"
    try:
        load_model(name)
    except ModelError as error:
        return str(error)
    return f"as released, sha256 {digest}"


def _installed(package: str) -> str:
    return "installed" if importlib.util.find_spec(package) else f"{package} is not installed"
