"""Noise of real photographs beside that of nlrn.functional.camera: level, share of chroma, correlation.

Reads the noisy images of one camera in the PolyU set (Xu et al. 2018), the Canon 5D Mark II: the only one whose images
the model of noise may be fitted to; the others are for scoring. All is measured over flat 16 x 16 blocks, the
tenth of an image's blocks that deviate least from a plane, none of it near black or white. The model draws cameras at
random (seeds 0 to N - 1) over areas of the colours of those blocks. Printed are the 10th, 50th and 90th percentile over
photographs, or cameras; for the model of those alone whose luma deviates as much as the real ones (--like), or of all.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from nlrn.functional.camera import DENOISING, add_camera_noise, draw_camera
from nlrn.io.datasets import data_root

BLOCK = 16
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
PERCENTILES = (10, 50, 90)


def blocks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HWC in 0..255 -> (means [N, 3], residuals of a fitted plane [N, 16, 16, 3])."""
    rows, columns = (n // BLOCK for n in image.shape[:2])
    parts = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
    flat = parts.transpose(0, 2, 1, 3, 4).reshape(-1, BLOCK * BLOCK, 3)
    down, right = np.mgrid[:BLOCK, :BLOCK].reshape(2, -1)
    basis, _ = np.linalg.qr(np.stack([np.ones(BLOCK * BLOCK), down, right], 1))
    residual = flat - np.einsum("pk,qk,nqc->npc", basis, basis, flat, optimize=True)
    return flat.mean(1), residual.reshape(-1, BLOCK, BLOCK, 3)


def statistics(residual: np.ndarray) -> dict[str, float]:
    """Of blocks [N, 16, 16, 3]: standard deviations on the 0..255 scale, and autocorrelations by lag in pixels."""
    y, cb, cr = np.moveaxis(residual @ YCBCR.T, -1, 0)
    result = {"luma": float(y.std()), "chroma / luma": float(np.hypot(cb.std(), cr.std()) / y.std() / 2**0.5)}
    for name, plane in (("luma", y), ("Cr", cr)):
        power = float((plane**2).mean())
        for lag in (1, 2, 3):
            across = float((plane[:, :, :-lag] * plane[:, :, lag:]).mean()) / power
            down = float((plane[:, :-lag] * plane[:, lag:]).mean()) / power
            result[f"{name}, {lag} across"], result[f"{name}, {lag} down"] = across, down
    return result


def real(folder: Path) -> tuple[list[dict[str, float]], np.ndarray]:
    """The statistics of every photograph, and the colours of its flat blocks (0..255)."""
    found, colours = [], []
    for file in sorted(folder.glob("Canon5D2_*_real.JPG")):
        with Image.open(file) as image:
            means, residual = blocks(np.asarray(image.convert("RGB"), np.float64))
        inside = (means.min(1) > 15) & (means.max(1) < 225)
        means, residual = means[inside], residual[inside]
        if len(means) < 100:
            continue
        order = np.argsort(residual.std((1, 2)).mean(1))[: len(means) // 10]
        found.append(statistics(residual[order]))
        colours.append(means[order])
    return found, np.concatenate(colours)


def modelled(colours: np.ndarray, count: int) -> list[dict[str, float]]:
    """The statistics of as many cameras."""
    found = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        camera, area = draw_camera(random, DENOISING), np.empty((96, 96, 3))
        area[:] = colours[random.integers(len(colours))] / 255
        _, residual = blocks(255 * add_camera_noise(area, camera, random)[8:-8, 8:-8])
        if residual.std() > 0.1:  # else rounding and JPEG left nothing
            found.append(statistics(residual))
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    words.add_argument("--cameras", type=int, default=1000)
    words.add_argument("--like", action="store_true", help="only cameras whose luma deviates as the real ones' does")
    options = words.parse_args()
    photographs, colours = real(data_root(options.data) / "polyu")
    cameras = modelled(colours, options.cameras)
    if options.like:
        low, high = (np.percentile([s["luma"] for s in photographs], p) for p in (10, 90))
        cameras = [s for s in cameras if low <= s["luma"] <= high]
    warnings.simplefilter("error")
    print(f"{len(photographs)} photographs, {len(cameras)} cameras; percentiles {PERCENTILES}")
    for key in photographs[0]:
        ours, theirs = ([s[key] for s in group] for group in (cameras, photographs))
        print(
            f"{key:16}"
            + "".join(
                f"  {name} " + " ".join(f"{v:6.2f}" for v in np.percentile(values, PERCENTILES))
                for name, values in (("real", theirs), ("model", ours))
            )
        )


if __name__ == "__main__":
    main()
