"""The axes of a stack, letters and sizes, and what they say of its planes: their channels, and which lie side by side.

Letters are tifffile's: T, Z, C for channels, Q where a file names none; not Y, X and S, which are of a plane.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from nlrn.errors import InputError


def split(axes: str, planes: int) -> tuple[str, tuple[int, ...]]:
    """Letters and sizes of what `--axes` says of so many planes: "ZYX", or "TC2YX", each letter but one with its size.

    Letters of planes are T, Z, C and others, not X, Y (which may stand at the end) and S. Raises InputError.
    """
    text = axes.upper()
    for end in ("YXS", "YX"):
        text = text.removesuffix(end)
    pairs = re.findall(r"([A-Z])([0-9]*)", text)
    letters, numbers = "".join(letter for letter, _ in pairs), [number for _, number in pairs]
    if "".join(map("".join, pairs)) != text or len({*letters, *"XYS"}) < len(letters) + 3:
        raise InputError(f"axes {axes!r}: expected letters, each once, such as ZYX, or with a size: TC2YX")
    known = math.prod(int(number) for number in numbers if number)
    if numbers.count("") > 1 or (not letters and planes > 1) or known < 1 or planes % known:
        raise InputError(
            f"axes {axes!r} for {planes} planes: give the size of every axis but one, such as TC2YX, so that"
            f" their product is {planes}"
        )
    sizes = tuple(int(number) if number else planes // known for number in numbers)
    if math.prod(sizes) != planes:
        raise InputError(f"axes {axes!r} are of {math.prod(sizes)} planes, and the file has {planes}")
    return letters, sizes


def leading(series: Any, planes: int) -> tuple[str, tuple[int, ...]]:
    """The axes of the planes as the file says them, without those of length 1."""
    pairs = zip(series.get_axes(False), series.get_shape(False), strict=True)
    found = [(letter, int(size)) for letter, size in pairs if letter not in "YXS" and size > 1]
    if math.prod(size for _, size in found) != planes:
        return "Q", (planes,)
    return "".join(letter for letter, _ in found), tuple(size for _, size in found)


def channels_of(letters: str, sizes: tuple[int, ...]) -> list[int]:
    """The channel of each plane, in the order of the axes."""
    planes = np.arange(math.prod(sizes))
    if "C" not in letters:
        return [0] * len(planes)
    return np.unravel_index(planes, sizes)[letters.index("C")].tolist()


def lines_of(letters: str, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(line, place in it) of each plane, in the order of these axes.

    A line is of the planes that differ along the innermost axis but C, the channels, of more than one plane.
    """
    planes = np.arange(int(np.prod(sizes)))
    axes = [axis for axis, size in enumerate(sizes) if letters[axis] != "C" and size > 1]
    if not axes:
        return [(plane, 0) for plane in planes.tolist()]
    places = list(np.unravel_index(planes, sizes))
    along, places[axes[-1]] = places[axes[-1]], np.zeros_like(planes)
    return list(zip(np.ravel_multi_index(places, tuple(sizes)).tolist(), along.tolist(), strict=True))


class Lines:
    """Which planes lie beside each other: of one line, at places that follow each other."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self._places = list(places)
        self._numbers = {place: number for number, place in enumerate(self._places)}

    @property
    def any(self) -> bool:
        """Whether any plane has another beside it."""
        return any(place > 0 for _, place in self._places)

    def beside(self, index: int, reach: int) -> tuple[list[int], list[int]]:
        """The numbers of up to `reach` planes before a plane, and after it."""
        line, at = self._places[index]
        before, after = (
            [self._numbers[line, place] for place in places if (line, place) in self._numbers]
            for places in (range(at - reach, at), range(at + 1, at + reach + 1))
        )
        return before, after
