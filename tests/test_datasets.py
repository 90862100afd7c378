"""Laws of the patch set, and of reading folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nlrn.errors import InputError
from nlrn.io.datasets import SCORING_SETS, PatchSet, data_root, read_folder, scoring_set
from nlrn.io.image import ImageData, write_image

PATCH = 3
SIZES = [(5, 6), (4, 4), (2, 9), (3, 3)]  # the third holds no 3 x 3 patch
POSITIONS = 3 * 4 + 2 * 2 + 0 + 1


def numbered_images(channels: int) -> list[np.ndarray]:
    """Images whose every pixel has a value of its own; channel c is the first one plus 80 c."""
    ends = np.cumsum([h * w for h, w in SIZES])
    grey = [np.arange(e - h * w, e).reshape(h, w) for e, (h, w) in zip(ends, SIZES, strict=True)]
    if channels == 1:
        return [g.astype(np.uint8) for g in grey]
    return [np.stack([g + 80 * c for c in range(channels)], axis=-1).astype(np.uint8) for g in grey]


def all_patches(images: list[np.ndarray]) -> dict[bytes, tuple[int, int]]:
    """Every patch in every orientation, cut out by plain slicing: bytes [C, p, p] -> (place, orientation)."""
    places = [
        image[top : top + PATCH, left : left + PATCH].reshape(PATCH, PATCH, -1)
        for image in images
        for top in range(image.shape[0] - PATCH + 1)
        for left in range(image.shape[1] - PATCH + 1)
    ]
    return {
        np.ascontiguousarray(np.moveaxis(np.rot90(patch[::flip], turn), 2, 0)).tobytes(): (place, k)
        for place, patch in enumerate(places)
        for k, (flip, turn) in enumerate((f, t) for f in (1, -1) for t in range(4))
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_uniform_over_places_and_orientations_and_lie_inside(channels: int) -> None:
    images = numbered_images(channels)
    known = all_patches(images)
    assert len(known) == POSITIONS * 8
    patches = PatchSet(images, PATCH)
    assert patches.positions == POSITIONS
    counts = np.zeros((POSITIONS, 8))
    for step in range(8):
        for patch in patches.batch(seed=1, step=step, size=POSITIONS * 200).numpy():
            counts[known[patch.tobytes()]] += 1  # KeyError: a pixel from outside the patch was read
    assert counts.min() > 0
    for table in (counts, counts.sum(axis=0), counts.sum(axis=1)):
        freedom = table.size - 1
        chi_square = np.sum((table - table.mean()) ** 2) / table.mean()
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    patches = PatchSet(numbered_images(1), PATCH)
    first = patches.batch(7, 11, 64)
    patches.batch(8, 3, 5)
    assert torch.equal(first, patches.batch(7, 11, 64))
    assert torch.equal(first, PatchSet(numbered_images(1), PATCH).batch(7, 11, 64))
    others = [patches.batch(7, 12, 64), patches.batch(8, 11, 64), patches.batch(11, 7, 64)]
    assert all(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("world", [2, 4, 16])
def test_several_processes_see_the_batch_of_one(world: int) -> None:
    patches = PatchSet(numbered_images(3), PATCH)
    share = 16 // world
    parts = [patches.batch(2, 5, share, sample=rank * share) for rank in range(world)]
    assert torch.equal(torch.cat(parts), patches.batch(2, 5, 16))


def test_steps_do_not_overlap() -> None:
    images = [np.random.RandomState(0).randint(0, 256, (64, 64)).astype(np.uint8)]
    patches = PatchSet(images, 8)
    seen = {patch.numpy().tobytes() for step in range(50) for patch in patches.batch(0, step, 16)}
    assert len(seen) > 0.95 * 50 * 16  # of 25,992 possible patches few are drawn twice


def test_another_patch_size_shares_the_memory() -> None:
    patches = PatchSet(numbered_images(1), PATCH)
    larger = patches.with_patch(4)
    assert (larger.patch, larger.positions, patches.patch, patches.positions) == (4, 7, PATCH, POSITIONS)
    assert larger._pixels.data_ptr() == patches._pixels.data_ptr()
    assert larger.batch(0, 0, 2).shape == (2, 1, 4, 4)
    assert len(patches) == len(SIZES)


def test_extreme_seeds_and_steps_work_and_bad_ones_are_refused() -> None:
    patches = PatchSet(numbered_images(1), PATCH)
    assert patches.batch(2**64 - 1, 2**64 - 1, 1).dtype == torch.uint8
    for arguments in [(-1, 0, 1), (0, -1, 1), (0, 2**64, 1), (0, 0, 0), (0, 0, 1, -1)]:
        with pytest.raises(InputError, match="out of range"):
            patches.batch(*arguments)


@pytest.mark.parametrize(
    ("images", "patch"),
    [
        ([], 3),
        ([np.zeros((8, 8), np.float64)], 3),
        ([np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8)], 3),
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)], 3),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)], 3),
        ([np.zeros(8, np.uint8)], 3),
        ([np.zeros((8, 8), np.uint8)], 9),
        ([np.zeros((8, 8), np.uint8)], 0),
    ],
)
def test_images_that_make_no_set_are_refused(images: list[np.ndarray], patch: int) -> None:
    with pytest.raises(InputError):
        PatchSet(images, patch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.RandomState(3)
    colour = random.randint(0, 256, (4, 5, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "b.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "a.bmp")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_is_read_in_order_with_the_channels_asked_for(folder: Path) -> None:
    shapes = {
        None: [("a", (4, 5)), ("b", (4, 5, 3))],
        1: [("a", (4, 5)), ("b", (4, 5))],
        3: [("a", (4, 5, 3)), ("b", (4, 5, 3))],
    }
    for channels, expected in shapes.items():
        images = read_folder(folder, channels=channels)
        assert [(name, image.shape) for name, image in images] == expected
        assert all(image.dtype == np.uint8 for _, image in images)


def test_grey_of_colour_is_full_range_luma_rounded(folder: Path) -> None:
    colour = dict(read_folder(folder, channels=3))["b"].astype(np.float64)
    grey = dict(read_folder(folder, channels=1))["b"]
    assert np.abs(grey - colour @ [0.299, 0.587, 0.114]).max() <= 0.5 + 1e-3


def test_unreadable_images_are_refused_by_name(folder: Path) -> None:
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"c\.png"):
        read_folder(folder)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "c.png")
    with pytest.raises(InputError, match=r"c\.png has pixel mode I;16, and 8 bits|16 bits a sample"):
        read_folder(folder)


def deep(folder: Path, name: str) -> None:
    """Files of more than 8 bits, or several pages, that Pillow shows as 8 bits and one page."""
    values = np.random.default_rng(0).integers(1000, 2000, (12, 10, 3)).astype(np.uint16)
    path = folder / name
    if path.suffix == ".png":
        write_image(path, ImageData(values / np.float32(65535), depth=16))
    elif path.suffix == ".ppm":
        path.write_bytes(b"P6 10 12 65535 " + values.astype(">u2").tobytes())
    elif name.startswith("pages"):
        tifffile.imwrite(path, np.zeros((5, 12, 10), np.uint8), photometric="minisblack")
    else:
        tifffile.imwrite(path, values, photometric="rgb")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deep.png", "16 bits a sample.*depth = 16"),
        ("deep.tif", "deep.tif"),
        ("deep.ppm", "16 bits a sample.*depth = 16"),
        ("pages.tif", "5 pages"),
    ],
)
def test_more_than_8_bits_and_one_page_are_refused(folder: Path, name: str, reason: str) -> None:
    deep(folder, name)
    with pytest.raises(InputError, match=reason):
        read_folder(folder)
    with pytest.raises(InputError, match=reason):
        read_folder(folder, channels=1)


def test_a_telephone_s_jpeg_of_several_pictures_is_read(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (40, 90)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:])
    ((_, image),) = read_folder(tmp_path)
    assert abs(int(image.mean()) - 40) <= 1


def test_missing_folders_and_names_are_refused(tmp_path: Path) -> None:
    for call in (lambda: read_folder(tmp_path), lambda: read_folder(tmp_path / "none")):
        with pytest.raises(InputError):
            call()
    with pytest.raises(InputError, match="set12"):
        scoring_set(tmp_path, "set13")
    with pytest.raises(InputError, match="channels"):
        read_folder(tmp_path, channels=2)


def test_the_data_folder_is_found_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/two", "shared/data", "named"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.delenv("NLRN_DATA", raising=False)
    assert data_root().resolve() == tmp_path / "shared/data"
    monkeypatch.setenv("NLRN_DATA", str(tmp_path / "named"))
    assert data_root() == tmp_path / "named"
    assert data_root("two") == Path("two")
    with pytest.raises(InputError, match=r"give --data, or set NLRN_DATA"):
        data_root(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "count"),
    [("set12", 12), ("bsd68", 68), ("cbsd68", 68), ("set5", 5), ("set14", 14), ("bsd100", 100)],
)
def test_scoring_sets_are_whole(data_root: Path, name: str, count: int) -> None:
    assert name in SCORING_SETS
    images = scoring_set(data_root, name)
    assert len(images) == count
    grey = [n for n, image in images if image.ndim == 2]
    expected = {"set12": 12, "bsd68": 68, "set14": 1}.get(name, 0)  # Set14's bridge is a grey image
    assert len(grey) == expected
