"""Seconds a megapixel of the shipped grey denoisers and of networks that people would choose instead.

The peers' architectures are written here with random weights: their speed is measured, in turn with ours, on the same
threads; their PSNR is the published one (results/published.json), ours that of results/<name>.json. Batch norms are
folded into the convolutions, as a deployment would have them. BM3D is measured where the package `bm3d` is installed.

Sources of the shapes: DnCNN-S (Zhang et al., TIP 2017: 17 layers of 64), FFDNet for grey images (Zhang et al., TIP
2018: 15 layers of 64 at half size, with a noise map), DRUNet (Zhang et al., TPAMI 2021: 64 to 512 channels, four
residual blocks a level, with a noise map).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlrn.cli import Parser, execute
from nlrn.cli.shared import check_result, print_table, reporter
from nlrn.inference.restorer import Restorer, Settings
from nlrn.models.checkpoint import list_models

SIGMA = 25.0
RESULTS = Path(__file__).resolve().parents[1] / "results"
Run = Callable[[np.ndarray], np.ndarray]


def _plain(channels: int, layers: int, outside: tuple[int, int]) -> list[nn.Module]:
    """Convolutions 3 x 3 with ReLU between them: outside[0] channels in, outside[1] out."""
    widths = [outside[0], *[channels] * (layers - 1), outside[1]]
    steps: list[nn.Module] = []
    for given, made in pairwise(widths):
        steps += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(inplace=True)]
    return steps[:-1]


class DnCNN(nn.Module):
    """x [B, 1, H, W] -> the same: 17 convolutions of 64 channels find the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Sequential(*_plain(64, 17, (1, 1)))

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x - self.noise(x)


class FFDNet(nn.Module):
    """x [B, 1, H, W], even sides: 15 convolutions of 64 channels on its four quarters and a map of the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_plain(64, 15, (5, 4)))

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        quarters = nn.functional.pixel_unshuffle(x, 2)
        level = quarters.new_full((len(x), 1, *quarters.shape[2:]), sigma / 255)
        return nn.functional.pixel_shuffle(self.body(torch.cat([quarters, level], 1)), 2)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DRUNet(nn.Module):
    """x [B, 1, H, W], sides divisible by 8: a U-Net of residual blocks on the image and a map of the noise level."""

    WIDTHS = (64, 128, 256, 512)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(2, self.WIDTHS[0], 3, padding=1, bias=False)
        pairs = list(pairwise(self.WIDTHS))
        self.down = nn.ModuleList(
            nn.Sequential(*(_Residual(a) for _ in range(4)), nn.Conv2d(a, b, 2, 2, bias=False)) for a, b in pairs
        )
        self.body = nn.Sequential(*(_Residual(self.WIDTHS[-1]) for _ in range(4)))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(b, a, 2, 2, bias=False), *(_Residual(a) for _ in range(4)))
            for a, b in reversed(pairs)
        )
        self.tail = nn.Conv2d(self.WIDTHS[0], 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        x = self.head(torch.cat([x, torch.full_like(x, sigma / 255)], 1))
        kept = [x]
        for step in self.down:
            x = step(x)
            kept.append(x)
        x = self.body(x)
        for step in self.up:
            x = step(x + kept.pop())
        return self.tail(x + kept.pop())


PEERS: dict[str, type[nn.Module]] = {"DnCNN-S": DnCNN, "FFDNet": FFDNet, "DRUNet": DRUNet}


def of_peer(kind: type[nn.Module], precision: str) -> Run:
    """image HW in [0, 1] -> what the network with random weights makes of it."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = kind().eval().to(dtype)
    for value in model.parameters():
        if value.dim() == 4:
            value.data = value.data.contiguous(memory_format=torch.channels_last)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(image)[None, None].to(dtype, memory_format=torch.channels_last)
            result: np.ndarray = model(x, SIGMA)[0, 0].float().numpy()
        return result

    return run


def of_ours(name: str, precision: str) -> Run:
    """The same of a shipped model, at a sigma that is given."""
    restorer = Restorer(name, device="cpu", settings=Settings(precision=precision, tile=0))
    return lambda image: restorer.denoise(image, SIGMA, value_range="type")


def of_bm3d() -> Run:
    """The same of BM3D, on one thread (the package has no more)."""
    bm3d = importlib.import_module("bm3d")
    return lambda image: np.asarray(bm3d.bm3d(image, SIGMA / 255))


def contestants() -> dict[tuple[str, str], Run]:
    """By name and precision."""
    found: dict[tuple[str, str], Run] = {}
    for precision in ("fp32", "bf16"):
        ours = [m.name for m in list_models() if m.task == "denoise" and m.channels == 1]
        found |= {(name, precision): of_ours(name, precision) for name in ours}
        found |= {(name, precision): of_peer(kind, precision) for name, kind in PEERS.items()}
    if importlib.util.find_spec("bm3d") is not None:
        found["BM3D", "fp32"] = of_bm3d()
    return found


