"""scripts/crops.py: the square that is shown, and the sheet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import crops


def test_the_square_lies_where_the_edges_are() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    image[33:45, 50:62] = np.random.RandomState(0).randint(0, 256, (12, 12, 1))
    down, right = crops.square_with_edges(image, 16)
    assert down.start <= 32 < 46 <= down.stop
    assert right.start <= 49 < 63 <= right.stop


class Pale:
    """Gives an image back as it is, or enlarged to an even grey."""

    def upscale(self, low: np.ndarray, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), low.mean())

    def denoise(self, noisy: np.ndarray, sigma: float) -> np.ndarray:
        return noisy


@pytest.mark.parametrize("task", ["sr", "denoise"])
def test_a_sheet_shows_the_same_square_of_every_column(task: str) -> None:
    image = np.random.RandomState(1).randint(0, 256, (61, 50, 3)).astype(np.uint8)
    truth, cells = crops.enlarged(image, 3, Pale()) if task == "sr" else crops.denoised(image, 25, Pale())  # type: ignore[arg-type]
    assert truth.shape == ((60, 48, 3) if task == "sr" else image.shape)
    assert len(cells) == (4 if task == "sr" else 3)
    assert all(column.shape == truth.shape for _, column in cells)
    page = np.asarray(crops.sheet([(truth, cells)] * 2, 24, 3))
    cell = 3 * 24
    assert page.shape == (2 * (cell + crops.BAND), len(cells) * (cell + crops.GAP) - crops.GAP, 3)
    shown = page[crops.BAND : crops.BAND + cell : 3, -cell::3]
    assert (shown == truth[crops.square_with_edges(truth, 24)]).all()
