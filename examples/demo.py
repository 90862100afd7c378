"""A real photograph, noise of sigma 25 added to it, restored: PSNR before and after, and the three side by side.

The photograph is camera.png beside this file: 512 x 512, CC0 by the photographer, Lav Varshney.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import nlrn
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.functional.metrics import psnr, quantize8

CROP = (slice(70, 210), slice(190, 330))  # head and camera, shown enlarged


def side_by_side(images: list[tuple[str, np.ndarray]], gap: int = 8, band: int = 24) -> Image.Image:
    """Captioned images (HW, 0..1) in a row, a crop of each enlarged below it."""
    height, width = images[0][1].shape
    sheet = Image.new("L", (len(images) * (width + gap) - gap, band + 2 * height + gap), 255)
    draw = ImageDraw.Draw(sheet)
    for i, (caption, image) in enumerate(images):
        x = i * (width + gap)
        draw.text((x + 4, 4), caption, fill=0, font_size=15)
        whole = Image.fromarray((quantize8(image) * 255).astype(np.uint8))
        crop = Image.fromarray((quantize8(image[CROP]) * 255).astype(np.uint8))
        sheet.paste(whole, (x, band))
        sheet.paste(crop.resize((width, height), Image.Resampling.NEAREST), (x, band + height + gap))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--sigma", type=float, default=25.0)
    options = parser.parse_args()

    clean = np.asarray(Image.open(Path(__file__).parent / "camera.png")) / 255.0
    noisy = add_gaussian_noise(clean, options.sigma)
    started = time.perf_counter()
    restored = nlrn.denoise(noisy, sigma=options.sigma)
    seconds = time.perf_counter() - started

    before, after = psnr(clean, noisy), psnr(clean, quantize8(restored))
    print(f"noise of sigma {options.sigma:g}: {before:.2f} dB")
    print(f"restored in {seconds:.1f} s: {after:.2f} dB ({after - before:+.2f})")
    captions = ["original", f"noisy, {before:.2f} dB", f"restored, {after:.2f} dB"]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "demo.png"
    side_by_side(list(zip(captions, [clean, noisy, restored], strict=True))).save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
