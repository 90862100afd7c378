"""Image files read, restored and written, judged by readers that share no code with those of nlrn.

python scripts/sweep_images.py FOLDER: every file of a folder, such as Tests/images of Pillow's source package;
python scripts/sweep_images.py --grid: TIFFs that tifffile writes, a grid of its options. Prints a table of accepted,
refused and wrong by kind, and the reasons of refusals; wrong must be 0 (exit code 1 otherwise).

Judges: libvips and tifffile with imagecodecs of what is read; OpenCV of BMP and PNM (pip install imagecodecs
opencv-python-headless); tifffile of what is written. A file is wrong where
- read_image finds other samples than a judge (turned upright; CMYK, colours under full transparency and the difference
  of lossy decoders apart);
- `nlrn denoise` (a tiny network) writes other samples than nlrn.denoise makes of the samples that the judge found, or
  another shape or type (up to 512 x 512 pixels);
- a profile, a resolution or a description is another one in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

import nlrn
from nlrn.cli import run
from nlrn.errors import NLRNError
from nlrn.io.image import ImageData, encode_image, read_image
from nlrn.io.metadata import TURNS
from nlrn.models.checkpoint import save_model
from nlrn.models.nlrn import NLRN, NLRNConfig

_TOLERANCE = {"JPEG": 6, "AVIF": 6, "WEBP": 3}  # of decoders of lossy formats, 0-255 units
_LOSSY = (6, 7, 34712, 50001, 50002)  # compressions of TIFF
_RESTORED = 512 * 512  # pixels of images that go through the network too
_SIGMA = 5
KINDS = ("restored", "read", "not judged", "refused", "wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--every", type=int, default=6, help="of the grid's layouts, for each compression (1: all)")
    options = parser.parse_args()
    if (options.folder is None) != options.grid:
        parser.error("give a FOLDER, or --grid")
    warnings.simplefilter("ignore")
    table: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        sweep = Sweep(Path(scratch))
        for kind, name, verdict in sweep.grid(options.every) if options.grid else sweep.folder(options.folder):
            what, _, reason = verdict.partition(": ")
            table[kind][what] += 1
            if what == "wrong":
                print(name, verdict, flush=True)
            if what == "refused":
                reasons[" ".join(word for word in reason.split() if not any(map(str.isdigit, word)))[:90]] += 1
    _print_table(table, reasons)
    return int(any(found["wrong"] for found in table.values()))


def _print_table(table: dict[str, Counter[str]], reasons: Counter[str]) -> None:
    print("kind", *KINDS, sep=" | ")
    for kind, found in sorted(table.items()):
        print(kind, *(found[what] for what in KINDS), sep=" | ")
    total = sum(table.values(), Counter[str]())
    print("all", *(total[what] for what in KINDS), sep=" | ")
    for reason, count in reasons.most_common():
        print(f"refused {count}: {reason}")


class Sweep:
    """Files through read, restore and write. scratch: a folder for the network and the results."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.model = scratch, scratch / "tiny.safetensors"
        torch.manual_seed(0)
        torch.set_num_threads(1)  # images are small
        network = NLRN(NLRNConfig(channels=8, embed_channels=4, states=2, window=5, sigma_input=True))
        save_model(self.model, network.eval())

    def folder(self, folder: Path) -> Iterator[tuple[str, str, str]]:
        """(kind, name, verdict) of every file below."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            yield path.suffix.lower(), path.name, self.verdict(path, _judged(path))

    def grid(self, every: int) -> Iterator[tuple[str, str, str]]:
        """(kind, name, verdict) of TIFFs by tifffile."""
        path = self.scratch / "grid.tif"
        for kind, look, name, values, stored, options in grid(every):
            try:
                tifffile.imwrite(path, stored, **options)
            except Exception:  # what tifffile itself does not write
                continue
            if options["compression"] in ("jpeg", "webp"):  # with loss
                if look in ("palette", "CMYK"):
                    continue
                values = _expected(look, tifffile.imread(path))
            yield kind, name, self.verdict(path, values)

    def verdict(self, path: Path, seen: Any) -> str:
        """seen: the samples by another reader, None where it cannot read it."""
        try:
            image = read_image(path, max_pixels=20_000_000)
        except NLRNError as error:
            reason = str(error).removeprefix(f"{path}: ")
            return self._stack(path) if "frames or pages" in reason or "a stack of" in reason else f"refused: {reason}"
        if wrong := _wrong_encoding(image):
            return wrong
        compared = None if seen is None else _comparable(seen, image)
        if compared is not None and (wrong := _wrong_samples(path, image, compared)):
            return wrong
        if image.array.shape[0] * image.array.shape[1] > _RESTORED:
            return "not judged" if compared is None else "read"
        return self._restored(path, image, compared)

    def _command(self, path: Path, *more: str) -> tuple[int, Path, str]:
        out, said = self.scratch / "out.tif", io.StringIO()
        words = ["denoise", "--sigma", str(_SIGMA), "--model", str(self.model), "-q", "--overwrite", *more]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = run([*words, "-o", str(out), "--", str(path)])
        return code, out, said.getvalue()

    def _restored(self, path: Path, image: ImageData, seen: Any) -> str:
        """The command's result beside nlrn.denoise of what the judge found; for None, of what nlrn read."""
        code, out, said = self._command(path)
        if code:
            return f"wrong: exit code {code}, {said.strip()}"
        written, judged = tifffile.imread(out), seen is not None
        values = seen if judged and not _tolerance(path, image) else _samples(image)
        if image.alpha is not None:  # colours under full transparency are the file's, which judges leave out
            values = np.where(image.alpha[..., None] == 0, _samples(image), values)
        expected = _denoised(values, image.alpha is not None, self.model)
        if written.shape != values.shape or written.dtype != values.dtype:
            return f"wrong: written as {written.dtype} {written.shape}"
        if expected is not None and not np.array_equal(written, expected):
            return f"wrong: restored {np.abs(written.astype(float) - expected).max():g} off"
        if image.alpha is not None and not np.array_equal(written[..., -1], values[..., -1]):
            return "wrong: alpha"
        if wrong := _wrong_metadata(path, out):
            return wrong
        return "restored" if judged else "not judged"

    def _stack(self, path: Path) -> str:
        """A file of many images through the command, each plane beside nlrn.denoise of the judge's."""
        code, out, said = self._command(path, "--range", "type")
        if code:
            return f"refused: {said.strip().removeprefix('nlrn: ').removeprefix(f'{path}: ')}"
        planes, found = _planes(path), _planes(out)
        if not planes:
            return "not judged"
        if [plane.shape for plane in planes] != [plane.shape for plane in found]:
            return f"wrong: {len(planes)} planes {planes[0].shape} became {len(found)} {found[0].shape}"
        for before, after in zip(planes, found, strict=True):
            expected = nlrn.denoise(before, _SIGMA, model=self.model, value_range="type")
            if not np.array_equal(expected, after):
                return f"wrong: a plane is {np.abs(after.astype(float) - expected).max():g} off"
        return "restored"


