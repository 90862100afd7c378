"""Fits the network of nlrn.functional.correlated, which finds the level of correlated noise.

`fit` writes src/nlrn/functional/correlated.json.

`measure`: images are drawn from the training photographs (BSDS500's training part; SunHays80 without what is held out,
which the numbers of November 2026 still saw), in several sizes and crops, and get simulated camera noise
(nlrn.functional.camera), white noise, blurred noise, JPEG, or nothing. Of each
the measurements are kept, the level of the noise, and what the shipped Gaussian models gain at several sigmas.
`fit`: the network learns the level, whether the noise is white, and the sigma that gains most: its loss is what is
lost by the sigma that it names. `level`: the network gets hidden units of their own for the level, fitted anew, and all
else stays; `measure --every 0` makes samples for it in a tenth of the time. No scoring set is read by any.
The shipped numbers were fitted to blocks with means of 3 to 252; those of 15 to 200 are preferred since then.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nlrn
from nlrn.functional.camera import DENOISING, SUBSAMPLING, draw_camera, jpeg, with_even_noise
from nlrn.functional.correlated import NUMBERS, OUTLIER, measurements
from nlrn.functional.noise import estimate_sigma
from nlrn.io.datasets import HELD_OUT, data_root

SIGMAS = (2.0, 4.0, 7.0, 11.0, 16.0, 23.0, 33.0, 48.0)  # at which a model's gain is measured
KINDS = {"camera": 0.48, "white": 0.18, "clean": 0.13, "jpeg": 0.11, "white jpeg": 0.05, "blurred": 0.05}
SIDES = (192, 256, 320, 448)
SCORED = 128  # pixels of a side, in the middle, on which gains are measured
LUMA = np.array([0.299, 0.587, 0.114])
LEAST_ERROR = 0.25  # mean square, 0-255 units: less than this is not seen
CLEAN_ERROR = 5.0  # and less than this (41 dB) is no loss where there is no noise
ROUNDS, JITTER, PULL = 1200, 0.15, 0.1


def photograph(paths: list[Path], random: np.random.Generator) -> np.ndarray:
    """Part of a photograph of the training data, float64 HW3 in [0, 1]: at 0.6 to 4 times its size."""
    image = Image.open(paths[random.integers(len(paths))]).convert("RGB")
    if random.random() < 0.65:
        scale = math.exp(random.uniform(math.log(0.6), math.log(4)))
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BICUBIC if random.random() < 0.5 else Image.Resampling.LANCZOS)
    side = SIDES[random.integers(len(SIDES))]
    top, left = (int(random.integers(max(1, n - side + 1))) for n in (image.height, image.width))
    return np.asarray(image.crop((left, top, min(left + side, image.width), min(top + side, image.height)))) / 255


def rounded(image: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5) / 255


def sample(paths: list[Path], random: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """(kind, degraded image, clean image, noise as the degraded image's file holds it).

    What a JPEG alone loses is no noise, and of a camera's noise it is what flat areas have (`Camera.even`).
    """
    clean = photograph(paths, random)
    kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
    sigma = math.exp(random.uniform(0, math.log(78))) / 255
    form = int(random.integers(40, 100)), SUBSAMPLING[random.integers(3)]
    white = clean + sigma * random.standard_normal(clean.shape)
    if kind == "camera":
        camera = draw_camera(random, DENOISING)
        degraded, noise = with_even_noise(clean, camera, random)
        return kind, degraded, clean, noise
    if kind == "white":  # as the field scores it, or as a file holds it
        white = white if random.random() < 0.5 else rounded(white)
        return kind, white, clean, white - clean
    if kind == "jpeg":
        compressed = jpeg(clean, *form)
        return kind, compressed, clean, np.zeros_like(clean)
    if kind == "white jpeg":
        degraded = jpeg(np.clip(white, 0, 1), *form)
        return kind, degraded, clean, degraded - jpeg(clean, *form)
    if kind == "blurred":
        noise = random.standard_normal(clean.shape)
        mix = random.uniform(0.2, 1)
        noise = noise + mix * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) + mix**2 * np.roll(noise, 1, (0, 1))
        degraded = rounded(clean + min(sigma, 25 / 255) * noise / noise.std())
        return kind, degraded, clean, degraded - clean
    return kind, clean, clean, np.zeros_like(clean)


def measure(options: argparse.Namespace) -> None:
    """As many samples as there is time for, into a file of arrays."""
    root = data_root(options.data)
    paths = sorted((root / "bsds500" / "train").glob("*.jpg"))
    paths += [p for p in sorted((root / "sunhays80").glob("*.jpg")) if p.stem not in HELD_OUT["sunhays80"]]
    models = {channels: nlrn.load(f"denoise-{name}-small") for channels, name in ((1, "gray"), (3, "color"))}
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for i in range(options.count):
        random = np.random.default_rng([options.seed, i])
        kind, degraded, clean, noise = sample(paths, random)
        if random.random() < 0.3:
            degraded, clean, noise = degraded @ LUMA, clean @ LUMA, noise @ LUMA
            degraded = degraded if kind == "white" else rounded(degraded)
        degraded = degraded.astype(np.float32)
        found = measurements(degraded, estimate_sigma(degraded))
        if found is None:
            continue
        level = 255 * math.sqrt(np.mean(noise**2))
        gains = np.full(len(SIGMAS), np.nan)
        if kind != "white" and options.every and i % options.every == 0:
            model = models[1 if degraded.ndim == 2 else 3]
            part = tuple(slice(max(0, (n - SCORED) // 2), max(0, (n - SCORED) // 2) + SCORED) for n in clean.shape[:2])
            errors = [np.mean((degraded[part] - clean[part]) ** 2)]
            errors += [np.mean((rounded(model.denoise(degraded[part], s)) - clean[part]) ** 2) for s in SIGMAS]
            least = np.maximum(np.array(errors) * 255**2, LEAST_ERROR)
            gains = 10 * np.log10(least[0] / least[1:])
        rows.append({"kind": kind, "level": level, "gains": gains, "values": found[0]})
        if len(rows) % 25 == 0 or i + 1 == options.count:
            arrays: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            np.savez(options.out, **arrays)
            print(f"{len(rows)} in {time.monotonic() - started:.0f} s", flush=True)
        if time.monotonic() - started > options.minutes * 60:
            break


def lost(log_sigma: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """dB below the best of the gains [N, S + 1] by the sigmas named, between those measured by straight lines."""
    grid = torch.log(torch.tensor([0.0, *SIGMAS]) + 0.2)
    place = log_sigma.clamp(float(grid[0]), float(grid[-1]) - 1e-4)
    above = torch.searchsorted(grid, place.detach(), right=True).clamp(1, len(SIGMAS))
    share = (place - grid[above - 1]) / (grid[above] - grid[above - 1])
    at = [gains.gather(1, (above - k)[:, None])[:, 0] for k in (1, 0)]
    return gains.amax(1) - ((1 - share) * at[0] + share * at[1])


def fit(options: argparse.Namespace) -> None:
    parts = [np.load(path) for path in options.measured]
    values, level, gains, kind = (np.concatenate([p[n] for p in parts]) for n in ("values", "level", "gains", "kind"))
    seen = 10 * np.log10(CLEAN_ERROR / LEAST_ERROR)  # a clean image may change by this much
    gains = np.where((kind == "clean")[:, None], np.minimum(gains + seen, 0), gains)
    white, known = kind == "white", np.isfinite(gains[:, 0])
    mean, scale = np.nanmean(values, 0), np.maximum(np.nanstd(values, 0), 1e-3)
    mean, scale = mean.round(4), scale.round(4)
    torch.manual_seed(0)
    x = torch.tensor(np.nan_to_num(np.clip((values - mean) / scale, -OUTLIER, OUTLIER)), dtype=torch.float32)
    held = np.arange(len(x)) % 5 == 0 if options.check else np.zeros(len(x), bool)
    log_level = torch.tensor(np.log(level + 0.2), dtype=torch.float32)
    curve = torch.tensor(np.pad(np.nan_to_num(gains), ((0, 0), (1, 0))), dtype=torch.float32)
    is_white = torch.tensor(white, dtype=torch.float32)
    weight = torch.tensor(np.where(np.isin(kind, ("clean", "jpeg")), options.quiet, 1.0), dtype=torch.float32)
    noisy = torch.tensor(level > 0, dtype=torch.float32)
    layers = torch.nn.Linear(x.shape[1], options.hidden), torch.nn.Tanh(), torch.nn.Linear(options.hidden, 3)
    network = torch.nn.Sequential(*layers)
    train, known_t = torch.tensor(~held), torch.tensor(known, dtype=torch.float32)

    # The factor from level to sigma, for samples whose gains are not known
    best = np.array([0.0, *SIGMAS])[np.pad(np.nan_to_num(gains), ((0, 0), (1, 0))).argmax(1)]
    usual = float(np.mean(np.log((best + 0.5) / (level + 0.5))[known & (level > 0)]))
    print(f"usual factor {math.exp(usual):.2f}")

    def losses(out: torch.Tensor) -> torch.Tensor:
        def huber(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.smooth_l1_loss(a, b, reduction="none")

        of_level = huber(out[:, 0], log_level) * (0.3 + 0.7 * noisy)
        of_sigma = known_t * (lost(out[:, 1], curve).clamp(max=6) + PULL * noisy * huber(out[:, 1], log_level + usual))
        of_rest = (1 - known_t) * (1 - is_white) * huber(out[:, 1], log_level + usual * noisy) * (0.3 + 0.7 * noisy)
        of_white = is_white * huber(out[:, 1], log_level)
        of_kind = torch.nn.functional.binary_cross_entropy_with_logits(out[:, 2], is_white, reduction="none")
        return (weight * (of_level + of_sigma + 0.5 * of_rest) + of_white + 0.5 * of_kind)[train].mean()

    minimised(network, lambda: losses(network(x + JITTER * torch.randn_like(x))), options.decay)
    with torch.no_grad():
        out = network(x)
        loss = lost(out[:, 1], curve).numpy()
    report(kind, level, gains, np.exp(out.numpy()[:, :2]) - 0.2, out.numpy()[:, 2] > 0, loss, held)
    named = {
        "mean": mean,
        "scale": scale,
        "first": layers[0].weight.detach().numpy().T,
        "first_bias": layers[0].bias.detach().numpy(),
        "second": layers[2].weight.detach().numpy().T,
        "second_bias": layers[2].bias.detach().numpy(),
    }
    content = {
        "samples": len(x),
        "network": {name: value.astype(float).round(4).tolist() for name, value in named.items()},
    }
    NUMBERS.write_text(json.dumps(content) + "\n")


def fit_level(options: argparse.Namespace) -> None:
    parts = [np.load(path) for path in options.measured]
    values, level, kind = (np.concatenate([p[n] for p in parts]) for n in ("values", "level", "kind"))
    content = json.loads(NUMBERS.read_text())
    numbers = {name: np.array(value) for name, value in content["network"].items()}
    standard = np.nan_to_num(np.clip((values - numbers["mean"]) / numbers["scale"], -OUTLIER, OUTLIER))
    x, wanted = (torch.tensor(v, dtype=torch.float32) for v in (standard, np.log(level + 0.2)))
    held = np.arange(len(x)) % 5 == 0 if options.check else np.zeros(len(x), bool)
    quiet = np.isin(kind, ("clean", "jpeg"))
    weight, train = torch.tensor(np.where(quiet, 0.3 * options.quiet, 1.0), dtype=torch.float32), torch.tensor(~held)
    torch.manual_seed(0)
    layers = torch.nn.Linear(x.shape[1], options.hidden), torch.nn.Tanh(), torch.nn.Linear(options.hidden, 1)
    network = torch.nn.Sequential(*layers)

    def loss() -> torch.Tensor:
        out = network(x + JITTER * torch.randn_like(x))[:, 0]
        return (weight * torch.nn.functional.smooth_l1_loss(out, wanted, reduction="none", beta=0.5))[train].mean()

    minimised(network, loss, options.decay)
    with torch.no_grad():
        named = np.exp(network(x)[:, 0].numpy()) - 0.2
    for what, chosen in (("fitted", ~held), ("held back", held)):
        for name in KINDS:
            if (rows := chosen & (kind == name)).any():
                ratio = np.log((named[rows] + 0.5) / (level[rows] + 0.5))
                spread, most = np.exp(ratio.std()), np.quantile(named[rows], 0.9)
                print(f"{what} {name}: level x {np.exp(ratio.mean()):.2f} spread {spread:.2f}, 90 % {most:.1f}")
    rest = numbers["second"][:, 1:].any(1)  # without units of an earlier fit of the level
    first, second = layers[0], layers[2]
    own = np.pad(second.weight.detach().numpy().T, ((0, 0), (0, 2)))
    kept = numbers["second"][rest] * np.array([0, 1, 1])
    numbers["first"] = np.concatenate([numbers["first"][:, rest], first.weight.detach().numpy().T], axis=1)
    numbers["first_bias"] = np.concatenate([numbers["first_bias"][rest], first.bias.detach().numpy()])
    numbers["second"] = np.concatenate([kept, own])
    numbers["second_bias"][0] = float(second.bias.detach()[0])
    content |= {"level_samples": len(x), "network": {k: v.astype(float).round(4).tolist() for k, v in numbers.items()}}
    NUMBERS.write_text(json.dumps(content) + "\n")


def minimised(network: torch.nn.Module, loss: Callable[[], torch.Tensor], decay: float) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS)
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        torch.autograd.backward(loss())
        optimizer.step()
        schedule.step()
    network.eval()


def report(
    kind: np.ndarray, level: np.ndarray, gains: np.ndarray, named: np.ndarray, white: np.ndarray, loss: np.ndarray,
    held: np.ndarray,
) -> None:  # fmt: skip
    """Of each kind, of the samples that were fitted and of those held back."""
    for what, chosen in (("fitted", ~held), ("held back", held)):
        for name in KINDS:
            rows = chosen & (kind == name)
            if not rows.any():
                continue
            ratio = np.log((named[rows, 0] + 0.5) / (level[rows] + 0.5))
            words = f"{what} {name}: {rows.sum()}, white {white[rows].mean():.3f}, level x {np.exp(ratio.mean()):.2f}"
            words += f" spread {np.exp(ratio.std()):.2f}, sigma {np.median(named[rows, 1]):.1f}"
            if name == "white":
                parts = [(lo, hi, rows & (level >= lo) & (level < hi)) for lo, hi in ((0, 3), (3, 10), (10, 80))]
                words += "".join(f", {lo}-{hi}: {white[part].mean():.3f}" for lo, hi, part in parts if part.any())
            rows &= np.isfinite(gains[:, 0])
            if rows.any():
                best = np.pad(gains[rows], ((0, 0), (1, 0)))
                at_level = lost(torch.tensor(np.log(level[rows] + 0.2)), torch.tensor(best))
                words += f"; of {rows.sum()}: lost {loss[rows].mean():.2f} (90 %: {np.quantile(loss[rows], 0.9):.2f})"
                words += f" of {best.max(1).mean():.2f} dB; at the true level {at_level.mean():.2f}"
            print(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    measuring.add_argument("--out", type=Path, required=True, help="an .npz file")
    measuring.add_argument("--seed", type=int, default=0)
    measuring.add_argument("--count", type=int, default=4000)
    measuring.add_argument(
        "--every", type=int, default=1, help="of so many images one is denoised to see the gains; 0: none"
    )
    measuring.add_argument("--minutes", type=float, default=60)
    measuring.set_defaults(run=measure)
    for name, run in (("fit", fit), ("level", fit_level)):
        fitting = commands.add_parser(name)
        fitting.add_argument("measured", type=Path, nargs="+", help="files of `measure`")
        fitting.add_argument("--check", action="store_true", help="hold a fifth back")
        fitting.add_argument("--hidden", type=int, default=16, help="units of the hidden layer")
        fitting.add_argument("--quiet", type=float, default=1.0, help="weight of images without noise")
        fitting.add_argument("--decay", type=float, default=0.3, help="of weights")
        fitting.set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
