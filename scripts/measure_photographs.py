"""The default of `nlrn denoise` on real photographs, beside others, and on images that need little or nothing.

`camera`: the crops of the PolyU set (Xu et al. 2018: five cameras, JPEG, the mean of many exposures as truth), no
parameter given; beside them the noisy crops, the estimate for white noise, the colour model given the best single
sigma for the whole set, and OpenCV's fastNlMeansDenoisingColored and BM3D with the best of a grid for the whole set.
`simulated`: the same methods on CBSD68 with the noise of simulated cameras at three levels, sigmas and strengths
relative to the level. `white`, `clean`, `jpeg`: CBSD68 under white noise, BSD100 as it is and through a JPEG of quality
70. `route`: when the model for photographs serves better than the one for white noise, by simulated noise on images of
SunHays80 that nothing is trained on. `levels`: what the model for photographs gains there under cameras most of
which denoise, at factors on the true level (--model: other weights). `passes`: what the second pass at half size gains
there at the level that is estimated, subtracted in full and by `removal_share`. PolyU, CBSD68 and BSD100 are scoring
sets: no number is fitted to them (docs/photographs.md says which decisions were looked at on PolyU).

OpenCV and BM3D (not free for commercial use) are only used here: pip install opencv-python-headless==5.0.0.93
bm3d==4.0.3. Where one is missing its lines are left out. Results are added to results/photographs.json as they come.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

import nlrn
from nlrn.evaluation.protocols import machine
from nlrn.functional.camera import CAMERA_LEVELS, DENOISING, at_level, draw_camera, jpeg, noisy_at, with_even_noise
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.metrics import psnr, quantize8, ssim
from nlrn.inference import coarse
from nlrn.inference.pipeline import PHOTO_LEVEL, for_photographs
from nlrn.inference.restorer import Restorer
from nlrn.io.datasets import data_root, read_folder, scoring_set, validation_images
from nlrn.system.atomic import publish_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "photographs.json"
SIGMAS = (9.0, 12.0, 16.0)
STRENGTHS = (4, 7, 10)  # h and hColor of OpenCV's
BM3D_SIGMAS = (6.0, 9.0, 12.0)
FACTORS = (1.0, 1.5, 2.2)  # from the level of simulated noise to the sigmas of denoisers for white noise
OPENCV_FACTORS = (0.6, 1.0, 1.5)
LEVEL_FACTORS = (0.5, 0.7, 1.0, 1.5)
FITTED = "Canon5D2"  # the camera whose noisy images the model of noise was looked at with
WHITE = (5, 10, 15, 25, 50, 75)
QUALITY = 70
PASSES: dict[str, Callable[..., Any] | None] = {"one": lambda *_: 0.0, "full": lambda *_: 1.0, "share": None}
KINDS = {"even": (0.0, 0.0), "denoising": (1.0, 0.0), "coarse": (1.0, 1.0)}  # of draw_camera
PARTS = ["camera", "simulated", "white", "clean", "jpeg", "route", "levels", "passes"]
Method = Callable[[np.ndarray], np.ndarray]


def methods(
    restorer: Restorer,
    chosen: list[str],
    sigmas: tuple[float, ...] = SIGMAS,
    strengths: tuple[float, ...] = STRENGTHS,
    bm3d_sigmas: tuple[float, ...] = BM3D_SIGMAS,
) -> dict[str, Method]:
    """By name, each from a noisy crop HW3 in [0, 1] to the restored one; the h of OpenCV's are whole numbers or not."""
    found: dict[str, Method] = {"noisy": lambda x: x}
    found["auto"] = lambda x: nlrn.denoise(x)
    found["photo"] = lambda x: nlrn.denoise(x, noise="photo")
    found["gaussian"] = lambda x: restorer.denoise(x, noise="gaussian")
    for sigma in sigmas:
        found[f"sigma {sigma:g}"] = lambda x, sigma=sigma: restorer.denoise(x, sigma)  # type: ignore[misc]
    if "opencv" in chosen:
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        for h in strengths:
            found[f"opencv {h}"] = lambda x, h=h: (  # type: ignore[misc]
                cv2.fastNlMeansDenoisingColored(np.rint(x * 255).astype(np.uint8), None, h, h, 7, 21) / 255.0
            )
    if "bm3d" in chosen:
        bm3d = importlib.import_module("bm3d")
        for sigma in bm3d_sigmas:
            found[f"bm3d {sigma:g}"] = lambda x, sigma=sigma: bm3d.bm3d_rgb(x, sigma / 255)  # type: ignore[misc]
    return found


