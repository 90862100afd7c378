"""Weights on disk: safetensors with the configuration in the header, so that a file rebuilds its own model.

Nothing here runs code from a file: no pickle is ever loaded. A file is refused unless its header is small,
its keys, shapes and dtypes are exactly the model's and every number is finite.
"""

from __future__ import annotations

import dataclasses
import json
import stat
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nlrn.errors import CheckpointError, ConfigError, ModelNotFoundError
from nlrn.models.listing import ModelInfo as ModelInfo
from nlrn.models.listing import described
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.system.atomic import publish
from nlrn.system.atomic import sha256 as sha256

WEIGHTS = Path(__file__).parent / "weights"
MAX_HEADER = 1 << 20
MAX_TENSORS = 4096
_COUNTERS = "num_batches_tracked"


def save_model(
    path: str | Path, model: NLRN, metadata: dict[str, str] | None = None, *, overwrite: bool = True
) -> None:
    """Write a weights file atomically: parameters and statistics in float32, the configuration and ``metadata``.

    A compiled network is written as what it was before. Raises InputError where the file exists and `overwrite` is
    False, or cannot be written.
    """
    model = getattr(model, "_orig_mod", model)
    header = {**(metadata or {}), "config": json.dumps(dataclasses.asdict(model.config), sort_keys=True)}
    publish(path, save(_state(model), header), overwrite=overwrite)


def load_model(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> NLRN:
    """The model of a shipped name or of a file, in eval mode, float32.

    A shipped file must have the digest that it was released with. Raises ModelNotFoundError or CheckpointError.
    """
    path = resolve_model(name_or_path)
    if path.parent == WEIGHTS and released().get(path.name) != sha256(path):
        raise CheckpointError(f"{path.name} is not the file that was released: install the package again")
    metadata, tensors = read_tensors(path)
    config = _config(path, metadata)
    with torch.device("meta"):  # nothing is allocated for a configuration that the tensors contradict
        _check(path, NLRN(config), tensors)
    model = NLRN(config)
    model.load_state_dict(tensors, strict=False)
    return to_device(model, torch.device(device)).eval()


def to_device(model: NLRN, device: torch.device) -> NLRN:
    """The model on a device, channels last in memory, as every backend requires."""
    moved: NLRN = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def model_metadata(name_or_path: str | Path) -> dict[str, str]:
    """The header's metadata: configuration, recipe, steps and what else the trainer recorded."""
    return read_header(resolve_model(name_or_path))


def list_models() -> list[ModelInfo]:
    """The models inside this package, ordered by name.

    Each has name, path, task ("denoise" or "sr"), channels of its images, parameters, sha256 and metadata.
    """
    return [describe(path) for path in sorted(WEIGHTS.glob("*.safetensors"))]


def resolve_model(name_or_path: str | Path) -> Path:
    """The file of a shipped name, or the path itself. Raises ModelNotFoundError, which lists the shipped names."""
    shipped = WEIGHTS / f"{name_or_path}.safetensors"
    if "/" not in str(name_or_path) and shipped.is_file():
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    names = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))) or "none"
    raise ModelNotFoundError(f"no model and no file is called {str(name_or_path)!r}; shipped models: {names}")


def default_model(task: str, channels: int, *, photo: bool = False) -> str:
    """The name of the base model of a task if it is shipped, else of the small one; a grey one where colour has none.

    task: "denoise" or "sr". channels: of the image, 1 or 3. photo: the denoiser for the noise of cameras. Raises
    ModelNotFoundError.
    """
    kinds = {"denoise": ["denoise-color", "denoise-gray"][-1 if channels == 1 else 0 :], "sr": ["sr"]}[task]
    kinds = ["denoise-photo"] if photo else kinds
    for name in (f"{kind}{size}" for kind in kinds for size in ("", "-small")):
        if (WEIGHTS / f"{name}.safetensors").is_file():
            return name
    what = "the noise of cameras" if photo else f"the task {task!r}"
    raise ModelNotFoundError(f"no model for {what} is shipped yet: train one and name its file (--model)")


def ships_photo_model() -> bool:
    """Whether a model for the noise of cameras is inside this package."""
    return any(WEIGHTS.glob("denoise-photo*.safetensors"))


def released() -> dict[str, str]:
    """sha256 of every shipped file, by file name, from weights/SHA256SUMS (what sha256sum -c reads)."""
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, its header bounded before it is parsed. Raises CheckpointError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe waits for its other end
            raise CheckpointError(f"{path.name} is not a regular file")
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) < 8 or struct.unpack("<Q", start)[0] > MAX_HEADER:
            raise CheckpointError(f"{path.name} is not a safetensors file with a header of at most {MAX_HEADER} bytes")
        with safe_open(path, "pt") as opened:
            if len(opened.keys()) > MAX_TENSORS:
                raise CheckpointError(f"{path.name} holds more than {MAX_TENSORS} tensors")
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name} cannot be read as safetensors: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises CheckpointError for a damaged one."""
    metadata = read_header(path)
    try:
        with safe_open(path, "pt") as opened:
            return metadata, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} cannot be read as safetensors: {error}") from error


def _state(model: NLRN) -> dict[str, Tensor]:
    """What a weights file holds: parameters and running statistics, not the batch counters."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(_COUNTERS)}
    return {k: v.detach().float().cpu().contiguous() for k, v in state.items()}


def _config(path: Path, metadata: dict[str, str]) -> NLRNConfig:
    """The configuration in a header: every field of NLRNConfig, of its very type, and no other.

    Files older than `distance` or `noise` do not name them.
    """
    try:
        younger = {"distance": NLRNConfig.distance, "noise": NLRNConfig.noise}
        values: dict[str, Any] = {**younger, **json.loads(metadata["config"])}
        if values.pop("level_one", 0.0) != 0.0:  # once a field
            raise ValueError("models that find the noise of cameras by themselves are no longer read")
        for field in dataclasses.fields(NLRNConfig):
            value, default = values[field.name], field.default
            if type(value) is not type(default) and not (field.name == "window" and value is None):
                raise TypeError(f"{field.name} is {value!r}")
        config = NLRNConfig(**values)
    except (KeyError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path.name} carries no usable model configuration: {error}") from error
    return config


def _check(path: Path, model: NLRN, tensors: dict[str, Tensor]) -> None:
    """Strictly: the same keys, shapes and dtype, every number finite, no negative variance."""
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith(_COUNTERS)}
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise CheckpointError(f"{path.name} does not fit its configuration: {len(odd)} keys differ, such as {odd[0]}")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape or value.dtype != torch.float32:
            shapes = f"{tuple(value.shape)}, not float32 {tuple(wanted[key].shape)}"
            raise CheckpointError(f"{path.name}: {key} is {value.dtype} {shapes}")
        if not bool(value.isfinite().all()) or (key.endswith("running_var") and bool((value < 0).any())):
            raise CheckpointError(f"{path.name}: {key} holds a number that is not finite, or a negative variance")


def describe(path: Path) -> ModelInfo:
    """The ModelInfo of a weights file. Raises CheckpointError."""
    _config(path, read_header(path))
    return described(path)
