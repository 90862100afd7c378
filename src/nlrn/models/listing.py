"""What is shipped, read from the headers of the files: without torch, whose import takes longer than the reading."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATISTICS = ("running_mean", "running_var")  # of batch norms: no parameters


@dataclass(frozen=True)
class ModelInfo:
    """A shipped model: name, file, task, image channels, parameter count, sha256, training metadata."""

    name: str
    path: Path
    task: str
    channels: int
    parameters: int
    sha256: str
    metadata: dict[str, str]


def shipped_models(folder: Path = Path(__file__).parent / "weights") -> list[ModelInfo]:
    """The same as `list_models`, of files that are taken for whole."""
    return [described(path) for path in sorted(folder.glob("*.safetensors"))]


def described(path: Path) -> ModelInfo:
    """The model of a file that is taken for whole."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    metadata: dict[str, str] = header.pop("__metadata__")
    config = json.loads(metadata["config"])
    parameters = sum(math.prod(one["shape"]) for key, one in header.items() if not key.endswith(_STATISTICS))
    digest = hashlib.sha256(data).hexdigest()
    return ModelInfo(path.stem, path, config["task"], config["in_channels"], parameters, digest, metadata)
