"""Stacks as arrays: NumPy, torch, xarray and dask, with any leading axes; a dask array lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError, InputError
from nlrn.functional.ranges import checked_image, on_unit_scale
from nlrn.inference.beside import ALONE, Beside
from nlrn.inference.kinds import LEVELS
from nlrn.inference.pipeline import Denoising, RestorerFor, denoised_array
from nlrn.inference.self_ensemble import Progress
from nlrn.inference.stacks import (
    Channel,
    beside,
    channels_for,
    check_lines,
    chosen_planes,
    sample_of,
    samples_of,
)
from nlrn.io.axes import Lines, channels_of, lines_of
from nlrn.io.image import rounded
from nlrn.io.stacks import float_levels

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Axes:
    """Letters of an array's axes: Y, X, perhaps S (colour, the last three), C (channels, each by itself), and others.

    Raises InputError for letters that are missing, twice, or not one for each axis.
    """

    letters: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        letters = self.letters
        if not isinstance(letters, str) or len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters):
            raise InputError(f"axes {letters!r}: expected letters, each once, Y and X among them, such as ZYX or TCYX")
        if len(letters) != len(self.shape) or 0 in self.shape:
            raise InputError(f"axes {letters!r} for an array of shape {self.shape}: expected a letter for each axis")
        if "S" in letters and self.shape[letters.index("S")] not in (1, 3):
            raise InputError(f"axis S has {self.shape[letters.index('S')]} samples; expected 1 or 3 of colour")

    @property
    def order(self) -> list[int]:
        """The axes with those of a plane last: Y, X, S."""
        return sorted(range(len(self.letters)), key=lambda axis: "YXS".find(self.letters[axis]))

    @property
    def leading(self) -> tuple[str, tuple[int, ...]]:
        """Letters and sizes of the other axes."""
        outer = [axis for axis in self.order if self.letters[axis] not in "YXS"]
        return "".join(self.letters[axis] for axis in outer), tuple(self.shape[axis] for axis in outer)

    def planes(self, array: np.ndarray) -> np.ndarray:
        """[planes, Y, X] or [planes, Y, X, S] of the array or of a block of it."""
        moved = array.transpose(self.order)
        return moved.reshape(-1, *moved.shape[len(self.leading[0]) :])

    def restored(self, planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `planes`, of an array or block of this shape."""
        moved = planes.reshape([shape[axis] for axis in self.order])
        return moved.transpose(np.argsort(self.order))

    def lines(self) -> Lines:
        """Which planes lie beside each other."""
        return Lines(lines_of(*self.leading))

    def channels(self, first: int = 0) -> list[int]:
        """The channel of each plane; first: the number of the first."""
        return [first + channel for channel in channels_of(*self.leading)]


