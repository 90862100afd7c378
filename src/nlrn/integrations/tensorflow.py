"""The authors' TensorFlow weights as an NLRN: a reader of TensorFlow checkpoints, and the authors' names of variables.

TensorFlow itself would take 1.5 GB to read 4 MB, so its checkpoint format (a sorted table of names, and raw tensors,
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/tensor_bundle/tensor_bundle.h) is read here.
The names are those of github.com/Ding-Liu/NLRN and of the older NLRN_v0, which puts "model/" before them and computes
on the 0..255 scale. `tests/authors` holds what TensorFlow wrote and computed with both.
"""

from __future__ import annotations

import io
import math
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import CheckpointError, ConfigError
from nlrn.models.nlrn import NLRN, NLRNConfig

MAX_INDEX = 1 << 24  # bytes of a table of names: a model's takes some 10 KB
MAX_DATA = 1 << 28  # bytes of tensors: a model's take 4 MB, with an optimiser's three times that
MAX_VARIABLES = 4096
MAX_NAME = 512  # bytes
MAX_BLOCKS = 1024  # of a table of names, 4 KiB each where TensorFlow writes it
RANGES = (1, 255)  # of the images that the authors' networks were trained on: 0..1, 0..255
_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_FLOAT = 1  # DataType.DT_FLOAT
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_CONVS = {
    "head": "conv1",
    "tail": "conv_end",
    "block.conv_a": "rnn/RB1_a",
    "block.conv_b": "rnn/RB1_b",
    "block.non_local.theta": "rnn/non_local_theta",
    "block.non_local.phi": "rnn/non_local_phi",
    "block.non_local.g": "rnn/non_local_g",
}


# -- the network -------------------------------------------------------------------------------------------------


def convert(
    variables: Mapping[str, np.ndarray],
    *,
    propagation: bool,
    window: int | None = None,
    task: str = "denoise",
    trained_on: int | None = None,
) -> NLRN:
    """The network of the authors' variables, in eval mode, on the 0..1 scale.

    variables: by the authors' names; others, such as an optimiser's, are left out. propagation: whether the model
    carries correlations; its variables do not show it (the authors' models of 12 states do, those of 15 do not).
    window: the variables do not show it either; the authors look at the whole of a 45 x 45 patch, which is None. task:
    "denoise" or "sr", which the variables do not show either. trained_on: 1 or 255, the largest value of the images
    that the network was trained on; None takes 255 for names that begin with "model/", as in the authors' first code,
    and 1 for others. Raises CheckpointError for variables that are missing or do not fit, ConfigError for an even
    window, another task or range, and for super-resolution of colour.
    """
    if trained_on not in (None, *RANGES):
        raise ConfigError(f"trained_on must be 1 or 255, or None, not {trained_on!r}")
    first = "model/conv1/kernel" in variables
    largest = trained_on or (255 if first else 1)
    found = {name.removeprefix("model/"): value for name, value in variables.items()}
    NLRNConfig(window=window, task=task)  # errors of the caller's arguments; those below are of the variables
    config = _config(found, propagation, window, task)
    if task == "sr" and config.in_channels != 1:
        raise ConfigError(f"super-resolution restores luminance, and this network has {config.in_channels} channels")
    model = NLRN(config)
    tensors = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, own in tensors.items():
        own.copy_(_variable(found, name, own.shape))
    if largest == 255:
        _to_unit_scale(model, "its names begin with model/" if trained_on is None else "as given")
    for name, own in tensors.items():
        if not bool(own.isfinite().all()) or (name.endswith("running_var") and bool((own < 0).any())):
            raise CheckpointError(f"the variable for {name} holds a number that is not finite, or a negative variance")
    return model.eval()


def _config(found: Mapping[str, np.ndarray], propagation: bool, window: int | None, task: str) -> NLRNConfig:
    """The configuration by the shapes and the number of batch norms."""
    norms = len([name for name in found if re.fullmatch(r"rnn/batch_normalization(_\d+)?/gamma", name)])
    try:
        shapes = {key: found[f"{name}/kernel"].shape for key, name in _CONVS.items()}
        if norms == 0 or norms % 3:
            raise CheckpointError(f"a recurrent state has three batch norms; these variables hold {norms}")
        return NLRNConfig(
            in_channels=shapes["head"][2],
            channels=shapes["head"][3],
            embed_channels=shapes["block.non_local.theta"][3],
            states=norms // 3,
            window=window,
            propagation=propagation,
            task=task,
        )
    except (KeyError, IndexError, ConfigError) as error:
        raise CheckpointError(f"these are not the variables of the authors' network: {error}") from error


