"""What nlrn doctor prints: versions, machine, backends, models and optional libraries."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from nlrn.errors import BackendError, ModelError
from nlrn.evaluation.protocols import machine
from nlrn.inference.restorer import MEMORY
from nlrn.models import checkpoint
from nlrn.models.nlrn import PRESETS
from nlrn.ops import BACKENDS, select_backend, unsupported
from nlrn.ops.cpu import INSTRUCTION_SETS, instruction_set
from nlrn.system.hardware import hardware_bf16, memory, usable_device

VIPS = "16-bit colour and floats"
LIBRARIES = {VIPS: "pyvips", "plots": "matplotlib", "curves of a training": "tensorboard", "the GPU kernel": "triton"}

EXTRAS = {  # by the name to install them by: nlrn[NAME]; the modules of their libraries
    "train": ("tensorboard",),
    "plot": ("matplotlib",),
    "hub": ("huggingface_hub",),
    "onnx": ("onnx", "onnxscript"),
    "deepinv": ("deepinv",),
    "spandrel": ("spandrel",),
    "web": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "s3": ("s3fs",),
    "heic": ("pillow_heif",),
    "jpeg2000": ("imagecodecs",),
    "jpegxl": ("imagecodecs", "pillow_jxl"),
    "raw": ("rawpy",),
    "napari": ("napari", "magicgui", "qtpy"),
    "arrays": ("dask", "xarray"),
    "cluster": ("ray",),
    "completion": ("argcomplete",),
}


def examine() -> dict[str, Any]:
    """Versions, machine, backends ("runs", or why not), models ("as released", or what is wrong), what is installed."""
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
            "instruction set in use": instruction_set(),
            "multiplies bf16": hardware_bf16(device),
            "GPU": _gpus(),
            "memory, MiB": memory(),
            "an image may take, MiB": MEMORY >> 20,
        },
        "backends": {name: unsupported(name, q, base.window) or "runs" for name in BACKENDS},
        "backend in use": _in_use(q, base.window),
        "models": _models(),
        "libraries": {
            what: "installed" if importlib.util.find_spec(package) else f"{package} is not installed"
            for what, package in LIBRARIES.items()
        },
        "extras": [name for name in EXTRAS if _has(name)],
        "extras not installed": [name for name in EXTRAS if not _has(name)],
    }


def is_well(found: dict[str, Any]) -> bool:
    """Whether every shipped model is as it was released and a fused kernel runs."""
    intact = all(condition.startswith("as released") for condition in found["models"].values())
    whole = found["libraries"][VIPS] == "installed"
    return intact and bool(found["models"]) and whole and found["backend in use"] in ("cpu", "gpu")


def _in_use(q: torch.Tensor, window: int | None) -> str:
    try:
        return select_backend(q, window)
    except BackendError as error:
        return f"none: {error}"


def _gpus() -> str | list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "none found" if torch.version.cuda else "this build of torch has no CUDA"


def _models() -> dict[str, str]:
    """Every released model, and every other weights file in their folder: as released, or what is wrong."""
    try:
        known = checkpoint.released()
    except (OSError, ValueError) as error:
        return {"SHA256SUMS": f"cannot be read: {error}"}
    names = sorted({*known, *(path.name for path in checkpoint.WEIGHTS.glob("*.safetensors"))})
    return {Path(name).stem: _condition(checkpoint.WEIGHTS / name, known.get(name)) for name in names}


def _condition(path: Path, released: str | None) -> str:
    try:
        digest = checkpoint.sha256(path)
        if digest != released:
            return f"not the file that was released: sha256 {digest}"
        checkpoint.load_model(path)
    except (OSError, ModelError) as error:
        return f"cannot be read: {error}"
    return f"as released, sha256 {digest}"


def _has(extra: str) -> bool:
    return all(importlib.util.find_spec(module) for module in EXTRAS[extra])
