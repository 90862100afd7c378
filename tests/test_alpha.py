"""Hidden colour touches nothing that is seen."""

from __future__ import annotations

import numpy as np
import pytest
from networks import FP32, random_image, random_model
from PIL import Image

import nlrn
from nlrn.errors import InputError
from nlrn.functional.alpha import fill_hidden
from nlrn.inference.restorer import Restorer


def test_visible_pixels_are_kept_and_holes_take_the_colour_around_them() -> None:
    for shape in ((17, 23), (17, 23, 3), (1, 9, 3), (64, 64)):
        image, alpha = random_image(*shape), np.random.RandomState(2).randint(0, 2, shape[:2])
        filled = fill_hidden(image, alpha)
        np.testing.assert_array_equal(filled[alpha > 0], image[alpha > 0])
        assert filled.min() >= image[alpha > 0].min() - 1e-6
        assert filled.max() <= image[alpha > 0].max() + 1e-6
    constant = np.where(np.arange(40) < 3, 0.25, 0.9)[None].repeat(30, axis=0)
    np.testing.assert_allclose(fill_hidden(constant, constant == 0.25), 0.25, atol=1e-6)


def test_an_image_that_is_all_hidden_or_all_visible() -> None:
    image = random_image(9, 7, 3)
    assert fill_hidden(image, np.full((9, 7), 255)) is image
    assert np.isfinite(fill_hidden(image, np.zeros((9, 7)))).all()
    with pytest.raises(InputError, match="alpha"):
        fill_hidden(image, np.zeros((7, 9)))


@pytest.mark.parametrize("sigma", [25, "auto"])
def test_hidden_colour_changes_nothing_visible_and_comes_back(sigma: float | str) -> None:
    image, alpha = random_image(40, 48, 3), np.full((40, 48), 200, np.uint8)
    alpha[10:30, 20:] = 0
    other = np.where((alpha == 0)[..., None], 1 - image, image)
    restorer = Restorer(random_model(), settings=FP32)
    one, two = (restorer.denoise(x, sigma, alpha=alpha) for x in (image, other))
    np.testing.assert_array_equal(one[alpha > 0], two[alpha > 0])
    np.testing.assert_array_equal(one[alpha == 0], image[alpha == 0])
    np.testing.assert_array_equal(two[alpha == 0], other[alpha == 0])
    bytes_ = [np.dstack((np.rint(x * 255).astype(np.uint8), alpha)) for x in (image, other)]
    seen = [np.asarray(nlrn.denoise(Image.fromarray(x), sigma, random_model())) for x in bytes_]
    np.testing.assert_array_equal(seen[0][alpha > 0], seen[1][alpha > 0])
    np.testing.assert_array_equal(seen[0][alpha == 0], bytes_[0][alpha == 0])
