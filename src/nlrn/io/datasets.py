"""Folders of images as arrays, and a training set that is a pure function of (seed, step).

Nothing here is random by itself: every patch follows from the seed, the step and its place in the global
batch, so a resumed run and a run spread over several processes see exactly the same patches.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nlrn.errors import InputError
from nlrn.functional.ranges import scale_of

DATA_VARIABLE = "NLRN_DATA"
DEFAULT_DATA = Path("../shared/data")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
SCORING_SETS = {
    "set12": "set12",
    "bsd68": "bsd68",
    "cbsd68": "cbsd68",
    "set5": "set5/hr",
    "set14": "set14/hr",
    "bsd100": "bsd100/hr",
}
HELD_OUT = {"sunhays80": tuple(f"img_{i:03d}" for i in range(4, 81, 4))}  # never trained on: every fourth, 20 of 80
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})

NamedImage = tuple[str, np.ndarray]


def data_root(explicit: str | Path | None = None) -> Path:
    """The folder of the data sets: `explicit`, else the variable NLRN_DATA, else ../shared/data.

    The first of the three that is set counts; it is not searched further when that folder is missing.
    Raises InputError when it is no folder.
    """
    root = Path(explicit or os.environ.get(DATA_VARIABLE) or DEFAULT_DATA)
    if root.is_dir():
        return root
    raise InputError(
        f"no data folder at {root}: give --data, or set {DATA_VARIABLE}. Any folder of images can be scored"
        " (nlrn evaluate --data FOLDER); docs/reproduce.md says where the usual sets come from"
    )


def read_folder(path: str | Path, *, channels: int | None = None) -> list[NamedImage]:
    """All 8-bit images directly in a folder, as (stem, uint8 array HW or HWC), sorted by file name.

    channels=1 gives HW: grey files unchanged, colour by Pillow's convert("L"), which is full-range BT.601
    luma (299 R + 587 G + 114 B) / 1000 rounded to 8 bits. channels=3 gives HWC, a grey image three
    times. channels=None keeps grey HW and colour HWC. Alpha is dropped.
    Raises InputError for a folder without images and for a file that cannot be read, has over 8 bits or several pages.
    """
    if channels not in (1, 3, None):
        raise InputError(f"channels is {channels!r}; expected 1, 3 or None (as the files are)")
    return [(file.stem, _read_image8(file, channels)) for file in _files(path)]


def _files(path: str | Path) -> list[Path]:
    """Those of a folder that may be images, by name. Raises InputError where there are none."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    if not files:
        raise InputError(f"no images in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    return files


def exact_images(path: str | Path, *, channels: int | None = None) -> list[NamedImage]:
    """All images directly in a folder, of any depth, as (stem, float32 HW or HWC), sorted by file name.

    Their type's range is 0..1. channels: 1, 3 or None as of `read_folder`, but luma is not rounded. Alpha is dropped.
    Raises InputError for a folder without images and for a file that cannot be read.
    """
    from nlrn.io.image import read_image  # what 8-bit sets do not need

    found = []
    for file in _files(path):
        image = read_image(file).array
        if channels == 1 and image.ndim == 3:
            image = image @ np.array([0.299, 0.587, 0.114], np.float32)
        elif channels == 3 and image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        found.append((file.stem, image))
    return found


def scoring_set(root: str | Path, name: str) -> list[NamedImage]:
    """The clean images of a scoring set (see SCORING_SETS) as (stem, uint8 array HW or HWC) by file name.

    For the super-resolution sets these are the uncropped high-resolution images.
    """
    if name not in SCORING_SETS:
        raise InputError(f"no scoring set {name!r}; there are {', '.join(sorted(SCORING_SETS))}")
    return read_folder(Path(root) / SCORING_SETS[name], channels=None)


def training_images(root: str | Path, folder: str, *, channels: int | None = None, depth: int = 8) -> list[NamedImage]:
    """The images of a folder below the data root without those that are HELD_OUT.

    depth: 8, as `read_folder`; 16, of any depth, 255 times what the network would see of them
    (nlrn.functional.ranges).
    """
    kept = HELD_OUT.get(folder, ())
    return [(stem, image) for stem, image in _read(Path(root) / folder, channels, depth) if stem not in kept]


def validation_images(
    root: str | Path, folder: str, trained: Sequence[str] = (), *, channels: int | None = None, depth: int = 8
) -> list[NamedImage]:
    """The images of a folder below the data root, or what is HELD_OUT of it where the rest is `trained` on.

    depth: as of `training_images`.
    """
    found = _read(Path(root) / folder, channels, depth)
    kept = HELD_OUT.get(folder) if folder in trained else None
    return [(stem, image) for stem, image in found if kept is None or stem in kept]


def _read(folder: Path, channels: int | None, depth: int) -> list[NamedImage]:
    if depth == 8:
        return read_folder(folder, channels=channels)
    found = exact_images(folder, channels=channels)
    return [(stem, 255 * scale_of(image).unit(image)) for stem, image in found]


def _read_image8(file: Path, channels: int | None) -> np.ndarray:
    from nlrn.io.decode import bits_of  # with its checks of every format

    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            mode, bits = image.mode, bits_of(image, data)
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if mode in _GREY_MODES | _COLOUR_MODES and bits <= 8 and pages == 1:
                keep = "L" if mode in _GREY_MODES else "RGB"
                return np.array(image.convert({1: "L", 3: "RGB", None: keep}[channels]))
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise InputError(f"cannot read the image {file}: {error}") from error
    if pages > 1:
        raise InputError(f"{file} has {pages} pages; data sets are read from single images")
    what = f"{bits} bits a sample" if bits > 8 else f"pixel mode {mode}"
    raise InputError(f"{file} has {what}, and 8 bits are read here; a recipe with data.depth = 16 trains on more")


class PatchSet:
    """Random square patches of a set of images that lie in one flat tensor on `device`.

    Every position of a patch inside an image is equally likely over the whole set, so an image is chosen
    in proportion to its number of positions; images smaller than the patch are never chosen. Each patch
    is then turned or flipped into one of its 8 orientations, all equally likely (as in the paper).

    images: uint8 or float32 arrays, all of one type, all HW or all HWC with the same C. Raises InputError for anything
    else and when no image holds a patch.
    """

    def __init__(self, images: Sequence[np.ndarray], patch: int, *, device: str | torch.device = "cpu") -> None:
        self.channels = _common_channels(images)
        self.device = torch.device(device)
        sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
        self._heights, self._widths = sizes[:, 0], sizes[:, 1]
        ends = np.cumsum(self._heights * self._widths * self.channels)
        self._starts = np.concatenate(([0], ends[:-1]))
        flat = np.concatenate([np.ravel(image) for image in images])
        self._pixels = torch.from_numpy(flat).to(self.device)
        self._set_patch(patch)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._starts)

    @property
    def positions(self) -> int:
        """Number of places in the whole set where a patch can lie."""
        return int(self._last_position[-1])

    def with_patch(self, patch: int) -> PatchSet:
        """The same images (the same memory) with another patch size."""
        other = copy.copy(self)
        other._set_patch(patch)
        return other

    def batch(self, seed: int, step: int, size: int, sample: int = 0) -> torch.Tensor:
        """Patches `sample` to `sample + size - 1` of a step's global batch: [size, C, patch, patch].

        A pure function of its arguments: rank r of n processes passes sample = r * size, and the n results
        put together are the batch of one process. seed and step are in 0 .. 2**64 - 1.
        """
        starts, down, right = self._draw(seed, step, size, sample)
        steps = torch.from_numpy(np.stack([starts, down, right])).to(self.device)[..., None, None, None]
        channel = torch.arange(self.channels, device=self.device)[:, None, None]
        along = torch.arange(self.patch, device=self.device)
        index = steps[0] + channel + steps[1] * along[:, None] + steps[2] * along  # [size, C, patch, patch]
        return self._pixels[index]

    def _set_patch(self, patch: int) -> None:
        if patch < 1:
            raise InputError(f"patch is {patch}; expected at least 1 pixel")
        self.patch = patch
        columns = np.maximum(self._widths - patch + 1, 0)
        self._columns = columns
        self._last_position = np.cumsum(np.maximum(self._heights - patch + 1, 0) * columns)
        if self.positions == 0:
            raise InputError(f"no image holds a patch of {patch} x {patch} pixels")

    def _draw(self, seed: int, step: int, size: int, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat index of each patch's first pixel, and what one step down and one to the right add to it."""
        raw = _random_words(seed, step, size, sample)
        # The modulo's bias is positions / 2**64, below 1e-9 for any set that fits a memory.
        position = (raw[:, 0] % np.uint64(self.positions)).astype(np.int64)
        image = np.searchsorted(self._last_position, position, side="right")
        within = position - np.concatenate(([0], self._last_position[:-1]))[image]
        top, left = np.divmod(within, self._columns[image])
        row = self._widths[image] * self.channels
        corner = self._starts[image] + top * row + left * self.channels
        return _orient(corner, row, self.channels, self.patch, (raw[:, 1] >> np.uint64(61)).astype(np.int64))


def _common_channels(images: Sequence[np.ndarray]) -> int:
    """C of images that are all HW (1) or all HWC."""
    if not images:
        raise InputError("a patch set needs at least one image")
    shapes = {(image.ndim, image.dtype.name, *image.shape[2:]) for image in images}
    ndim, dtype, *rest = min(shapes)
    if len(shapes) > 1 or ndim not in (2, 3) or dtype not in ("uint8", "float32"):
        raise InputError(f"expected uint8 or float32 images, all HW or all HWC with one C; got {sorted(shapes)}")
    return int(rest[0]) if rest else 1


def _random_words(seed: int, step: int, size: int, sample: int) -> np.ndarray:
    """uint64 [size, 4]: one block of the counter-based Philox4x64 for every place in the global batch."""
    if min(seed, step, sample) < 0 or max(seed, step) >= 2**64 or size < 1:
        raise InputError(f"seed {seed}, step {step}, size {size}, sample {sample}: out of range")
    key = np.array([seed, step], dtype=np.uint64)
    counter = np.array([sample, 0, 0, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * size).reshape(size, 4)


def _orient(
    corner: np.ndarray, row: np.ndarray, column: int, patch: int, orientation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and strides that read a patch in one of 8 orientations.

    Bit 0 flips the rows, bit 1 the columns, bit 2 transposes. No pixel outside the patch is ever addressed.
    """
    upward, leftward, transposed = orientation & 1, orientation >> 1 & 1, orientation >> 2 & 1
    start = corner + (patch - 1) * (upward * row + leftward * column)
    down, right = row * (1 - 2 * upward), column * (1 - 2 * leftward)
    return start, np.where(transposed, right, down), np.where(transposed, down, right)
