"""Scores of a model over the field's data sets under its named protocol, and what its attention contributes."""

from __future__ import annotations

import datetime as dt
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlrn import __version__
from nlrn.errors import ConfigError, InputError
from nlrn.functional.camera import noisy_at
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic, resize_bicubic8
from nlrn.functional.metrics import SSIM_RADIUS, luma8, psnr, quantize8, ssim, studio_luma
from nlrn.inference.memory import within_memory
from nlrn.inference.restorer import Restorer
from nlrn.inference.super_resolution import seen_size
from nlrn.io.datasets import SCORING_SETS, NamedImage, read_folder
from nlrn.models.distances import CARRIED
from nlrn.models.nlrn import NLRN
from nlrn.models.observers import AttentionMeter

_SCORED = (
    "output clipped and rounded to 8 bit; mean over the images of PSNR in dB, and of SSIM of Wang et al. (11 x 11"
    " Gaussian, 1.5, valid area)"
)
_LUMINANCE = (
    f"of BT.601 in studio range, grey as it is; {_SCORED}, cropped at the top left to a multiple of the scale, a border"
    " as wide as the scale left out"
)
PROTOCOLS = {
    "noise": (
        "image in [0,1]; normal noise of numpy RandomState(0) restarted for every image, neither clipped nor"
        f" rounded; {_SCORED}, over the whole image; colour goes channel by channel through a grey model"
    ),
    "camera": (
        "8-bit image as a camera stored it (nlrn.functional.camera.noisy_at: camera and noise follow from the"
        " image's values; the level is the noise's standard deviation on grey before JPEG); the input and the"
        f" {_SCORED}, over the whole image"
    ),
    "float-lr": f"8-bit luminance made smaller by MATLAB's bicubic and kept in float; luminance {_LUMINANCE}",
    "8bit-lr": f"image made smaller by MATLAB's bicubic in 8 bit, its luminance enlarged; luminance {_LUMINANCE}",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as is": {},
    "propagation off": {"propagation": False},
    "window 5": {"window": 5},
    "self only": {"window": 1},
}
LEAST_SIDE = 2 * SSIM_RADIUS + 1
Report = Callable[[str], None]


def usual_sets(task: str, channels: int) -> tuple[str, ...]:
    """The sets that the field scores a model on.

    set12 and bsd68 for a grey denoiser, cbsd68 for a colour one, set5, set14 and bsd100 for super-resolution.
    """
    return ("set5", "set14", "bsd100") if task == "sr" else ("set12", "bsd68") if channels == 1 else ("cbsd68",)