def _denoised(values: np.ndarray, alpha: bool, model: Path) -> Any:
    if not alpha:
        return nlrn.denoise(values, _SIGMA, model=model)
    if values.dtype != np.uint8:
        return None
    return np.asarray(nlrn.denoise(Image.fromarray(values), _SIGMA, model=model))


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _wrong_encoding(image: ImageData) -> str:
    """Of the image as it was read, written as a TIFF."""
    values, written = _samples(image), tifffile.imread(io.BytesIO(encode_image(image, "TIFF")))
    same = written.shape == values.shape and np.array_equal(written, values)
    return "" if same else "wrong: written"


def _wrong_samples(path: Path, image: ImageData, seen: np.ndarray) -> str:
    away = np.abs(seen.astype(np.float64) - _samples(image))
    if image.alpha is not None:
        away[image.alpha == 0, :-1] = 0
    if image.format == "AVIF":  # fewer samples of colour are interpolated in many ways
        return f"wrong: {away.mean():g} off" if away.mean() > 2 or np.percentile(away, 98) > 20 else ""
    off = float(away.max())
    return f"wrong: {off:g} off" if off > _tolerance(path, image) else ""


def _wrong_metadata(path: Path, out: Path) -> str:
    """The profile by libvips; of TIFFs the resolution and description by tifffile."""
    before, after = _profile(path), _profile(out)
    if after is not None and before is not None and before != after:
        return "wrong: another profile"
    if before is not None and after is None and before[16:20] in (b"RGB ", b"GRAY") and _bands(out) == before[16:20]:
        return "wrong: the profile is lost"
    try:
        with tifffile.TiffFile(path, is_ome=False) as one, tifffile.TiffFile(out, is_ome=False) as two:
            if len(one.pages) > 1:
                return ""
            for tag in (270, 282, 283, 296, 305, 315, 33432):
                values = [_value(file.pages.first.tags.valueof(tag)) for file in (one, two)]
                if values[0] is not None and values[0] != values[1] and not _is_default(tag, values[0], one):
                    return f"wrong: tag {tag} was {values[0]!r} and is {values[1]!r}"
    except tifffile.TiffFileError:
        pass
    return ""


