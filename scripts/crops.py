"""Sheets of crops for docs/: what goes in, what comes out, what was there.

`crops.py sr` enlarges images made smaller by MATLAB's bicubic to 8 bits; `crops.py denoise` restores them under
Gaussian noise; `crops.py photograph` under the noise of simulated cameras, default settings, beside OpenCV's non-local
means and scikit-image's total variation and wavelets (pip install opencv-python-headless PyWavelets). Of every image
the square with the strongest edges is shown, enlarged without smoothing. The images are scikit-image's: public domain
(`astronaut`, NASA) and CC0; those of the data sets may not be published everywhere.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

import nlrn
from nlrn.cli.shared import sigma_level
from nlrn.errors import InputError, NLRNError
from nlrn.functional.camera import noisy_at
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic8
from nlrn.functional.metrics import luma8, psnr, quantize8
from nlrn.system.atomic import check_target, publish

GAP, BAND = 6, 18
IMAGES = "astronaut", "chelsea", "coffee", "rocket"
LEVEL = 6.0  # of a camera's noise
Column = tuple[str, np.ndarray]  # a caption and an image HWC in 0..1


def square_with_edges(image: np.ndarray, side: int) -> tuple[slice, slice]:
    """Where the summed gradient of the luminance is largest, on a grid of an eighth of the side."""
    luma = luma8(image).astype(np.float64)
    steep = np.abs(np.gradient(luma)).sum(axis=0)
    total = np.pad(steep.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    grid = max(1, side // 8)
    down, right = np.unravel_index(np.argmax(sums[::grid, ::grid]), sums[::grid, ::grid].shape)
    return slice(down * grid, down * grid + side), slice(right * grid, right * grid + side)


def sheet(rows: list[tuple[np.ndarray, list[Column]]], side: int, zoom: int) -> Image.Image:
    """A row for every image: the same square of all columns."""
    cell = zoom * side
    columns = len(rows[0][1])
    page = Image.new("RGB", (columns * (cell + GAP) - GAP, len(rows) * (cell + BAND)), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    for y, (truth, cells) in enumerate(rows):
        part = square_with_edges(truth, side)
        for x, (caption, image) in enumerate(cells):
            at = x * (cell + GAP), y * (cell + BAND)
            draw.text((at[0] + 3, at[1] + 2), caption, fill=(0, 0, 0), font_size=12)
            crop = Image.fromarray(np.rint(quantize8(image[part]) * 255).astype(np.uint8))
            page.paste(crop.resize((cell, cell), Image.Resampling.NEAREST), (at[0], at[1] + BAND))
    return page


def enlarged(image: np.ndarray, scale: int, restorer: nlrn.Restorer) -> tuple[np.ndarray, list[Column]]:
    """The small image, bicubic, ours and the truth, with the PSNR of Y."""
    height, width = (n // scale * scale for n in image.shape[:2])
    image = image[:height, :width]
    low = resize_bicubic8(image, height // scale, width // scale)
    bicubic = resize_bicubic8(low, height, width) / 255
    ours = restorer.upscale(low / 255.0, height, width)

    def caption(name: str, column: np.ndarray) -> Column:
        y = [luma8(np.rint(quantize8(p) * 255).astype(np.uint8)) / 255 for p in (image / 255, column)]
        return f"{name}, {psnr(*y, border=scale):.2f} dB", column

    small = low.repeat(scale, axis=0).repeat(scale, axis=1) / 255
    return image, [(f"1/{scale}", small), caption("bicubic", bicubic), caption("nlrn", ours), ("truth", image / 255)]


def denoised(image: np.ndarray, sigma: float, restorer: nlrn.Restorer) -> tuple[np.ndarray, list[Column]]:
    """Noisy, ours and the truth, with the PSNR."""
    noisy = add_gaussian_noise(image / 255.0, sigma)
    ours = quantize8(restorer.denoise(noisy, sigma))
    pair = [(f"{name}, {psnr(image / 255, p):.2f} dB", p) for name, p in ((f"sigma {sigma:g}", noisy), ("nlrn", ours))]
    return image, [*pair, ("truth", image / 255)]


def photographed(image: np.ndarray) -> tuple[np.ndarray, list[Column]]:
    """uint8: noisy, three others, ours and the truth, with the PSNR.

    The strength of OpenCV and TV: that which serves best of (4, 7, 10) and (0.02, 0.05, 0.1); wavelets (BayesShrink)
    with the noise that they estimate.
    """
    cv2, restoration = importlib.import_module("cv2"), importlib.import_module("skimage.restoration")
    truth = image / 255.0
    given = noisy_at(truth, LEVEL)
    noisy = np.rint(given * 255).astype(np.uint8)
    nlm = [cv2.fastNlMeansDenoisingColored(noisy, None, h, h, 7, 21) / 255.0 for h in (4, 7, 10)]
    tv = [restoration.denoise_tv_chambolle(given, weight=w, channel_axis=2) for w in (0.02, 0.05, 0.1)]
    found = {
        "noisy": given,
        "OpenCV": max(nlm, key=lambda x: psnr(truth, quantize8(x))),
        "TV": max(tv, key=lambda x: psnr(truth, quantize8(x))),
        "wavelets": restoration.denoise_wavelet(given, channel_axis=2, convert2ycbcr=True, rescale_sigma=True),
        "nlrn": nlrn.denoise(noisy) / 255.0,
    }
    cells = [(f"{name} {psnr(truth, quantize8(x)):.2f} dB", x) for name, x in found.items()]
    return image, [*cells, ("truth", truth)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("sr", "denoise", "photograph"))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png|.jpg")
    parser.add_argument("--model", help="a shipped model or a weights file (photograph: the one that is chosen)")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=3)
    parser.add_argument("--sigma", type=sigma_level, default=25.0)
    parser.add_argument("--side", type=int, default=72, help="of the square that is shown (default: 72)")
    parser.add_argument("--zoom", type=int, default=3, help="pixels on a side for one of the image (default: 3)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    options = parser.parse_args()
    try:
        draw(options)
    except NLRNError as error:
        sys.exit(f"crops.py: {error}")


def draw(options: argparse.Namespace) -> None:
    """The sheet, as the command line asks for it."""
    if options.output.suffix.lower() not in (".png", ".jpg"):
        raise InputError(f"{options.output} must end in .png or .jpg")
    check_target(options.output, overwrite=options.overwrite)
    images = [np.asarray(getattr(data, name)()) for name in IMAGES]
    if options.task == "photograph":
        _write(options, [photographed(image) for image in images])
        return
    if options.model is None:
        raise InputError("give --model")
    restorer = nlrn.load(options.model)
    row: Callable[[np.ndarray], tuple[np.ndarray, list[Column]]] = {
        "sr": lambda image: enlarged(image, options.scale, restorer),
        "denoise": lambda image: denoised(image, options.sigma, restorer),
    }[options.task]
    _write(options, [row(image) for image in images])


def _write(options: argparse.Namespace, rows: list[tuple[np.ndarray, list[Column]]]) -> None:
    file = io.BytesIO()
    sheet(rows, options.side, options.zoom).save(
        file, Image.registered_extensions()[options.output.suffix.lower()], quality=92
    )
    publish(options.output, file.getvalue(), overwrite=options.overwrite)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