def _variable(found: Mapping[str, np.ndarray], name: str, shape: torch.Size) -> Tensor:
    """The authors' variable for one tensor of the model, [out, in, height, width] for a kernel."""
    module, _, kind = name.rpartition(".")
    if module in _CONVS:
        theirs = f"{_CONVS[module]}/{'kernel' if kind == 'weight' else 'bias'}"
    else:
        theirs = f"{_norm_name(module)}/{_NORM[kind]}"
    if theirs not in found:
        raise CheckpointError(f"the variable {theirs} is missing")
    value = torch.from_numpy(np.ascontiguousarray(found[theirs], dtype=np.float32))
    value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value
    if value.shape != shape:
        raise CheckpointError(f"the variable {theirs} is {tuple(found[theirs].shape)}, which does not fit {name}")
    return value


def _norm_name(module: str) -> str:
    """TensorFlow numbers batch norms in the order in which they are made: three a state."""
    if module in ("head_norm", "tail_norm"):
        return "batch_normalization" + ("_1" if module == "tail_norm" else "")
    kind, t = re.fullmatch(r"block\.norm([123])\.(\d+)", module).groups()  # type: ignore[union-attr]
    number = 3 * int(t) + int(kind) - 1
    return "rnn/batch_normalization" + (f"_{number}" if number else "")


@torch.no_grad()
def _to_unit_scale(model: NLRN, because: str) -> None:
    """From images in 0..255 to 0..1: the first statistics and the last convolution depend on the scale.

    because: why the images are taken to be in 0..255. Raises CheckpointError where the statistics contradict it.
    """
    norm = model.head_norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    smallest = float(norm.running_var.min())
    if 0 <= smallest < norm.eps * 255**2 - norm.eps:
        raise CheckpointError(
            f"the network is taken to be trained on images in 0..255 ({because}), and the variance of its input,"
            f" {smallest:g}, is too small for them: give 1, for images in 0..1 (--trained-on 1)"
        )
    norm.running_mean.div_(255)
    norm.running_var.add_(norm.eps).div_(255**2).sub_(norm.eps)
    for p in model.tail.parameters():
        p.div_(255)


