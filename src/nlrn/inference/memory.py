"""The memory of an image: predicted before any work, and one error where the system refuses it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from nlrn.errors import MemoryBudgetError
from nlrn.inference.settings import Settings
from nlrn.models.nlrn import NLRN
from nlrn.ops import KERNELS, pairs, state_bytes

if TYPE_CHECKING:
    from nlrn.inference.restorer import Restorer

_LOG = logging.getLogger("nlrn")
TILES = (1024, 512, 256, 128)  # sides, tried in turn where the whole image is too large
_ACTIVATIONS = {(False, False): 42, (False, True): 24, (True, False): 50, (True, True): 22}
# bytes a pixel and channel at the peak of a state, by (attention by a fused kernel, bf16)

_REFUSALS = ("allocate", "memory", "bad_alloc", "could not create a primitive")  # the last is oneDNN's


def memory_per_pixel(model: NLRN, height: int, width: int, bf16: bool, neighbors: int = 0) -> float:
    """Bytes a pixel that an image of this size takes at the peak of one pass, convolutions in bf16 or float32.

    Fitted to the presets at 256 to 1024 pixels on a CPU. neighbors: as of Settings.
    """
    c, backend = model.config, model.backend(height, width)
    fused = backend in KERNELS
    size = 2 if fused and bf16 else 4
    carried = state_bytes(batch=1, height=height, width=width, window=c.window, backend=backend, itemsize=size)
    # overwritten; else the one before, the one after, and a freed one whose place the next does not find again
    states = (1 if fused else 3) if c.propagation and c.states > 1 else 0
    together = 2 * neighbors + 1
    states *= len(pairs(together, neighbors))
    sums = 8 * c.channels if neighbors else 0  # the attentions of a plane, added up in float32
    return states * carried / (height * width) + together * _ACTIVATIONS[fused, bf16] * c.channels + sums


def tile_side(
    height: int, width: int, settings: Settings, bytes_of: Callable[[int, int], float], largest: int
) -> int | None:
    """As of `Restorer.tile_for`, of no larger side than `largest`. bytes_of(height, width): what a tile takes."""
    longest = max(height, width)
    if settings.tile is not None:
        return None if settings.tile == 0 or settings.tile >= longest else settings.tile
    if longest <= largest and bytes_of(height, width) <= settings.memory:
        return None
    for side in TILES:
        if side < longest and side <= largest and bytes_of(min(side, height), min(side, width)) <= settings.memory:
            return side
    need = bytes_of(min(TILES[-1], height), min(TILES[-1], width))
    raise MemoryBudgetError(
        f"a tile of {TILES[-1]} pixels needs about {need / 2**20:.0f} MiB, and memory allows"
        f" {settings.memory / 2**20:.0f}: raise the memory, or use a smaller model"
    )


@contextmanager
def within_memory(height: int, width: int) -> Iterator[None]:
    """Around work on an image of that size: an allocator's refusal becomes MemoryBudgetError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it bare
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _REFUSALS):
            raise
        size = f"{width} x {height} pixels at once"
        raise MemoryBudgetError(f"no memory for {size}: use (smaller) tiles, or patch mode") from error


def backing_off(
    restorer: Restorer, shape: tuple[int, ...], work: Callable[[Restorer], np.ndarray]
) -> tuple[np.ndarray, int | None]:
    """(result of `work` with the restorer, None), or with smaller tiles and their side where memory was refused.

    Each attempt starts from the beginning. shape: (height, width) of the result. Raises MemoryBudgetError where there
    are no smaller tiles, in patch mode, and for a tile that was chosen.
    """
    found = None
    while True:
        tried = restorer.limited(found or sys.maxsize)
        try:
            return work(tried), found
        except MemoryBudgetError:
            if restorer.settings.tile is not None or restorer.settings.mode == "patch":
                raise
            side = tried.tile_for(*shape) or max(shape)
            smaller = next((t for t in TILES if t < side), None)
            if smaller is None:
                raise
            what = "the whole image" if side >= max(shape) else f"tiles of {side}"
            _LOG.warning("no memory for %s; continuing with tiles of %d", what, smaller)
            found = smaller
