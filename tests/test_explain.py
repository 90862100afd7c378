"""The maps of one pixel: the definition's own numbers, the part that is run is enough, and an image of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import FP32, random_image, random_model
from PIL import Image

from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.evaluation.explain import Maps, correlation_maps, draw, explain
from nlrn.functional.degradations import add_gaussian_noise
from nlrn.inference.restorer import Restorer
from nlrn.ops import correlation_to_dense
from nlrn.ops.reference import valid_offsets


def whole(restorer: Restorer, image: np.ndarray, sigma: float) -> list[np.ndarray]:
    """The softmax of every state of the whole image, [H, W, q, q], by the dense correlations."""
    model, found = restorer.model, []
    height, width, window = *image.shape, model.config.window

    def observe(_: int, state: torch.Tensor) -> None:
        sizes = {"batch": 1, "height": height, "width": width, "window": window}
        dense = correlation_to_dense(state, **sizes, backend=model.backend(height, width))[0]
        dense = dense.masked_fill(~valid_offsets(height, width, window, dense.device), -torch.inf)
        found.append(dense.flatten(2).softmax(-1).view_as(dense).numpy())

    with torch.inference_mode():
        model(torch.from_numpy(image)[None, None], sigma / 255, observer=observe)
    return found


@pytest.mark.parametrize("at", [(0, 0), (59, 2), (31, 40), (5, 79)])
def test_the_maps_are_those_of_the_whole_image(at: tuple[int, int]) -> None:
    restorer, image = Restorer(random_model(), settings=FP32), random_image(80, 60)
    assert restorer.model.receptive_radius < 30  # so that a part is run indeed
    maps = correlation_maps(restorer, image, at, 25)
    x, y = at
    q = restorer.model.config.window
    assert maps.states.shape == (restorer.model.config.states, q, q)
    for found, expected in zip(maps.states, whole(restorer, image, 25), strict=True):
        np.testing.assert_allclose(found, expected[y, x], rtol=1e-4, atol=1e-7)
        assert found.sum() == pytest.approx(1, abs=1e-5)
    assert maps.image.shape == (q, q)
    assert maps.image[maps.centre] == image[y, x]
    entropy = -(maps.states * np.log(np.where(maps.states > 0, maps.states, 1))).sum((1, 2))
    np.testing.assert_allclose(maps.neighbours, np.exp(entropy), rtol=1e-4)


def test_a_model_without_window_is_shown_on_the_authors_patch() -> None:
    restorer = Restorer(random_model(window=None), settings=FP32)
    maps = correlation_maps(restorer, random_image(80, 60), (50, 40), 25)
    assert maps.states.shape[1:] == maps.image.shape == (45, 32)  # cut off at the right border
    np.testing.assert_allclose(maps.states.sum((1, 2)), 1, atol=1e-5)


def test_the_noisy_row_holds_the_noise_and_the_clean_one_none() -> None:
    restorer, image = Restorer(random_model(), settings=FP32), random_image(30, 40)
    clean, noisy = explain(restorer, image, (20, 15), 50, seed=3)
    assert (clean.sigma, noisy.sigma) == (0, 50)
    r = clean.centre[0]
    expected = add_gaussian_noise(image, 50, 3).astype(np.float32)
    for maps, seen in ((clean, image), (noisy, expected)):
        np.testing.assert_array_equal(maps.image, seen[15 - r : 16 + r, 20 - r : 21 + r])
    assert not np.array_equal(clean.states, noisy.states)


def test_a_colour_image_is_seen_by_a_grey_model_as_its_luma() -> None:
    restorer, image = Restorer(random_model(), settings=FP32), random_image(30, 40, 3)
    luma = (image @ np.array([0.299, 0.587, 0.114])).astype(np.float32)
    found, expected = (correlation_maps(restorer, x, (9, 8), 15) for x in (image, luma))
    np.testing.assert_allclose(found.states, expected.states, atol=1e-6)


def test_a_pixel_outside_and_a_noise_of_nothing_are_refused() -> None:
    restorer, image = Restorer(random_model(), settings=FP32), random_image(30, 40)
    for at in ((40, 0), (0, 30), (-1, 0)):
        with pytest.raises(InputError, match="outside the image of 40 x 30"):
            correlation_maps(restorer, image, at, 25)
    for sigma in (0, 76):
        with pytest.raises(InputError, match="sigma"):
            explain(restorer, image, (3, 3), sigma)


def test_the_drawing_is_brightest_where_the_correlation_is_largest(tmp_path: Path) -> None:
    states = np.zeros((2, 5, 5), np.float32)
    states[0, 0, 0] = states[1, 4, 4] = 1
    draw([Maps(np.full((5, 5), 0.5, np.float32), states, (2, 2), 0.0)], tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as file:
        drawn = np.asarray(file.convert("L")).astype(float)
    third = drawn.shape[1] // 3
    for cell, turn in ((drawn[:, third : 2 * third], 1), (drawn[:, 2 * third :], -1)):
        dark = cell < 5  # the map's field of zeros, wider than any letter
        rows, columns = (np.flatnonzero(dark.mean(axis) > 0.3) for axis in (1, 0))
        field = cell[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][::turn, ::turn]
        tenth = field.shape[0] // 10
        assert field[tenth, tenth] > 150
        assert field[-tenth, -tenth] < 5


def test_the_command_draws_and_tells_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray((random_image(40, 50) * 255).clip(0, 255).astype(np.uint8)).save(tmp_path / "in.png")
    source, out = str(tmp_path / "in.png"), str(tmp_path / "map.png")
    assert run(["explain", source, "--at", "20,10", "-o", out]) == 0
    said = capsys.readouterr().out
    assert "state 6" in said
    assert "wrote" in said
    with Image.open(out) as drawn:
        assert drawn.width > 500
    for arguments, code, words in (
        (["--at", "20,10", "-o", out], 1, "exists already"),
        (["--at", "50,10", "-o", out, "--overwrite"], 1, "outside"),
        (["--at", "20", "-o", out, "--overwrite"], 2, "column,row"),
        (["--at", "2,1", "-o", str(tmp_path / "no" / "map.png")], 1, "no folder"),
        (["--at", "2,1", "-o", out, "--overwrite", "--sigma", "0"], 1, "sigma"),
    ):
        assert run(["explain", source, *arguments]) == code
        assert words in capsys.readouterr().err