class PlaneArrays(Protocol):
    """Planes YX or YXS by their number: a list, an array, or what reads them when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> np.ndarray: ...


class _Planes:
    """Planes of an array on the scale where `levels` is 1."""

    def __init__(self, planes: PlaneArrays, channels: Sequence[int], levels: float) -> None:
        self.planes, self.channels, self.levels = planes, channels, levels

    def __len__(self) -> int:
        return len(self.planes)

    def channel(self, index: int) -> int:
        """Of a plane."""
        return self.channels[index]

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """A plane, without alpha."""
        return unit(self.planes[index], self.levels), None


def unit(plane: np.ndarray, levels: float) -> np.ndarray:
    """A plane as floats, 1 where its values are `levels`. Raises InputError for what is not finite."""
    kept = plane if plane.dtype == np.float64 else plane.astype(np.float32, copy=False)
    return checked_image(kept / kept.dtype.type(levels) if levels != 1 else kept, (-1e30, 1e30))


def is_labelled(image: Any) -> bool:
    """Whether it is an xarray or a dask array."""
    return type(image).__module__.partition(".")[0] in ("xarray", "dask")


def denoise_planes(
    image: Any, axes: str | None, restorer_for: RestorerFor, asked: Denoising, neighbors: int = 0
) -> Any:
    """Every plane of an array denoised, with one range, and one noise level unless asked, for each of its channels.

    image: NumPy array, torch tensor, xarray.DataArray or dask array; axes: its letters, None for those that an
    xarray's dimensions have. The result is of the same kind, type and shape; of dask it is computed when it is asked
    for. neighbors: planes before and after each that it is restored with, as of Settings, which the restorer has too.
    Raises InputError for another kind, dtype or axes, ConfigError for neighbours that there are none of, or of dask.
    """
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array
        return torch.from_numpy(_restored(array.numpy(), _axes(axes), restorer_for, asked, neighbors)).to(image)
    if isinstance(image, np.ndarray):
        if isinstance(image, np.ma.MaskedArray):
            raise InputError("a masked array: nothing is restored under a mask; fill it (.filled)")
        return _restored(image, _axes(axes), restorer_for, asked, neighbors)
    if hasattr(image, "dims") and hasattr(image, "copy") and hasattr(image, "data"):  # xarray
        letters = axes or "".join(str(name)[:1].upper() if len(str(name)) == 1 else "?" for name in image.dims)
        if axes is None and "?" in letters:
            raise InputError(f"dimensions {tuple(image.dims)} are no letters: give axes, such as axes='ZYX'")
        return image.copy(data=denoise_planes(image.data, letters, restorer_for, asked, neighbors))
    if hasattr(image, "map_blocks") and hasattr(image, "rechunk"):  # dask
        if neighbors:
            raise ConfigError(
                "neighbors are not for dask, whose blocks are restored by themselves: .compute() it first"
            )
        return _lazily(image, _axes(axes), restorer_for, asked)
    raise InputError(f"axes are of a NumPy array, a torch tensor, xarray or dask, not of {type(image).__name__}")


def _axes(axes: str | None) -> str:
    if axes is None:
        raise InputError("give axes, a letter for each axis, such as axes='ZYX'")
    return axes.upper() if isinstance(axes, str) else axes


def _checked_type(dtype: Any) -> np.dtype[Any]:
    if np.dtype(dtype).name not in (*LEVELS, *_FLOATS):
        raise InputError(f"expected uint8, uint16 or floats; got {dtype}")
    return np.dtype(dtype)


def _restored(
    array: np.ndarray, letters: str, restorer_for: RestorerFor, asked: Denoising, neighbors: int
) -> np.ndarray:
    axes = Axes(letters, tuple(array.shape))
    check_lines(axes.lines(), neighbors)
    planes, channels = axes.planes(array), axes.channels()
    of = (restorer_for, asked)
    done = list(each_restored(planes, channels, array.dtype, *of, lines=axes.lines(), neighbors=neighbors))
    return np.ascontiguousarray(axes.restored(np.stack(done), tuple(array.shape)))


def each_restored(
    planes: PlaneArrays,
    channels: Sequence[int],
    dtype: Any,
    restorer_for: RestorerFor,
    asked: Denoising,
    tick: Callable[[int], None] = lambda done: None,
    progress: Progress | None = None,
    lines: Lines | None = None,
    neighbors: int = 0,
) -> Iterator[np.ndarray]:
    """Each plane YX or YXS restored, one after the other, by what is found in all of them.

    planes: read by their number, twice each; channels: of each plane; dtype: of all. tick(done): planes that have been
    looked at; progress: of the tiles of a plane. lines: of Axes; neighbors, and what it raises: as of `denoise_planes`.
    """
    view = _Planes(planes, channels, 1.0)
    levels, found = _plan(samples_of(view, tick), view, restorer_for, asked, _checked_type(dtype))
    for index in range(len(planes)):
        around = ALONE if lines is None else beside(view, lines, index, neighbors)
        yield _plane(planes[index], found[channels[index]], restorer_for, levels, progress, around)


def _plan(
    samples: list[np.ndarray], view: _Planes, restorer_for: RestorerFor, asked: Denoising, dtype: np.dtype[Any]
) -> tuple[float, list[Channel]]:
    """The value that is 1, and how each channel is restored."""
    levels: float | None = LEVELS.get(dtype.name)
    if levels is None:
        levels = float_levels(min(float(s.min()) for s in samples), max(float(s.max()) for s in samples))
    view.levels = levels
    on_unit_scale(asked.value_range, levels)
    return levels, channels_for(view, [s / np.float32(levels) for s in samples], restorer_for, asked, levels)


def _plane(
    plane: np.ndarray,
    channel: Channel,
    restorer_for: RestorerFor,
    levels: float,
    progress: Progress | None = None,
    around: Beside = ALONE,
) -> np.ndarray:
    """As it was given: integers rounded and clipped, floats neither."""
    result = denoised_array(
        unit(plane, levels), None, restorer_for, channel.asked, levels=levels, progress=progress, beside=around
    ).array
    if plane.dtype.name in LEVELS:
        return rounded(result, 8 * plane.dtype.itemsize)
    return (result * result.dtype.type(levels)).astype(plane.dtype)


# -- dask -------------------------------------------------------------------------------------------------------------


def _lazily(image: Any, letters: str, restorer_for: RestorerFor, asked: Denoising) -> Any:
    """By blocks of whole planes: their samples, then the plan of all, then each block by it."""
    from dask.delayed import delayed

    axes, dtype = Axes(letters, tuple(image.shape)), _checked_type(image.dtype)
    whole = image.rechunk({axis: -1 for axis, letter in enumerate(letters) if letter in "YXS"})
    members = axes.channels()
    shares = max(1, len(members) // (max(members) + 1)), max(members) + 1
    firsts = _first_channels(whole, axes)
    samples = [
        delayed(_block_samples)(block, axes, firsts[place], shares)
        for place, block in np.ndenumerate(whole.to_delayed())
    ]
    channels = [[i for i, c in enumerate(members) if c == channel] for channel in range(max(members) + 1)]
    some = sorted(index for channel in channels for index in chosen_planes(channel))
    flat, sizes = whole.transpose(axes.order), axes.leading[1]
    planes = [flat[np.unravel_index(index, sizes)] if sizes else flat for index in some]
    plan = delayed(_lazy_plan)(samples, planes, [members[index] for index in some], restorer_for, asked, dtype)
    return whole.map_blocks(
        _block,
        axes=axes,
        restorer_for=restorer_for,
        plan=plan,
        firsts=firsts,
        dtype=dtype,
        meta=np.empty((0,) * image.ndim, dtype),
    )


def _first_channels(whole: Any, axes: Axes) -> dict[tuple[int, ...], int]:
    """By the place of a block, the number of its first channel."""
    if "C" not in axes.letters:
        return dict.fromkeys(np.ndindex(whole.numblocks), 0)
    axis = axes.letters.index("C")
    starts = np.cumsum([0, *whole.chunks[axis]])
    return {place: int(starts[place[axis]]) for place in np.ndindex(whole.numblocks)}


def _block_samples(block: np.ndarray, axes: Axes, first: int, shares: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """(channel, an even choice of the pixels) of each plane of a block. shares: planes of a channel, and channels."""
    planes = axes.planes(block)
    return [
        (channel, sample_of(unit(plane, 1.0), *shares))
        for plane, channel in zip(planes, Axes(axes.letters, block.shape).channels(first), strict=True)
    ]


def _lazy_plan(
    samples: list[list[tuple[int, np.ndarray]]],
    planes: list[np.ndarray],
    channels: list[int],
    restorer_for: RestorerFor,
    asked: Denoising,
    dtype: np.dtype[Any],
) -> tuple[float, list[Channel]]:
    every = [pair for block in samples for pair in block]
    of_channels = [np.concatenate([s for c, s in every if c == channel]) for channel in range(max(channels) + 1)]
    return _plan(of_channels, _Planes(planes, channels, 1.0), restorer_for, asked, dtype)


def _block(
    block: np.ndarray,
    axes: Axes,
    restorer_for: RestorerFor,
    plan: tuple[float, list[Channel]],
    firsts: dict[tuple[int, ...], int],
    block_id: tuple[int, ...] | None = None,
) -> np.ndarray:
    levels, channels = plan
    planes, numbers = axes.planes(block), Axes(axes.letters, block.shape).channels(firsts[block_id or ()])
    done = [_plane(plane, channels[c], restorer_for, levels) for plane, c in zip(planes, numbers, strict=True)]
    return axes.restored(np.stack(done), block.shape)
