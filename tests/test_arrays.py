"""Arrays with leading axes: NumPy, torch and, in test_arrays_lazy.py, xarray and dask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import nlrn
from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.inference.arrays import Axes


def counts(*shape: int) -> np.ndarray:
    """12 bits in 16; channels (the axis before the last two) of different brightness."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    clean = 700 + 300 * np.sin(x / 9) * np.cos(y / 7)
    bright = np.linspace(1, 2, shape[-3])[:, None, None]
    return np.rint((clean * bright + 60 * random.standard_normal(shape)).clip(0)).astype(np.uint16)


def test_an_array_is_restored_as_its_file(tmp_path: Path, weights: Path) -> None:
    """T Z C Y X: the planes of the command line, byte for byte."""
    array = counts(2, 2, 2, 48, 40)
    tifffile.imwrite(tmp_path / "stack.tif", array, imagej=True, metadata={"axes": "TZCYX"})
    command = ["denoise", str(tmp_path / "stack.tif"), "-o", str(tmp_path / "out.tif"), "--model", str(weights), "-q"]
    assert run(command) == 0
    got = nlrn.denoise(array, model=weights, axes="TZCYX")
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, tifffile.imread(tmp_path / "out.tif"))


@pytest.mark.parametrize(("order", "letters"), [((1, 2, 0), "YXZ"), ((2, 0, 1), "XZY")])
def test_axes_in_any_order(weights: Path, order: tuple[int, ...], letters: str) -> None:
    array = counts(3, 32, 40)
    expected = nlrn.denoise(array, model=weights, axes="ZYX")
    got = nlrn.denoise(array.transpose(order), model=weights, axes=letters)
    np.testing.assert_array_equal(got, expected.transpose(order))
    assert got.flags.c_contiguous


def test_tensors_and_floats_are_of_their_kind(weights: Path) -> None:
    array = counts(3, 32, 40)
    expected = nlrn.denoise(array, model=weights, axes="ZYX")
    tensor = nlrn.denoise(torch.from_numpy(array), model=weights, axes="ZYX")
    assert tensor.dtype == torch.uint16
    np.testing.assert_array_equal(tensor.numpy(), expected)
    floats = nlrn.denoise(array.astype(np.float32), model=weights, axes="ZYX")  # counts of 16 bits
    assert floats.dtype == np.float32
    assert np.abs(floats.clip(0, 65535) - expected).max() <= 0.51


@pytest.mark.parametrize(("low", "high", "sigma"), [(500, 700, 0.4), (200, 240, 0.1), (60000, 60013, 0.05)])
def test_a_sigma_that_each_plane_takes_is_taken_for_all(weights: Path, low: int, high: int, sigma: float) -> None:
    """The range is made as large as the sigma asks, and no smaller by its rounding."""
    for seed in range(4):
        array = np.random.default_rng(seed).integers(low, high, (2, 32, 40)).astype(np.uint16)
        assert nlrn.denoise(array, sigma, weights, axes="ZYX").shape == array.shape


def test_a_level_for_each_plane(weights: Path) -> None:
    array = counts(3, 32, 40)
    every = nlrn.denoise(array, "per-plane", weights, axes="ZYX", value_range="type")
    for plane, restored in zip(array, every, strict=True):
        np.testing.assert_array_equal(nlrn.denoise(plane, model=weights, value_range="type"), restored)


def test_axes_that_do_not_fit_are_refused(weights: Path) -> None:
    array = counts(3, 32, 40)
    for letters in ("YX", "ZZX", "ZCT", "SYX1", "ABCYX"):
        with pytest.raises(InputError, match="axes"):
            nlrn.denoise(array, model=weights, axes=letters)
    with pytest.raises(InputError, match="colour"):
        Axes("YXS", (8, 8, 4))
    with pytest.raises(InputError, match="uint8, uint16 or floats"):
        nlrn.denoise(array.astype(np.int32), model=weights, axes="ZYX")
    with pytest.raises(InputError, match="not finite"):
        nlrn.denoise(np.full((2, 32, 40), np.nan, np.float32), model=weights, axes="ZYX")
    with pytest.raises(InputError, match="not of list"):
        nlrn.denoise([[1]], model=weights, axes="YX")  # type: ignore[type-var]
