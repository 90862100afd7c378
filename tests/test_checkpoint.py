"""Laws of the weights file: it rebuilds its own model, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nlrn.errors import CheckpointError, ModelNotFoundError
from nlrn.models.checkpoint import (
    MAX_HEADER,
    MAX_TENSORS,
    load_model,
    model_metadata,
    read_tensors,
    resolve_model,
    save_model,
)
from nlrn.models.nlrn import NLRN, NLRNConfig

CONFIGS = [
    NLRNConfig(channels=4, embed_channels=2, states=2, window=3),
    NLRNConfig(in_channels=3, channels=5, embed_channels=3, states=1, window=None, sigma_input=True),
    NLRNConfig(channels=4, embed_channels=2, states=3, window=5, propagation=False, task="sr"),
]


def random_model(config: NLRNConfig) -> NLRN:
    """Parameters and statistics drawn at random, so that no two tensors are alike."""
    torch.manual_seed(0)
    model = NLRN(config)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand_like(tensor))
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_model(path, random_model(CONFIGS[0]), {"steps": "7"})
    return path


@pytest.mark.parametrize("config", CONFIGS)
def test_a_file_rebuilds_its_own_model_bit_for_bit(tmp_path: Path, config: NLRNConfig) -> None:
    model = random_model(config)
    path = tmp_path / "a.safetensors"
    save_model(path, model, {"steps": "7", "config": "not this"})
    loaded = load_model(path)
    assert loaded.config == config
    assert not loaded.training
    assert model_metadata(path)["steps"] == "7"
    floats = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in floats.items())
    x = torch.rand(1, config.in_channels, 9, 8)
    sigma = 0.1 if config.sigma_input else None
    with torch.no_grad():
        assert torch.allclose(loaded(x, sigma), model(x, sigma), atol=1e-5)


def test_the_same_model_gives_the_same_bytes_and_half_precision_is_widened(tmp_path: Path) -> None:
    model = random_model(CONFIGS[0])
    one, two = tmp_path / "one", tmp_path / "two"
    save_model(one, model)
    save_model(two, load_model(one))
    assert one.read_bytes() == two.read_bytes()
    save_model(two, model.half())
    assert all(p.dtype == torch.float32 for p in load_model(two).parameters())


def test_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("no-such-model", tmp_path, tmp_path / "none", tmp_path / "fifo", "../../etc/passwd\0"):
        with pytest.raises(ModelNotFoundError, match="shipped models"):
            resolve_model(name)


def parts(path: Path) -> tuple[dict[str, object], bytes]:
    """The header as a table, and the bytes after it."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def assemble(path: Path, header: dict[str, object], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def with_config(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Edit the configuration in the header; the edit may return another one."""
    header, body = parts(path)
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    config = json.loads(metadata["config"])
    config = edit(config) or config
    assemble(path, {**header, "__metadata__": {"config": json.dumps(config)}}, body)


YOUNGER = ("distance", "noise")  # older files lack them
FIELDS = [field.name for field in dataclasses.fields(NLRNConfig) if field.name not in YOUNGER]
ODD = [0, -1, 3.0, 2**40, 10**30, True, None, "4", [4], {}, float("nan"), "denoise "]


def damage_config(path: Path, chance: random.Random) -> None:
    """A field gone, a field too many, or a field with a value of another type, size or sign."""
    name = chance.choice([n for n in FIELDS if n not in ("window", "propagation", "task")])
    kind = chance.randrange(4)
    if kind == 0:
        with_config(path, lambda config: config.pop(chance.choice(FIELDS)) and None)
    elif kind == 1:
        with_config(path, lambda config: config.update({f"{name}s": 1}))
    elif kind == 2:
        with_config(path, lambda config: config.update({name: chance.choice(ODD)}))
    else:
        step = chance.choice([1, 2, 7])
        with_config(path, lambda config: config.update({name: int(config[name]) + step}))  # type: ignore[call-overload]


def damage_header(path: Path, chance: random.Random) -> None:
    """Lengths and offsets that lie, headers that are no table, a configuration that is none."""
    header, body = parts(path)
    names = [name for name in header if name != "__metadata__"]
    entry = dict(header[chance.choice(names)])  # type: ignore[call-overload]
    data = path.read_bytes()
    kind = chance.randrange(6)
    if kind == 0:
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == 1:
        path.write_bytes(struct.pack("<Q", chance.choice([0, 1, MAX_HEADER + 1, 2**63])) + data[8:])
    elif kind == 2:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = [start, end + chance.choice([-4, 4, 2**40])]
        assemble(path, {**header, chance.choice(names): entry}, body)
    elif kind == 3:
        assemble(path, {**header, "__metadata__": {"config": "[" * 100_000}}, body)
    elif kind == 4:
        assemble(path, {**header, "__metadata__": chance.choice([{}, {"config": "[]"}, {"config": "null"}])}, body)
    else:
        text = bytearray(data)
        text[8] ^= 1 << chance.randrange(8)  # the header's first byte, "{"
        path.write_bytes(text)


def damage_tensors(path: Path, chance: random.Random) -> None:
    """A tensor gone, renamed, too many, of another shape or dtype, or one number in it that is none."""
    metadata, tensors = read_tensors(path)
    name = chance.choice([n for n in tensors if "norm" not in n])
    value = tensors[name].clone()
    kind = chance.randrange(7)
    if kind in (0, 1):
        del tensors[name]
    if kind in (1, 2):
        tensors[name + "s"] = value
    elif kind == 3:
        tensors[name] = value[None]
    elif kind == 4:
        tensors[name] = value.to(chance.choice([torch.float16, torch.float64, torch.int32]))
    elif kind == 5:
        value.view(-1)[chance.randrange(value.numel())] = chance.choice([torch.nan, torch.inf, -torch.inf])
        tensors[name] = value
    elif kind == 6:
        name = chance.choice([n for n in tensors if n.endswith("running_var")])
        tensors[name][chance.randrange(len(tensors[name]))] = -1e-3
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("damage", [damage_config, damage_header, damage_tensors])
def test_damaged_files_are_refused(
    weights: Path, count: Callable[[int], int], damage: Callable[[Path, random.Random], None]
) -> None:
    good, chance = weights.read_bytes(), random.Random(0)
    for case in range(count(200)):
        weights.write_bytes(good)
        damage(weights, chance)
        with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
            pytest.fail(f"case {case} was loaded: {load_model(weights).config}")


def test_a_file_of_too_many_tensors_is_refused(tmp_path: Path) -> None:
    many: dict[str, Tensor] = {str(i): torch.zeros(1) for i in range(MAX_TENSORS + 1)}
    path = tmp_path / "many.safetensors"
    save_file(many, path)
    with pytest.raises(CheckpointError, match="more than 4096"):
        load_model(path)


class Canary:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.mkdir, (str(self.mark), 0o700)


def test_a_pickle_never_runs(tmp_path: Path) -> None:
    mark, canary = tmp_path / "it-ran", Canary(tmp_path / "it-ran")
    plain, archive, torch_file = (tmp_path / name for name in ("a.pkl", "b.pth", "c.safetensors"))
    plain.write_bytes(pickle.dumps(canary))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(canary))
        file.writestr("archive/version", "3")
    torch.save({"state_dict": nn.Linear(1, 1).state_dict(), "canary": canary}, torch_file)
    for path in (plain, archive, torch_file):
        with pytest.raises(CheckpointError, match="safetensors"):
            load_model(path)
    assert not mark.exists()
    pickle.loads(plain.read_bytes())
    assert mark.exists()  # the canary is one
