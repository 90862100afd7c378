"""xarray and dask: the same numbers as of NumPy, computed when they are asked for."""

from __future__ import annotations

from pathlib import Path

import dask.array
import numpy as np
import pytest
import xarray
from test_arrays import counts

import nlrn
from nlrn.errors import ConfigError, InputError


@pytest.mark.parametrize("chunks", [(1, 1, 32, 40), (3, 2, 32, 40), (2, 1, 16, 16)])
def test_dask_gives_what_numpy_gives(weights: Path, chunks: tuple[int, ...]) -> None:
    """Whatever the chunks: range and noise are of all planes of a channel."""
    array = counts(3, 2, 32, 40)
    expected = nlrn.denoise(array, model=weights, axes="ZCYX")
    lazy = nlrn.denoise(dask.array.from_array(array, chunks=chunks), model=weights, axes="ZCYX")
    assert isinstance(lazy, dask.array.Array)
    assert (lazy.dtype, lazy.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)


def test_neighbours_are_of_arrays_in_memory(weights: Path) -> None:
    """xarray holds one; a block of dask does not hold what lies beside it."""
    array = counts(3, 32, 40)
    labelled = nlrn.denoise(xarray.DataArray(array, dims=("z", "y", "x")), model=weights, neighbors=1)
    np.testing.assert_array_equal(labelled.to_numpy(), nlrn.denoise(array, model=weights, axes="ZYX", neighbors=1))
    with pytest.raises(ConfigError, match="not for dask"):
        nlrn.denoise(dask.array.from_array(array), model=weights, axes="ZYX", neighbors=1)


def test_nothing_is_read_before_it_is_asked_for(weights: Path) -> None:
    read: list[int] = []

    def block(block_id: tuple[int, ...] | None = None) -> np.ndarray:
        read.append((block_id or (0,))[0])
        return counts(1, 32, 40)

    source = dask.array.map_blocks(
        block, chunks=((1, 1, 1, 1), (32,), (40,)), dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16)
    )
    lazy = nlrn.denoise(source, 20, weights, axes="ZYX")
    assert read == []
    lazy[:1].compute(scheduler="synchronous")
    assert set(read) == {0, 1, 2, 3}


def test_xarray_keeps_dims_coordinates_and_attributes(weights: Path) -> None:
    array = counts(3, 32, 40)
    given = xarray.DataArray(array, dims=("z", "y", "x"), coords={"z": [0.0, 0.5, 1.0]}, attrs={"unit": "um"})
    got = nlrn.denoise(given, model=weights)
    assert (got.dims, got.attrs) == (given.dims, given.attrs)
    np.testing.assert_array_equal(got.z, given.z)
    np.testing.assert_array_equal(got.values, nlrn.denoise(array, model=weights, axes="ZYX"))
    lazy = nlrn.denoise(given.chunk({"z": 1}), model=weights)
    assert isinstance(lazy.data, dask.array.Array)
    np.testing.assert_array_equal(lazy.values, got.values)
    with pytest.raises(InputError, match="give axes"):
        nlrn.denoise(given.rename(z="depth"), model=weights)