# -- the checkpoint ----------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The float32 variables of a TensorFlow checkpoint, by name.

    path: the prefix that TensorFlow calls the checkpoint, one of its files, the file "checkpoint" or the training
    folder around it, whose newest is taken, the folder of a SavedModel or its saved_model.pb, or a folder with one
    SavedModel in it. Raises CheckpointError when it is none, is damaged, lies in more than one piece, or is larger
    than any model's.
    """
    index, data = checkpoint_files(path)
    prefix = index.with_name(index.name.removesuffix(".index"))
    try:
        for file, most in ((index, MAX_INDEX), (data, MAX_DATA)):
            if not stat.S_ISREG(file.stat().st_mode):
                raise CheckpointError(f"{file} is not a regular file")
            if file.stat().st_size > most:
                raise CheckpointError(f"{file} is over {most:,} bytes, more than any model's")
        table, tensors = index.read_bytes(), data.read_bytes()
        if len(table) < _FOOTER or struct.unpack_from("<Q", table, len(table) - 8)[0] != _MAGIC:
            raise CheckpointError(f"{index} is not the index of a TensorFlow checkpoint")
        found, size = {}, 0
        for number, (name, entry) in enumerate(_entries(table)):
            if number > MAX_VARIABLES or len(name) > MAX_NAME:
                raise ValueError(f"it holds over {MAX_VARIABLES:,} variables, or a name of over {MAX_NAME} bytes")
            value = _tensor(entry, tensors) if name else None
            if value is not None:
                size += value.nbytes
                if size > len(tensors):
                    raise ValueError("its variables are larger than its file: several share a place")
                found[name.decode()] = value
        return found
    except (OSError, IndexError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise CheckpointError(f"cannot read the TensorFlow checkpoint {prefix}: {error}") from error


def checkpoint_files(path: str | Path) -> tuple[Path, Path]:
    """The index and the data of the checkpoint that `path` names."""
    prefix = _prefix(Path(path))
    index, data = (prefix.with_name(prefix.name + end) for end in (".index", ".data-00000-of-00001"))
    return index, data


def _prefix(path: Path) -> Path:
    """The prefix of a checkpoint that a path names. Raises CheckpointError for a folder that holds none."""
    if path.is_dir():
        return _prefix_in(path)
    if path.name == "checkpoint" and path.is_file():
        return _newest(path)
    if path.name == "saved_model.pb":
        return path.parent / "variables" / "variables"
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is a weights file of this package: there is nothing to convert")
    return path.with_name(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))


def _prefix_in(folder: Path) -> Path:
    """Of a SavedModel, a training folder, or a folder that one SavedModel was exported into."""
    if (folder / "variables" / "variables.index").exists():
        return folder / "variables" / "variables"
    if (folder / "checkpoint").is_file():
        return _newest(folder / "checkpoint")
    found = [file.with_name(file.stem) for file in sorted(folder.glob("*.index"))]
    found = found or [file.parent / "variables" / "variables" for file in sorted(folder.glob("*/saved_model.pb"))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{folder} holds no TensorFlow checkpoint: pass the prefix of NAME.index and NAME.data-00000-of-00001,"
            " a training folder, or the folder of a SavedModel"
        )
    names = ", ".join(str(name) for name in found[:8])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints; pass one of them: {names}")


def _newest(state: Path) -> Path:
    """The prefix that TensorFlow's file "checkpoint", a protocol buffer as text, calls the newest one."""
    try:
        with state.open("rb") as file:
            text = file.read(1 << 16).decode(errors="replace")
    except OSError as error:
        raise CheckpointError(f"cannot read {state}: {error.strerror or error}") from error
    found = re.search(r'^model_checkpoint_path: "([^"\\\0\n]+)"', text, re.MULTILINE)
    if found is None:
        raise CheckpointError(f"{state} names no checkpoint: pass the prefix of NAME.index itself")
    here = state.parent / Path(found[1]).name  # folders are moved: what it names is searched in this folder first
    if here.with_name(here.name + ".index").exists():
        return here
    return state.parent / found[1]


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, entry) of the sorted table: the footer points at an index block, that at blocks of entries."""
    footer = io.BytesIO(table[-_FOOTER:])
    _, _, start, size = (_varint(footer) for _ in range(4))  # first the meta index, which TensorFlow leaves empty
    blocks, read = 0, 0
    for _, handle in _block(table, start, size):
        place = io.BytesIO(handle)
        start, size = _varint(place), _varint(place)
        blocks, read = blocks + 1, read + size
        if blocks > MAX_BLOCKS or read > len(table):
            raise ValueError("the blocks of its index are larger than its file: several share a place")
        yield from _block(table, start, size)


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block, whose keys leave out what they share with the one before."""
    if table[start + size] != 0:
        raise ValueError("its index is compressed, which TensorFlow's never is")
    (restarts,) = struct.unpack_from("<I", table, start + size - 4)
    stream, end, key = io.BytesIO(table[start : start + size]), size - 4 * (restarts + 1), b""
    while stream.tell() < end:
        shared, own, length = (_varint(stream) for _ in range(3))
        if stream.tell() + own + length > end:
            raise ValueError("an entry of its index runs over the end")
        if shared > len(key) or shared + own > 4 * MAX_NAME:  # keys of the index of blocks are those of names
            raise ValueError(f"it holds a name of over {MAX_NAME} bytes")
        key = key[:shared] + stream.read(own)
        yield key, stream.read(length)


def _tensor(entry: bytes, data: bytes) -> np.ndarray | None:
    """The tensor of a BundleEntryProto; None when it is not float32."""
    fields = dict(_fields(entry))
    if not all(
        isinstance(value, bytes) == (number == 2) for number, value in fields.items() if number in (1, 2, 3, 4, 5)
    ):
        raise ValueError("an entry of its index is not one of a tensor")
    if fields.get(1) != _FLOAT:
        return None
    if fields.get(3, 0):
        raise ValueError("its tensors lie in several files; save it in one")
    offset, size = int(fields.get(4, 0)), int(fields.get(5, 0))
    parts = _fields(fields.get(2, b""))  # type: ignore[arg-type]
    dims = [value for number, value in parts if number == 2 and isinstance(value, bytes)]
    shape = [int(dict(_fields(dim)).get(1, 0)) for dim in dims[:9]]
    if len(shape) > 8 or offset + size > len(data) or size != 4 * math.prod(shape):
        raise ValueError("a tensor does not lie in its file")
    return np.frombuffer(data, "<f4", size // 4, offset).reshape(shape).astype(np.float32)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer message: integers, and bytes for what has a length."""
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        tag = _varint(stream)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, _varint(stream)
        elif kind in (1, 2, 5):
            yield number, stream.read({1: 8, 5: 4}.get(kind) or _varint(stream))
        else:
            raise ValueError("an entry of its index is not a protocol buffer")


def _varint(stream: io.BytesIO) -> int:
    """The little-endian base-128 number that comes next."""
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value
        if shift > 63:
            raise ValueError("its index holds a number of more than 64 bits")
