"""A stack whose planes are made larger: what is written of it, with the tags of the new size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nlrn.errors import InputError
from nlrn.io.chunks import Layout
from nlrn.io.directories import Entry
from nlrn.io.grown import SizeOf, grown_tags
from nlrn.io.image import ImageData
from nlrn.io.stacks import Stack

_ROWS_PER_STRIP = 278


class LargerStack(Stack):
    """A stack as it is written when each of its planes has grown to the size that size_of gives.

    What is read of it has that size and no values yet. Raises InputError where its planes cannot be declared in
    another size, and what size_of raises.
    """

    def __init__(self, stack: Stack, size_of: SizeOf) -> None:
        self.stack, self.size_of = stack, size_of
        self.kind, self.axes, self.sizes, self.lines = stack.kind, stack.axes, stack.sizes, stack.lines
        self.channels, self.one_directory, self.form = stack.channels, stack.one_directory, stack.form
        size_of(*stack.size(0))
        _, lost = self._tags(0)
        if lost and self.one_directory and set(lost) != {"regions (ROI)"}:
            raise InputError(f"its planes are declared by {lost[0]}, in their size: save it as a plain TIFF stack")
        self.notes = (*stack.notes, *((f"left out, in pixels of before: {', '.join(lost)}",) if lost else ()))

    def __len__(self) -> int:
        return len(self.stack)

    def channel(self, index: int) -> int:
        """The number of the channel of a plane."""
        return self.stack.channel(index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a plane."""
        return self.size_of(*self.stack.size(index))

    def read(self, index: int) -> ImageData:
        """A plane of the new size, black, which takes no memory for it. Raises InputError."""
        return self.stack.read(index).of_size(*self.size(index))

    def layout(self, index: int) -> Layout:
        """Tiles and strips as they were, but for a plane of one strip, which stays one."""
        layout, (height, width) = self.stack.layout(index), self.size(index)
        if layout.tiled:
            return layout
        rows = height if layout.chunk[0] >= self.stack.size(index)[0] else layout.chunk[0]
        return replace(layout, chunk=(rows, width))

    def entries(self, index: int) -> dict[int, Entry]:
        """The tags of the result's page, all but where its strips or tiles lie."""
        entries, _ = self._tags(index)
        layout = self.layout(index)
        if not layout.tiled:
            entries[_ROWS_PER_STRIP] = self.form.places([layout.chunk[0]])
        return entries

    def _tags(self, index: int) -> tuple[dict[int, Entry], tuple[str, ...]]:
        calibrated = self.kind in ("OME-TIFF", "ImageJ stack")
        return grown_tags(self.stack.entries(index), self.size_of, self.form, calibrated=calibrated)

    def stored(self, index: int, values: np.ndarray) -> np.ndarray:
        """[H, W, samples] as the page stores them."""
        return self.stack.stored(index, values)