def find_sets(
    data: str | Path,
    names: Sequence[str] = (),
    *,
    channels: int = 1,
    task: str = "denoise",
    scales: Sequence[float] = (),
) -> dict[str, list[NamedImage]]:
    """The images to score on: the named scoring sets below `data`, or `data` itself as one set.

    With no names: the usual ones, as far as they exist. A grey model takes images unchanged, colour channel by channel
    or as their luminance; for a colour model grey ones become colour. Raises InputError when there is nothing
    to score on, two images of a set share a name, or one is too small for SSIM, at one of the `scales`
    without its border.
    """
    root = Path(data)
    if not root.is_dir():
        raise InputError(f"no data folder at {root}")
    wanted = list(names) or [name for name in usual_sets(task, channels) if (root / SCORING_SETS[name]).is_dir()]
    unknown = [name for name in wanted if name not in SCORING_SETS]
    if unknown:
        raise InputError(f"no scoring set {unknown[0]!r}; there are {', '.join(sorted(SCORING_SETS))}")
    places = {name: root / SCORING_SETS[name] for name in wanted} or {root.resolve().name: root}
    missing = [name for name, place in places.items() if not place.is_dir()]
    if missing:
        raise InputError(f"no folder {places[missing[0]]}: docs/reproduce.md says where {missing[0]} comes from")
    sets = {name: read_folder(place, channels=3 if channels == 3 else None) for name, place in places.items()}
    for name, images in sets.items():
        stems = [stem for stem, _ in images]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise InputError(f"{name} holds two images called {twice}: scores go by that name, rename one")
        for stem, image in images:
            side = min(image.shape[:2])
            borders = [math.ceil(scale) for scale in scales]
            steps = [_ratio(scale).numerator for scale in scales]  # of the crop that is scored
            inside = [side // step * step - 2 * border for step, border in zip(steps, borders, strict=True)]
            if min([side, *inside]) < LEAST_SIDE:
                border = f" inside a border of {max(borders)}" if scales else ""
                raise InputError(
                    f"{stem} of {name} is too small to score: SSIM needs {LEAST_SIDE} x {LEAST_SIDE} pixels{border}"
                )
    return sets


def _ratio(scale: float) -> Fraction:
    """A scale in whole numbers: an image is cropped to a multiple of its numerator, and its denominator is kept."""
    return Fraction(scale).limit_denominator(10)


# -- what is scored ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One degradation under which every image is scored. name: of its column, label: of its printed line.

    score: [PSNR, SSIM] of a restorer on a clean uint8 image; where it estimates the noise also the estimate, and the
    PSNR when it receives the true level. extra: names of the numbers that follow PSNR and SSIM there, whose means are
    recorded too. seen: the planes [B, C, H, W], float64, that the network sees of it, and the
    noise level it receives, on their scale, or None.
    """

    name: str
    label: str
    score: Callable[[Restorer, np.ndarray], list[float]]
    seen: Callable[[np.ndarray], tuple[np.ndarray, float | None]]
    extra: tuple[str, ...] = ()


def denoising(sigmas: Iterable[float], seed: int = 0, *, auto: bool = False) -> list[Condition]:
    """Gaussian noise of each level (PROTOCOLS["noise"]). auto: the model receives the estimated level, not the true."""
    return [_noise(sigma, seed, auto) for sigma in sigmas]


def _noise(sigma: float, seed: int, auto: bool) -> Condition:
    def score(restorer: Restorer, image: np.ndarray) -> list[float]:
        clean = image / 255.0
        noisy = add_gaussian_noise(clean, sigma, seed)
        given = restorer.noise_level(noisy, "auto", value_range="type") if auto else sigma
        output = quantize8(restorer.denoise(noisy, given, value_range="type"))
        scores = [psnr(clean, output), ssim(clean, output)]
        if auto:
            scores += [
                float(np.mean(given)),
                psnr(clean, quantize8(restorer.denoise(noisy, sigma, value_range="type"))),
            ]
        return scores

    def seen(image: np.ndarray) -> tuple[np.ndarray, float]:
        noisy = np.atleast_3d(add_gaussian_noise(image / 255.0, sigma, seed))
        return noisy.transpose(2, 0, 1)[None], sigma / 255

    return Condition(f"{sigma:g}", f"sigma {sigma:g}", score, seen)


def photographs(levels: Iterable[float], given: float | str) -> list[Condition]:
    """Camera noise of each level (PROTOCOLS["camera"]).

    given: the sigma that the model receives for every image, or "auto", as estimated; where the attention is
    studied, "auto" is the true standard deviation of the noise.
    """
    return [_photograph(level, given) for level in levels]


def _photograph(level: float, given: float | str) -> Condition:
    def score(restorer: Restorer, image: np.ndarray) -> list[float]:
        clean = image / 255.0
        noisy = noisy_at(clean, level)
        sigma = restorer.noise_level(noisy, given, value_range="type")
        output = quantize8(restorer.denoise(noisy, sigma, value_range="type"))
        return [psnr(clean, output), ssim(clean, output), psnr(clean, noisy), float(np.mean(sigma))]

    def seen(image: np.ndarray) -> tuple[np.ndarray, float]:
        clean = image / 255.0
        noisy = noisy_at(clean, level)
        sigma = float((noisy - clean).std()) if isinstance(given, str) else given / 255
        return noisy.transpose(2, 0, 1)[None], sigma

    return Condition(f"{level:g}", f"camera noise {level:g}", score, seen, ("psnr_noisy", "given_sigma"))


def super_resolution(scales: Iterable[float], protocol: str = "float-lr") -> list[Condition]:
    """Bicubic reduction by each scale, scored on the luminance (PROTOCOLS[protocol]).

    A scale between two whole numbers is a fraction p / q with q up to 10: images are cropped to a multiple of p, and
    the border is the scale rounded up.
    """
    if protocol not in ("float-lr", "8bit-lr"):
        raise ConfigError(f"the protocols of super-resolution are float-lr and 8bit-lr, not {protocol!r}")
    return [_reduction(scale, protocol) for scale in scales]


def _reduction(scale: float, protocol: str) -> Condition:
    ratio, border = _ratio(scale), math.ceil(scale)

    def pair(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The luminance of the image, and of the small one."""
        steps = [n // ratio.numerator for n in image.shape[:2]]
        height, width = (n * ratio.denominator for n in steps)
        image = image[: steps[0] * ratio.numerator, : steps[1] * ratio.numerator]
        high = luma8(image) / 255.0
        if protocol == "float-lr":
            return high, resize_bicubic(high, height, width)
        low = resize_bicubic8(image, height, width) / 255.0
        return high, low if low.ndim == 2 else studio_luma(low)

    def score(restorer: Restorer, image: np.ndarray) -> list[float]:
        high, low = pair(image)
        output = quantize8(restorer.upscale(low, *high.shape, value_range="type"))
        return [psnr(high, output, border=border), ssim(high, output, border=border)]

    def seen(image: np.ndarray) -> tuple[np.ndarray, None]:
        high, low = pair(image)
        return resize_bicubic(low, *seen_size(low.shape, high.shape))[None, None], None

    return Condition(f"x{scale:g}", f"x{scale:g}", score, seen)


# -- scores --------------------------------------------------------------------------------------------------------


def evaluate(
    restorer: Restorer,
    sets: dict[str, list[NamedImage]],
    conditions: Sequence[Condition],
    *,
    say: Report = lambda line: None,
) -> dict[str, Any]:
    """Score a model: {set: {condition: {"psnr", "ssim", "seconds", "images": {name: [psnr, ssim]}}}}, PSNR in dB."""
    scores: dict[str, Any] = {}
    for name, images in sets.items():
        scores[name] = {}
        for condition in conditions:
            started = time.perf_counter()
            each = {stem: condition.score(restorer, image) for stem, image in images}
            mean = np.mean(list(each.values()), axis=0)
            scores[name][condition.name] = {
                "psnr": float(mean[0]),
                "ssim": float(mean[1]),
                "seconds": time.perf_counter() - started,
                "images": each,
            } | dict(zip(condition.extra, mean[2:].tolist(), strict=False))
            say(f"{name} {condition.label}: {mean[0]:.3f} dB, SSIM {mean[1]:.4f} over {len(images)} images")
    return scores


def attention_study(
    restorer: Restorer,
    images: Sequence[NamedImage],
    conditions: Iterable[Condition],
    *,
    say: Report = lambda line: None,
) -> dict[str, Any]:
    """What the attention of a trained model contributes, for every condition.

    Mean PSNR (dB) of the VARIANTS, and over all pixels the median effective neighbours and the largest |S| of every
    state. "self only" is a 1 x 1 window: every pixel averages only itself. Nothing is trained again, so a loss shows
    how much this model depends on the part taken away, not how well a network trained without it would do. Raises
    ConfigError for a model without a window or of another distance.
    """
    if restorer.model.config.window is None:
        raise ConfigError("the attention study narrows a window, and this model has none: it sees the whole image")
    if not restorer.model.block.non_local.carries:
        raise ConfigError(f"the attention study is about {CARRIED}, not {restorer.model.config.distance}")
    study: dict[str, Any] = {}
    for condition in conditions:
        row: dict[str, Any] = {"psnr": {}}
        for variant, change in VARIANTS.items():
            changed = Restorer(
                restorer.model.reconfigured(**change), device=str(restorer.device), settings=restorer.settings
            )
            row["psnr"][variant] = float(np.mean([condition.score(changed, image)[0] for _, image in images]))
        row |= _spread(restorer.model, images, condition, restorer.device)
        study[condition.name] = row
        say(f"{condition.label}: " + ", ".join(f"{k} {v:.2f}" for k, v in row["psnr"].items()))
    return study


@torch.inference_mode()
def _spread(
    model: NLRN, images: Sequence[NamedImage], condition: Condition, device: torch.device
) -> dict[str, list[float]]:
    """{"neighbours": a median per state, "largest": |S|max per state} over the pixels of all images, float32."""
    meters = []
    for _, image in images:
        planes, sigma = condition.seen(image)
        planes = planes.reshape(-1, model.config.in_channels, *planes.shape[2:])  # colour through a grey model
        x = torch.from_numpy(np.ascontiguousarray(planes)).to(device, torch.float32)
        meter = AttentionMeter(model, x)
        with within_memory(*planes.shape[2:]):
            model(x, sigma if model.config.sigma_input else None, observer=meter)
        meters.append(meter)
    states = range(model.config.states)
    return {
        "neighbours": [float(torch.cat([m.neighbours[t].flatten() for m in meters]).median()) for t in states],
        "largest": [max(m.largest[t] for m in meters) for t in states],
    }


def provenance(restorer: Restorer) -> dict[str, Any]:
    """The origin of a result for its file: date, commit, versions, machine, settings."""
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