def _value(value: Any) -> Any:
    """Of a tag; a pair of numbers is a fraction."""
    return value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else value


def _is_default(tag: int, value: Any, file: Any) -> bool:
    """Whether a tag says nothing, or what the result may say in another way."""
    tags = file.pages.first.tags
    turned = tags.valueof(274, 1) != 1
    resolution = tag in (282, 283, 296)
    return not value or (resolution and (turned or _is_no_resolution(tags) or _same_resolution(tags)))


def _is_no_resolution(tags: Any) -> bool:
    return 282 not in tags or 283 not in tags or 0 in (tags.valueof(282)[1], tags.valueof(283)[1])


def _same_resolution(tags: Any) -> bool:
    """In pixels per centimetre, which are written as pixels per inch."""
    return int(tags.valueof(296, 2)) == 3


def _profile(path: Path) -> bytes | None:
    import pyvips  # type: ignore[import-untyped]

    try:
        image = pyvips.Image.new_from_buffer(path.read_bytes(), "")  # a path that is written again is cached
        return bytes(image.get("icc-profile-data")) if image.get_typeof("icc-profile-data") else None
    except pyvips.Error:
        return None


def _bands(path: Path) -> bytes:
    with tifffile.TiffFile(path) as file:
        return b"GRAY" if file.pages.first.samplesperpixel < 3 else b"RGB "


def _tolerance(path: Path, image: ImageData) -> int:
    """Of what a judge finds, 0-255 units. OpenCV leaves the lowest bits of 5 and 6 bits empty."""
    if image.format == "BMP" and path.read_bytes()[28:29] == b"\x10":
        return 8
    return _TOLERANCE.get(image.format, 6 if image.format == "TIFF" and _is_lossy(path) else 0)


def _is_lossy(path: Path) -> bool:
    with tifffile.TiffFile(path) as file:
        return any(int(page.compression) in _LOSSY for page in file.pages)


# -- what judges find -------------------------------------------------------------------------------------------------


def _samples(image: ImageData) -> Any:
    if image.depth == 32:
        return image.array
    top = 2**image.depth - 1
    values = np.rint(image.array.astype(np.float64) * top).astype(f"uint{image.depth}")
    return values if image.alpha is None else np.dstack([values, image.alpha])


def _comparable(seen: np.ndarray, image: ImageData) -> Any:
    """The judge's samples in the shape of the image's; None where they are of another kind."""
    values = _samples(image)
    if seen.shape != values.shape:
        if seen.ndim == 3 and values.ndim == 2 and np.ptp(seen[..., :3].astype(int), axis=2).max() == 0:
            seen = seen[..., 0]  # grey in three channels
        elif values.ndim == 3 and seen.ndim == 2 and values.shape[2] == 3:
            seen = np.dstack([seen] * 3)
        elif seen.ndim == values.ndim == 3 and (seen.shape[2], values.shape[2]) == (4, 3) and seen[..., 3].min() == 255:
            seen = seen[..., :3]
    return seen if seen.shape == values.shape and seen.dtype == values.dtype else None


def _judged(path: Path) -> Any:
    """The samples of a file by another reader; None where there is none."""
    if path.suffix.lower() in (".bmp", ".pgm", ".ppm", ".pbm", ".pnm"):
        return _by_opencv(path)
    seen = _by_libvips(path)
    if seen is None and path.suffix.lower() in (".tif", ".tiff"):
        seen = _by_tifffile(path)
    return seen


def _by_opencv(path: Path) -> Any:
    import cv2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if values is not None and path.suffix.lower() == ".bmp" and values.shape[2:] != (4,):
            values = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    if values is None or values.dtype not in (np.uint8, np.uint16):
        return None
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return values if values.ndim == 2 else values[..., order[values.shape[2]]]


def _by_tifffile(path: Path) -> Any:
    try:
        with tifffile.TiffFile(path, is_ome=False) as file:
            page: Any = file.pages.first
            if len(file.pages) != 1 or page.photometric not in (1, 2) or page.planarconfig != 1:
                return None
            values = page.asarray()
            return TURNS.get(page.tags.valueof(274, 1), np.asarray)(values) if values.dtype.kind in "uf" else None
    except Exception:  # whatever it finds damaged
        return None