def camera(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any]) -> None:
    """PSNR, SSIM and the largest shift of a channel's mean (0-255 units), by crop and method."""
    files = sorted((options.data / "polyu").glob("*_real.JPG"))[:: options.every]
    tools = methods(restorer, options.methods)
    for file in files:
        name = file.stem.removesuffix("_real")
        noisy, truth = (np.asarray(Image.open(p).convert("RGB")) / 255 for p in (file, file.with_stem(f"{name}_mean")))
        line = lines.setdefault(name, {})
        found = restorer.found_noise(noisy)
        if "auto" not in line:
            line["found"] = [one.record() for one in found]
        for method in [method for method in tools if method not in line]:
            if method == "photo" and for_photographs(found, 1.0):  # what the default settings take, too
                line[method] = line["auto"]
                continue
            restored = quantize8(tools[method](noisy.astype(np.float32)).astype(np.float64))
            shift = float(np.abs(restored.mean((0, 1)) - truth.mean((0, 1))).max() * 255)
            line[method] = [psnr(truth, restored), ssim(truth, restored), shift]
        if options.crops is not None:
            _save(options.crops / f"{name}.png", noisy, nlrn.denoise(noisy.astype(np.float32)), truth)
        print(name, line["found"], {m: round(line[m][0], 2) for m in tools}, flush=True)
        keep(options, "camera", lines)


def _save(path: Path, *images: np.ndarray) -> None:
    """Side by side, to be looked at."""
    beside = np.concatenate([quantize8(np.asarray(image, np.float64)) for image in images], axis=1)
    Image.fromarray(np.rint(beside * 255).astype(np.uint8)).save(path)


def simulated(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any]) -> None:
    """PSNR and SSIM on CBSD68 under `noisy_at`, by image, level and method; parameters are named by their factor."""
    for i, (name, image) in enumerate(scoring_set(options.data, "cbsd68")):
        if i % options.every:
            continue
        clean = image / 255
        for level in CAMERA_LEVELS:
            noisy = noisy_at(clean, level).astype(np.float32)
            sigmas = tuple(level * factor for factor in FACTORS)
            tools = methods(restorer, options.methods, sigmas, tuple(level * f for f in OPENCV_FACTORS), sigmas)
            line = lines.setdefault(f"{name} {level:g}", {})
            for method in tools.keys() - {"photo"}:
                family, _, parameter = method.partition(" ")
                key = f"{family} {float(parameter) / level:.1f}" if parameter else family
                if key not in line:
                    restored = quantize8(tools[method](noisy).astype(np.float64))
                    line[key] = [psnr(clean, restored), ssim(clean, restored)]
        print(name, flush=True)
        keep(options, "simulated", lines)


def white(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any]) -> None:
    """For each level of white noise by image: the estimate, the sigma used, and where they differ the PSNR by each and
    by the true sigma."""
    for seed, (name, image) in enumerate(scoring_set(options.data, "cbsd68")):
        if seed % options.every:
            continue
        clean = image / 255
        for sigma in WHITE:
            if f"{name} {sigma}" in lines:
                continue
            noisy = add_gaussian_noise(clean, sigma)
            (one,) = restorer.found_noise(noisy)
            line: dict[str, Any] = {"found": one.record()}
            if one.kind != "white":
                levels = {"auto": one.sigma, "white": nlrn.estimate_sigma(noisy), "true": float(sigma)}
                line |= {k: psnr(clean, quantize8(restorer.denoise(noisy, min(v, 75.0)))) for k, v in levels.items()}
            lines[f"{name} {sigma}"] = line
            print(name, sigma, line, flush=True)
        keep(options, "white", lines)


def quiet(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any], what: str) -> None:
    """BSD100 as it is, or through a JPEG: PSNR of what was given, and of the result against it and against BSD100."""
    for i, (name, image) in enumerate(read_folder(options.data / "bsd100" / "hr")):
        if i % options.every or name in lines:
            continue
        clean = image / 255
        given = jpeg(clean, QUALITY) if what == "jpeg" else clean
        restored = quantize8(nlrn.denoise(given.astype(np.float32)).astype(np.float64))
        line: dict[str, Any] = {"found": [one.record() for one in restorer.found_noise(given)]}
        line["changed"] = min(psnr(given, restored), 100.0)
        if what == "jpeg":
            line |= {"given": psnr(clean, given), "restored": psnr(clean, restored)}
        lines[name] = line
        print(name, line, flush=True)
        keep(options, what, lines)


