"""Scores of a model over the field's data sets under its named protocol, and what its attention contributes."""

from __future__ import annotations

import datetime as dt
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlrn import __version__
from nlrn.attention import AttentionMeter
from nlrn.datasets import SCORING_SETS, NamedPicture, read_folder
from nlrn.degradations import add_gaussian_noise
from nlrn.errors import ConfigError, InputError
from nlrn.metrics import SSIM_RADIUS, psnr, quantize8, ssim
from nlrn.model import CARRIED, NLRN
from nlrn.restore import Restorer, within_memory

PROTOCOL = (
    "picture in [0,1]; normal noise of numpy RandomState(0) restarted for every picture, neither clipped nor"
    " rounded; output clipped and rounded to 8 bit; PSNR over the whole picture, mean of the dB values; SSIM of"
    " Wang et al. (11 x 11 Gaussian, 1.5, valid area); colour goes channel by channel through a grey model"
)
VARIANTS: dict[str, dict[str, Any]] = {
    "as is": {},
    "propagation off": {"propagation": False},
    "window 5": {"window": 5},
    "self only": {"window": 1},
}
LEAST_SIDE = 2 * SSIM_RADIUS + 1
Say = Callable[[str], None]


def find_sets(data: str | Path, names: Sequence[str] = (), *, channels: int = 1) -> dict[str, list[NamedPicture]]:
    """The pictures to score on: the named scoring sets below `data`, or `data` itself as one set.

    With no names: set12 and bsd68 for a grey model, cbsd68 for a colour one, those that are there. A grey model
    takes pictures as they are, colour channel by channel; for a colour model grey ones are made colour. Raises
    InputError when there is nothing to score on, or a picture is too small for SSIM.
    """
    root = Path(data)
    if not root.is_dir():
        raise InputError(f"no data folder at {root}")
    usual = ("set12", "bsd68") if channels == 1 else ("cbsd68",)
    wanted = list(names) or [name for name in usual if (root / SCORING_SETS[name]).is_dir()]
    unknown = [name for name in wanted if name not in SCORING_SETS]
    if unknown:
        raise InputError(f"no scoring set {unknown[0]!r}; there are {', '.join(sorted(SCORING_SETS))}")
    places = {name: root / SCORING_SETS[name] for name in wanted} or {root.resolve().name: root}
    sets = {name: read_folder(place, channels=3 if channels == 3 else None) for name, place in places.items()}
    for name, pictures in sets.items():
        stems = [stem for stem, _ in pictures]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise InputError(f"{name} holds two pictures called {twice}: scores go by that name, rename one")
        small = [stem for stem, image in pictures if min(image.shape[:2]) < LEAST_SIDE]
        if small:
            raise InputError(
                f"{small[0]} of {name} is too small to score: SSIM wants {LEAST_SIDE} x {LEAST_SIDE} pixels"
            )
    return sets


def evaluate_denoising(
    restorer: Restorer,
    sets: dict[str, list[NamedPicture]],
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """{set: {sigma: {"psnr", "ssim", "seconds", "pictures": {name: [psnr, ssim]}}}}, PSNR in dB (see PROTOCOL)."""
    scores: dict[str, Any] = {}
    for name, pictures in sets.items():
        scores[name] = {}
        for sigma in sigmas:
            started = time.perf_counter()
            each = {stem: _score(restorer, image, sigma, seed) for stem, image in pictures}
            mean = np.mean(list(each.values()), axis=0)
            scores[name][f"{sigma:g}"] = {
                "psnr": float(mean[0]),
                "ssim": float(mean[1]),
                "seconds": time.perf_counter() - started,
                "pictures": each,
            }
            say(f"{name} sigma {sigma:g}: {mean[0]:.3f} dB, SSIM {mean[1]:.4f} over {len(pictures)} pictures")
    return scores


def _score(restorer: Restorer, image: np.ndarray, sigma: float, seed: int) -> list[float]:
    clean = image / 255.0
    output = quantize8(restorer.denoise(add_gaussian_noise(clean, sigma, seed), sigma))
    return [psnr(clean, output), ssim(clean, output)]


def attention_study(
    restorer: Restorer, pictures: Sequence[NamedPicture], sigmas: Iterable[float], *, say: Say = lambda line: None
) -> dict[str, Any]:
    """What the attention of a trained model is worth, for every sigma: mean PSNR (dB) of the VARIANTS, and over
    all pixels the median effective neighbours and the largest |S| of every state.

    "self only" is a 1 x 1 window: every pixel averages itself alone. Nothing is trained again, so a loss says
    how much this model leans on the part taken away, not how well a network without it could do.
    """
    if restorer.model.config.window is None:
        raise ConfigError("the attention study narrows a window, and this model has none: it sees the whole picture")
    if not restorer.model.block.non_local.carries:
        raise ConfigError(f"the attention study is about {CARRIED}, not {restorer.model.config.distance}")
    study: dict[str, Any] = {}
    for sigma in sigmas:
        row: dict[str, Any] = {"psnr": {}}
        for variant, change in VARIANTS.items():
            changed = Restorer(
                restorer.model.reconfigured(**change), device=str(restorer.device), settings=restorer.settings
            )
            row["psnr"][variant] = float(np.mean([_score(changed, image, sigma, seed=0)[0] for _, image in pictures]))
        row |= _spread(restorer.model, pictures, sigma, restorer.device)
        study[f"{sigma:g}"] = row
        say(f"sigma {sigma:g}: " + ", ".join(f"{k} {v:.2f}" for k, v in row["psnr"].items()))
    return study


@torch.inference_mode()
def _spread(
    model: NLRN, pictures: Sequence[NamedPicture], sigma: float, device: torch.device
) -> dict[str, list[float]]:
    """{"neighbours": a median per state, "largest": |S|max per state} over the pixels of all pictures, float32."""
    meters = []
    for _, image in pictures:
        noisy = np.atleast_3d(add_gaussian_noise(image / 255.0, sigma)).transpose(2, 0, 1)[None]
        x = torch.from_numpy(np.ascontiguousarray(noisy)).to(device, torch.float32)
        meter = AttentionMeter(model, x)
        with within_memory(*noisy.shape[2:]):
            model(x, sigma / 255 if model.config.sigma_input else None, observer=meter)
        meters.append(meter)
    states = range(model.config.states)
    return {
        "neighbours": [float(torch.cat([m.neighbours[t].flatten() for m in meters]).median()) for t in states],
        "largest": [max(m.largest[t] for m in meters) for t in states],
    }


def provenance(restorer: Restorer) -> dict[str, Any]:
    """What a result file says of how it came about: date, commit, versions, machine, settings."""
    settings = restorer.settings
    return machine(restorer.device) | {
        "mode": settings.mode,
        "precision": "bf16" if restorer.bf16 else "fp32",
        "tile": settings.tile,
        "tta": settings.tta,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Date, commit, versions and machine."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _commit(),
        "nlrn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the source tree this package runs from, "+" when it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