def measure(side: int, rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each contestant: medians over rounds in which all of them run in turn.

    seconds: for a megapixel (2^20 pixels). times: as many times as long as the first of ours at the same precision, in
    the same round.
    """
    image = np.random.default_rng(0).random((side, side), dtype=np.float32)
    runs = contestants()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(rounds + 1):
        for key, run in runs.items():
            if key[0] == "BM3D" and turn > 1:  # far slower than all others
                taken[key].append(taken[key][-1])
                continue
            began = time.perf_counter()
            run(image)
            taken[key].append((time.perf_counter() - began) * 2**20 / side**2)
            say(f"round {turn}: {key[0]}, {key[1]}: {taken[key][-1]:.2f} s a megapixel")
    ours = next(iter(runs))[0]
    rows = []
    for (name, precision), seconds in taken.items():
        ratios = np.array(seconds[1:]) / np.array(taken[ours, precision][1:])  # the first round warms up
        row = {"name": name, "precision": precision, "seconds": float(np.median(seconds[1:]))}
        rows.append(row | {"times": float(np.median(ratios)), "parameters": parameters(name), **quality(name)})
    return rows


def parameters(name: str) -> int:
    """Of a network; 0 for BM3D."""
    if name in PEERS:
        return sum(p.numel() for p in PEERS[name]().parameters())
    return next((m.parameters for m in list_models() if m.name == name), 0)


def quality(name: str) -> dict[str, float]:
    """PSNR at sigma 25: ours as scored (window mode, float32), others' as published."""
    file = RESULTS / f"{name}.json"
    if file.exists():
        scores = json.loads(file.read_text())["scores"]
        return {found: scores[found]["25"]["psnr"] for found in ("set12", "bsd68")}
    methods = json.loads((RESULTS / "published.json").read_text())["denoise_grey"]["methods"]
    return {found: methods[name][found][1] for found in ("set12", "bsd68")}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR against seconds a megapixel, float32; the line joins what nothing else beats in both."""
    from nlrn.evaluation.plotting import new_figure, write_figure

    figure = new_figure(6.4, 4.0)
    axis = figure.add_subplot()
    chosen = sorted((r for r in rows if r["precision"] == "fp32"), key=lambda r: r["seconds"])
    best = [r for i, r in enumerate(chosen) if all(r["set12"] > other["set12"] for other in chosen[:i])]
    axis.plot([r["seconds"] for r in best], [r["set12"] for r in best], ":", color="0.6")
    for row in chosen:
        ours = row["name"] not in PEERS and row["name"] != "BM3D"
        axis.plot(row["seconds"], row["set12"], "D" if ours else "o", color="C3" if ours else "C0")
        axis.annotate(row["name"], (row["seconds"], row["set12"]), xytext=(5, 5), textcoords="offset points")
    axis.set(
        xscale="log", xlabel="seconds a megapixel, float32, this machine's CPU", ylabel="PSNR on Set12, sigma 25 (dB)"
    )
    axis.margins(x=0.25, y=0.15)
    axis.grid(alpha=0.3, which="both")
    write_figure(figure, path)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines."""
    header = [
        "model",
        "parameters",
        "Set12 / BSD68, sigma 25",
        "s a megapixel, float32",
        "bf16",
        "times ours, float32 / bf16",
    ]
    lines = []
    for name in dict.fromkeys(r["name"] for r in rows):
        mine = {r["precision"]: r for r in rows if r["name"] == name}
        one = mine["fp32"]
        size = f"{one['parameters'] / 1e6:.2f} M" if one["parameters"] else ""
        seconds = [f"{mine[p]['seconds']:.2f}" if p in mine else "" for p in ("fp32", "bf16")]
        times = " / ".join(f"{mine[p]['times']:.2f}" for p in ("fp32", "bf16") if p in mine)
        lines.append([name, size, f"{one['set12']:.2f} / {one['bsd68']:.2f}", *seconds, times])
    return header, lines


def parser() -> argparse.ArgumentParser:
    """The arguments of python -m benchmarks.peers."""
    found = Parser(prog="python -m benchmarks.peers", description="Speed and PSNR beside other denoisers, on the CPU.")
    found.add_argument("--side", type=int, default=512, help="of the image, a multiple of 8 (default: 512)")
    found.add_argument("--rounds", type=int, default=5, help="measured, after one that warms up (default: 5)")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    found.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (nlrn[plot])")
    found.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    found.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    found.set_defaults(run=_command)
    return found


def _command(options: argparse.Namespace) -> int:
    from nlrn.errors import ConfigError
    from nlrn.evaluation.plotting import check_plot
    from nlrn.evaluation.protocols import machine
    from nlrn.system.atomic import publish_json

    if options.side < 8 or options.side % 8 or options.rounds < 1:
        raise ConfigError(
            f"--side must be a multiple of 8 and --rounds at least 1, not {options.side}, {options.rounds}"
        )
    check_result(options.json, ".json", overwrite=options.overwrite)
    check_result(options.plot, ".png", overwrite=options.overwrite)
    if options.plot is not None:
        check_plot()
    rows = measure(options.side, options.rounds, reporter(options))
    if options.json is not None:
        run = machine(torch.device("cpu"))
        publish_json(options.json, {"benchmark": "peers", "run": run, "side": options.side, "rows": rows})
    if options.plot is not None:
        plot(rows, options.plot)
    if not options.quiet:
        print_table("Denoisers on this CPU", *table(rows))
    return 0


if __name__ == "__main__":
    from nlrn.system.allocator import keep_freed_memory

    keep_freed_memory()
    sys.exit(execute(parser(), sys.argv[1:]))