def route(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any]) -> None:
    """Simulated noise on centre crops of the images of SunHays80 that nothing is trained on, as they are and enlarged
    twice: PSNR of the noisy image, by the model for white noise at what is found, and by the one for photographs."""
    photo = nlrn.load("denoise-photo-small")
    for i, (name, image) in enumerate(validation_images(options.data, "sunhays80", ("sunhays80",), channels=3)):
        if i % options.every:
            continue
        top, left = (n // 2 - 112 for n in image.shape[:2])
        sharp = image[top : top + 224, left : left + 224] / 255
        soft = resize_bicubic(sharp[56:168, 56:168], 224, 224).clip(0, 1)
        for kind, clean in (("sharp", sharp), ("soft", np.rint(soft * 255) / 255)):
            for level in CAMERA_LEVELS:
                noisy = noisy_at(clean, level).astype(np.float32)
                outputs = {"noisy": noisy, "white": restorer.denoise(noisy), "photo": photo.denoise(noisy)}
                line = {k: psnr(clean, quantize8(v.astype(np.float64))) for k, v in outputs.items()}
                lines[f"{name} {kind} {level:g}"] = line | {"found": restorer.found_noise(noisy)[0].record()}
        keep(options, "route", lines)
        print(name, flush=True)


def levels(options: argparse.Namespace, lines: dict[str, Any]) -> None:
    """dB gained at LEVEL_FACTORS times the level of flat areas, on centre crops of the images of SunHays80 that nothing
    is trained on, as they are and enlarged twice, under the cameras of the estimator's samples (DENOISING)."""
    photo = nlrn.load(options.model)
    for i, (name, image) in enumerate(validation_images(options.data, "sunhays80", ("sunhays80",), channels=3)):
        if i % options.every:
            continue
        top, left = (n // 2 - 72 for n in image.shape[:2])
        sharp = image[top : top + 144, left : left + 144] / 255
        soft = np.rint(resize_bicubic(sharp[36:108, 36:108], 144, 144).clip(0, 1) * 255) / 255
        for kind, clean in (("sharp", sharp), ("soft", soft)):
            for level in CAMERA_LEVELS:
                random = np.random.default_rng([i, int(level)])
                one = at_level(draw_camera(random, DENOISING), level)
                noisy, noise = with_even_noise(clean, one, random)
                noisy, true = noisy.astype(np.float32), 255 * float(np.std(noise))
                found = {f: photo.denoise(noisy, min(f * true, MAX_SIGMA)) for f in LEVEL_FACTORS}
                before = psnr(clean, noisy.astype(np.float64))
                gains = {f"{f:g}": psnr(clean, quantize8(x.astype(np.float64))) - before for f, x in found.items()}
                lines[f"{name} {kind} {level:g}"] = gains | {"noisy": before}
        keep(options, "levels", lines)
        print(name, flush=True)


def passes(options: argparse.Namespace, restorer: Restorer, lines: dict[str, Any]) -> None:
    """dB gained at the estimated level by one pass and by two (PASSES), on crops of the images of SunHays80 that
    nothing is trained on, as they are and enlarged 2 and 3 times, each under one of KINDS of cameras at 1.5 to 8."""
    photo = nlrn.load(options.model)
    for i, (name, image) in enumerate(validation_images(options.data, "sunhays80", ("sunhays80",), channels=3)):
        if i % options.every:
            continue
        for zoom in (1, 2, 3):
            random, side = np.random.default_rng([i, zoom]), 192 // zoom
            kind = tuple(KINDS)[(i + zoom) % 3]
            top, left = (int(random.integers(0, n - side + 1)) for n in image.shape[:2])
            clean = image[top : top + side, left : left + side] / 255
            clean = np.rint(resize_bicubic(clean, 192, 192).clip(0, 1) * 255) / 255 if zoom > 1 else clean
            one = at_level(draw_camera(random, *KINDS[kind]), math.exp(random.uniform(math.log(1.5), math.log(8))))
            noisy, noise = with_even_noise(clean, one, random)
            noisy = noisy.astype(np.float32)
            level = max(PHOTO_LEVEL, restorer.found_noise(noisy)[0].level)
            before = psnr(clean, noisy.astype(np.float64))
            line: dict[str, Any] = {"noisy": before, "found": level, "true": 255 * float(np.std(noise))}
            for way, share in PASSES.items():
                with mock.patch.object(coarse, "removal_share", share or coarse.removal_share):
                    line[way] = psnr(clean, quantize8(photo.denoise(noisy, level).astype(np.float64))) - before
            lines[f"{name} {kind} {zoom}"] = line
        keep(options, "passes", lines)
        print(name, flush=True)


def keep(options: argparse.Namespace, what: str, lines: dict[str, Any]) -> None:
    """Add what there is to the file."""
    whole = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    whole[what] = {"run": options.run, "every": options.every, "lines": lines}
    publish_json(RESULT, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    parser.add_argument("--every", type=int, default=1, help="of so many images one")
    parser.add_argument("--methods", nargs="*", default=["opencv"], help="of opencv, bm3d (default: opencv)")
    parser.add_argument("--crops", type=Path, help="a folder: noisy, restored and true crops side by side, as PNG")
    parser.add_argument("--model", default="denoise-photo-small", help="of `levels` and `passes`: weights")
    parser.add_argument("--resume", action="store_true", help="keep the lines that are there")
    options = parser.parse_args()
    if unknown := set(options.what) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    options.data = data_root(options.data)
    restorer = nlrn.load("denoise-color-small")
    options.run = machine(restorer.device) | {"precision": "bf16" if restorer.bf16 else "fp32"}
    known = json.loads(RESULT.read_text()) if RESULT.exists() and options.resume else {}
    for what in options.what:
        lines = known.get(what, {}).get("lines", {})
        if what == "camera":
            camera(options, restorer, lines)
        elif what == "simulated":
            simulated(options, restorer, lines)
        elif what == "white":
            white(options, restorer, lines)
        elif what == "route":
            route(options, restorer, lines)
        elif what == "levels":
            levels(options, lines)
        elif what == "passes":
            passes(options, restorer, lines)
        else:
            quiet(options, restorer, lines, what)


if __name__ == "__main__":
    main()
