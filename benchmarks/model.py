"""The whole network: images in window and patch mode, growth with the states, and a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import DTYPES, Cell, Limit, available_bytes, peak_bytes, reset_peak
from nlrn.functional.tiling import PATCH, patch_size, patches
from nlrn.inference.restorer import Restorer, Settings
from nlrn.models.checkpoint import to_device
from nlrn.models.nlrn import NLRN, PRESETS, NLRNConfig
from nlrn.ops.flops import PER_PAIR, clipped_pairs
from nlrn.system.hardware import hardware_bf16
from nlrn.training.config import TrainConfig
from nlrn.training.norms import freeze_norms
from nlrn.training.optim import clip_gradients, loss_of, make_optimizer

SIZES = (256, 512, 1024)
STATES = (1, 2, 4, 8, 12)
PATCHES = (6, 64)  # of a training step: how many, and their side
STEPS = 5


def cells(device: str, threads: int, *, quick: bool) -> Iterator[Cell]:
    """All measurements: "images" (window mode at rising sizes, patch mode at one), "backends", "states", "training".
    In bf16 where this machine multiplies it. quick: tiny ones."""
    dtype = "bf16" if hardware_bf16(torch.device(device)) else "fp32"
    common = {"kind": "network", "device": device, "threads": threads, "dtype": dtype, "backend": "auto"}
    common |= {"mode": "window", "states": None, "repeats": 1 if quick else 3}
    for preset in PRESETS:
        model = common | {"preset": preset}
        for size in (24,) if quick else SIZES:
            yield model | {"section": "images", "size": size} | ({"repeats": 1} if size > 512 else {})
            if size in (24, 512):
                yield model | {"section": "images", "size": size, "mode": "patch", "repeats": 1}
        yield model | {"section": "backends", "size": 24 if quick else 256, "backend": "tiled", "repeats": 1}
        yield model | {"section": "backends", "size": 24 if quick else 256, "dtype": "fp32"}
        for states in () if quick else STATES:
            yield model | {"section": "states", "size": 256, "states": states}
    many, side = (2, 16) if quick else PATCHES
    for channels in (64,) if quick else (64, 128):
        row = common | {"preset": "small", "section": "training", "size": side, "batch": many, "channels": channels}
        for count in dict.fromkeys((1, threads)):
            for kind in dict.fromkeys((dtype, "fp32")):
                yield row | {"threads": count, "dtype": kind}


def config_of(cell: Cell) -> NLRNConfig:
    """The preset with a sigma plane, and with the cell's number of states and of channels."""
    config = dataclasses.replace(PRESETS[cell["preset"]], sigma_input=True)
    if cell.get("channels"):
        config = dataclasses.replace(config, channels=cell["channels"], embed_channels=cell["channels"] // 2)
    return config if cell["states"] is None else dataclasses.replace(config, states=cell["states"])


def flop(config: NLRNConfig, height: int, width: int, *, training: bool = False) -> float:
    """Useful operations of one image: 2 a multiplication in a convolution, 2 (Cm + C) a pair inside the image.
    training: with the backward pass, twice the convolutions and what the operator's own counts a pair."""
    c, cm = config.channels, config.embed_channels
    back = PER_PAIR["backward carried" if config.propagation and config.states > 1 else "backward"](cm, c)
    ends = 2 * 9 * c * (config.head_channels + config.in_channels)
    state = 2 * (2 * 9 * c * c + c * (2 * cm + c))
    a_pair = PER_PAIR["forward"](cm, c) + (back if training else 0)
    convolutions = height * width * (ends + config.states * state) * (3 if training else 1)
    return float(convolutions + config.states * a_pair * clipped_pairs(height, width, config.window))


def measured(cell: Cell) -> Cell:
    """{"seconds", "fraction", ..., "peak_mib", "predicted_mib"}, or {"reason"}."""
    return _training_step(cell) if cell["section"] == "training" else _image(cell)


def _image(cell: Cell) -> Cell:
    device, size, config = torch.device(cell["device"]), cell["size"], config_of(cell)
    model = NLRN(config, backend=cell["backend"])
    restorer = Restorer(
        model, device=cell["device"], settings=Settings(mode=cell["mode"], precision=cell["dtype"], tile=0)
    )
    limit = Limit(DTYPES[cell["dtype"]], device)
    result: Cell = {}
    if cell["mode"] == "window":
        predicted = restorer.memory_per_pixel(size, size) * size * size
        if predicted > available_bytes(device):
            return {"reason": f"needs {predicted / 2**30:.0f} GiB"}
        result["predicted_mib"] = predicted / 2**20
        useful = flop(config, size, size)
    else:
        rows, columns = patch_size(size, size)
        window = config.window if config.window is not None and config.window < PATCH else None
        count = len(patches(size, size))
        useful = count * flop(dataclasses.replace(config, window=window), rows, columns)
        result["patches"] = count
    chance = np.random.RandomState(0)
    restorer.denoise(chance.rand(64, 64).astype(np.float32), 25)  # what is allocated once
    image = chance.rand(size, size).astype(np.float32)
    idle = reset_peak(device)
    result |= limit.compare(
        lambda: restorer.denoise(image, 25), useful, cell["repeats"], warm=cell["mode"] == "window" and size < 512
    )
    return result | {"peak_mib": (peak_bytes(device) - idle) / 2**20}


def _training_step(cell: Cell) -> Cell:
    """Forward, backward and update, batch norms frozen, in bf16 under autocast; "attention": its share of the time."""
    device, config = torch.device(cell["device"]), config_of(cell)
    recipe = TrainConfig("benchmark", model=config)
    model = to_device(NLRN(config), device).train()
    freeze_norms(model)
    optimizer = make_optimizer(recipe, model)
    clean = torch.rand(cell["batch"], 1, cell["size"], cell["size"], device=device)
    noisy = clean + 0.1 * torch.randn_like(clean)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cell["dtype"] == "bf16"):
            restored = model(noisy, 0.1)
        loss_of(restored.float(), clean, recipe.loss, recipe.loss_region).backward()  # type: ignore[no-untyped-call]
        clip_gradients(list(model.parameters()), recipe.optim)
        optimizer.step()

    limit = Limit(DTYPES[cell["dtype"]], device)
    step()
    optimizer.zero_grad(set_to_none=True)
    idle = reset_peak(device)
    useful = cell["batch"] * flop(config, cell["size"], cell["size"], training=True)
    result = limit.compare(step, useful, STEPS)
    result["peak_mib"] = (peak_bytes(device) - idle) / 2**20
    return result | {"attention": attention_share(step, device)}


def attention_share(step: Callable[[], Any], device: torch.device) -> float:
    """Of the time that all operators take in STEPS training steps, the attention's share, forward and backward."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for _ in range(STEPS):
            step()
        if cuda:
            torch.cuda.synchronize(device)
    events = seen.key_averages()
    if cuda:
        kernels = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
        whole = sum(e.self_device_time_total for e in kernels)
        return float(sum(e.device_time_total for e in events if _is_attention(e.key)) / whole)
    whole = sum(e.self_cpu_time_total for e in events)
    return float(sum(e.cpu_time_total for e in events if _is_attention(e.key)) / whole)


def _is_attention(name: str) -> bool:
    return name in ("nlrn::attention", "nlrn::attention_backward")


if __name__ == "__main__":
    from benchmarks.command import main

    main("model")