def _planes(path: Path) -> list[np.ndarray]:
    """Of a TIFF by tifffile, of another file by libvips (RGBA) where its frames have colour and no transparency."""
    try:
        with tifffile.TiffFile(path) as file:
            pages: list[Any] = [p for p in map(file.pages.__getitem__, range(len(file.pages))) if not p.is_reduced]  # type: ignore[union-attr]
            if file.series[0].size > pages[0].size * len(pages):
                return list(file.asarray().reshape(-1, *pages[0].shape))
            plain = all(page.photometric in (1, 2) and page.dtype.kind in "uf" for page in pages)
            return [page.asarray() for page in pages] if plain else []
    except tifffile.TiffFileError:
        return []


def _by_libvips(path: Path) -> Any:
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), fail_on="warning")
        if image.interpretation == "cmyk" or image.bands > 4:
            return None
        values = np.asarray(image.autorot().numpy())
        orientation = Image.open(path).getexif().get(274, 1)  # by XMP and raw profiles too, which libvips passes over
        if orientation != 1 and path.suffix.lower() == ".png":
            values = TURNS[orientation](np.asarray(image.numpy()))
    except Exception:  # whatever either of them finds damaged
        return None
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


# -- the grid ---------------------------------------------------------------------------------------------------------


_DTYPES = ("uint8", "uint16", "float32", "int16", "uint32", "float64", "float16")
_LOOKS = {  # samples, photometric interpretation
    "grey": ((), "minisblack"), "white is zero": ((), "miniswhite"), "RGB": ((3,), "rgb"), "RGBA": ((4,), "rgb"),
    "grey and alpha": ((2,), "minisblack"), "palette": ((), "palette"), "CMYK": ((4,), "separated"),
}  # fmt: skip
_CODECS = (None, "zlib", "lzw", "packbits", "lzma", "zstd", "jpeg", "lerc", "png", "webp", "jpeg2000", "deflate")
_UNPREDICTED = (None, "packbits", "jpeg", "lerc", "png", "webp", "jpeg2000")


def grid(every: int) -> Iterator[tuple[str, str, str, Any, np.ndarray, dict[str, Any]]]:
    """(kind, look, name, samples as they should be read, samples to write, options of tifffile.imwrite)."""
    random = np.random.default_rng(0)
    for dtype, look in itertools.product(_DTYPES, _LOOKS):
        more, kind = _LOOKS[look][0], np.dtype(dtype)
        planes = ("contig", "separate") if more else ("contig",)
        places = list(itertools.product("<>", (False, True), ("one strip", "strips", "tiles"), planes))
        packed = [(c, p) for c, p in itertools.product(_CODECS, (False, True)) if not (p and c in _UNPREDICTED)]
        chosen = [(*pair, *place) for i, pair in enumerate(packed) for place in places[i % every :: every]]
        for codec, predictor, order, big, layout, planar in chosen:
            shape = (37, 45, *more)
            values = random.random(shape) if kind.kind == "f" else random.integers(0, np.iinfo(kind).max, shape, kind)
            values = values.astype(kind)
            stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
            options = _options(look, codec, predictor, order, big, layout, planar)
            if look == "palette" and kind.itemsize < 3:
                options["colormap"] = random.integers(0, 65535, (3, 2 ** (8 * kind.itemsize)), np.uint16)
                values = (options["colormap"] >> 8).T.astype(np.uint8)[values] if dtype == "uint8" else values
            name = f"{dtype} {look} {codec} predictor={predictor} {order} big={big} {layout} {planar}"
            yield f"{dtype} {look}", look, name, _expected(look, values), stored, options


def _expected(look: str, values: np.ndarray) -> Any:
    """The samples that should be read; None where there is no rule."""
    if look == "white is zero" and values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    if look == "CMYK" and values.dtype == np.uint8:  # by Pillow's rule, which nlrn's documents name
        light = 255 - values[..., 3:].astype(int)
        product = values[..., :3] * light + 128
        return (light - ((product >> 8) + product >> 8)).astype(np.uint8)
    return None if look in ("CMYK", "white is zero") else values


def _options(
    look: str, codec: str | None, predictor: bool, order: str, big: bool, layout: str, planar: str
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "photometric": _LOOKS[look][1], "byteorder": order,
        "bigtiff": big, "compression": codec, "predictor": predictor,
        "resolution": (120.5, 60), "resolutionunit": "INCH", "description": f"{look} by {codec}", "metadata": None,
    }  # fmt: skip
    if look in ("RGBA", "grey and alpha"):
        options["extrasamples"] = ["unassalpha"]
    if _LOOKS[look][0]:
        options["planarconfig"] = planar
    if layout == "tiles":
        options["tile"] = (16, 32)
    else:
        options["rowsperstrip"] = 37 if layout == "one strip" else 8
    return options


if __name__ == "__main__":
    sys.exit(main())
