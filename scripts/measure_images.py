"""What whole images take, into results/images.json; lines are added to those that are there.

`price`: three photographs of sunhays80, on which no denoiser was trained, whole and in tiles. `large`: `nlrn denoise`
on 24 million pixels; `enlarge`: `nlrn upscale` of 512 x 512 to 1024 x 1024; each a process of its own, with its peak of
memory. `--model base` has the paper's network with random weights, which take as long as trained ones.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nlrn
from nlrn.evaluation.protocols import machine
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.functional.metrics import luma8, psnr, quantize8
from nlrn.io.datasets import data_root, read_folder
from nlrn.system.atomic import publish_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "images.json"
SIGMA = 25.0
OVERLAPS = (0, 8, 16, 32, 64)
COLUMNS = 4  # of tiles; their side follows, so that they share the overlap and not a pixel more


def price(model: str, data: Path) -> list[dict[str, Any]]:
    """A line for every plan: how near the whole image, what it loses, what it takes more."""
    photographs = [luma8(image) for _, image in read_folder(data / "sunhays80") if image.shape[:2] == (768, 1024)][:3]
    network = nlrn.load_model(model)
    assert network.receptive_radius is not None
    exact = -(-8 * network.receptive_radius // 3)
    plans = [(-(-(1024 - overlap) // COLUMNS) + overlap, overlap) for overlap in (*OVERLAPS, exact)]
    noisy = [add_gaussian_noise(image / 255.0, SIGMA) for image in photographs]
    lines = []
    for precision in ("fp32", "bf16"):
        wholes, whole_seconds = _restored(network, noisy, nlrn.Settings(tile=0, precision=precision))
        for side, overlap in plans:
            tiled, seconds = _restored(network, noisy, nlrn.Settings(tile=side, overlap=overlap, precision=precision))
            clean = [image / 255.0 for image in photographs]
            lost = [psnr(c, quantize8(w)) - psnr(c, quantize8(t)) for c, w, t in zip(clean, wholes, tiled, strict=True)]
            line = {
                "model": model,
                "precision": precision,
                "side": side,
                "overlap": overlap,
                "nearness": min(psnr(w, t) for w, t in zip(wholes, tiled, strict=True)),
                "largest": max(float(np.abs(w - t).max()) for w, t in zip(wholes, tiled, strict=True)),
                "lost": max(lost),
                "time": seconds / whole_seconds,
            }
            print(line, flush=True)
            lines.append(line)
    return lines


def _restored(network: nlrn.NLRN, images: list[np.ndarray], settings: nlrn.Settings) -> tuple[list[np.ndarray], float]:
    """The restored images, float64, and the processor's seconds for all of them."""
    restorer = nlrn.Restorer(network, settings=settings)
    restorer.denoise(images[0][:64, :64], SIGMA)
    started = time.process_time()
    return [restorer.denoise(image, SIGMA).astype(np.float64) for image in images], time.process_time() - started


def command(what: str, model: str, colour: bool) -> dict[str, Any]:
    """Seconds and MiB of `nlrn denoise` on 6000 x 4000 pixels, or of `nlrn upscale -s 2` on 512 x 512."""
    task, size = ("denoise", (6000, 4000)) if what == "large" else ("sr", (512, 512))
    with tempfile.TemporaryDirectory() as name:
        folder, weights = Path(name), model
        if model == "base":
            torch.manual_seed(0)
            weights = str(folder / "base.safetensors")
            nlrn.save_model(weights, nlrn.NLRN(nlrn.NLRNConfig(sigma_input=task == "denoise", task=task)), {})
        _photograph(size, colour, noisy=task == "denoise").save(folder / "in.png", compress_level=1)
        words = ["denoise", "--sigma", f"{SIGMA:g}"] if task == "denoise" else ["upscale", "-s", "2"]
        words += [str(folder / "in.png"), "-o", str(folder / "out.png"), "--model", weights]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nlrn", *words], check=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        with Image.open(folder / "out.png") as out:
            width, height = out.size
        restorer = nlrn.load(weights)
        side = restorer.tile_for(height, width)
        rows, columns = min(height, side or height), min(width, side or width)
        predicted = rows * columns * restorer.memory_per_pixel(rows, columns) / 2**20
    line = {"model": model, "colour": colour, "width": width, "height": height, "side": side, "seconds": seconds}
    line |= {"peak": peak, "predicted": predicted}
    print(line, flush=True)
    return line


def _photograph(size: tuple[int, int], colour: bool, noisy: bool) -> Image.Image:
    """camera.png in another size."""
    photograph = Image.open(ROOT / "examples" / "camera.png").convert("L").resize(size, Image.Resampling.BICUBIC)
    grey = np.asarray(photograph) / 255.0
    values = quantize8(add_gaussian_noise(grey, SIGMA) if noisy else grey) * 255
    plane = np.rint(values).astype(np.uint8)
    return Image.fromarray(np.dstack([plane, np.roll(plane, 1, 0), np.roll(plane, 1, 1)]) if colour else plane)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("price", "large", "enlarge"))
    parser.add_argument("--model", default="denoise-gray-small", help="a shipped model; or base, but for price")
    parser.add_argument("--colour", action="store_true", help="an image of three channels")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.what == "price":
        lines = price(options.model, data_root(options.data))
    else:
        lines = [command(options.what, options.model, options.colour)]
    run = machine(torch.device("cpu"))
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known[options.what] = [*known.get(options.what, []), *({**line, "run": run} for line in lines)]
    publish_json(RESULT, known)


if __name__ == "__main__":
    main()
