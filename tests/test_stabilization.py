"""Noise of counted photons: the transform and its inverse against expectations summed by hand, and what it is worth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from networks import random_model
from PIL import Image

import nlrn
from nlrn.cli import run
from nlrn.errors import ConfigError, InputError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.metrics import psnr, quantize8
from nlrn.inference.restorer import Restorer
from nlrn.models.nlrn import NLRN, NLRNConfig

CAMERA = Path(__file__).resolve().parents[1] / "examples" / "camera.png"


def moments(noise: PoissonNoise, photons: float) -> tuple[float, float]:
    """Mean and standard deviation of the transform of a pixel: over the counts, and over the read noise."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    counts = np.arange(int(photons + 14 * math.sqrt(photons) + 40))
    log_factorial = np.array([math.lgamma(k + 1) for k in counts])
    chances = np.exp(counts * math.log(photons) - photons - log_factorial)[:, None] * (weights / weights.sum())
    values = noise.stabilized(noise.gain * counts[:, None] + noise.read_noise * points)
    mean = float((chances * values).sum())
    return mean, math.sqrt(float((chances * (values - mean) ** 2).sum()))


@pytest.mark.pairwise
@pytest.mark.parametrize("gain", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("read", [0.0, 0.5, 1.0, 3.0])  # in photons
@pytest.mark.parametrize("photons", [0.2, 1.0, 3.0, 10.0, 100.0, 1000.0])
def test_the_inverse_undoes_the_mean_and_the_deviation_is_one(gain: float, read: float, photons: float) -> None:
    noise = PoissonNoise(gain, read * gain)
    mean, deviation = moments(noise, photons)
    allowed = 0.2 if photons < 1 and read else 0.04
    assert float(noise.mean_of(np.array(mean))) / gain == pytest.approx(photons, abs=allowed)
    if photons >= 3:
        assert deviation == pytest.approx(1, abs=0.06)


def test_the_algebraic_inverse_would_be_biased() -> None:
    mean, _ = moments(PoissonNoise(1.0), 1.0)
    assert mean**2 / 4 - 3 / 8 < 0.9


def test_simulated_noise_has_its_mean_and_variance() -> None:
    noise = PoissonNoise(2.5, 4.0)
    drawn = noise.add(np.full((400, 400), 60.0), seed=3)
    assert drawn.mean() == pytest.approx(60, abs=0.15)
    assert drawn.var() == pytest.approx(2.5 * 60 + 16, rel=0.02)
    assert np.array_equal(drawn, noise.add(np.full((400, 400), 60.0), seed=3))


@pytest.mark.parametrize(
    ("peak", "read"), [(30, 0.0), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((30, 1.0), (10, 0.0))), (4, 1.0)]
)
def test_it_is_better_than_the_plain_way(peak: int, read: float) -> None:
    """On a photograph, by at least 1.5 dB over the plain way with the better of the estimated and the true sigma."""
    clean = np.asarray(Image.open(CAMERA))[60:252, 150:342] / 255
    noise = PoissonNoise(255 / peak, read * 255 / peak)
    noisy = noise.add(clean * 255) / 255
    restorer = Restorer()
    true = min(75.0, 255 * float(np.std(noisy - clean)))
    plain = max(psnr(clean, quantize8(restorer.denoise(noisy, sigma))) for sigma in ("auto", true))
    restored = restorer.denoise(noisy, noise)
    assert psnr(clean, quantize8(restored)) > plain + 1.5
    assert abs(restored.mean() - clean.mean()) < 0.01


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_small_bright_things_on_the_dark_survive(gain: float) -> None:
    """Cells, stars: less than a pixel in a hundred, far above the rest."""
    clean = np.full((128, 128), 0.004)
    clean[60:66, 60:66] = 1.0
    clean[20, 100] = clean[100, 30] = 0.8
    noise = PoissonNoise(gain)
    noisy = noise.add(clean * 255) / 255
    restored = Restorer().denoise(noisy, noise)
    bright = clean > 0.5
    # at a gain of 0.05 the noise is a quarter of a level of 255, about what the model itself leaves
    assert np.sqrt(np.mean((restored - clean) ** 2)) < np.sqrt(np.mean((noisy - clean) ** 2)) + 0.1 / 255
    assert np.abs(restored - clean)[60:66, 60:66].mean() < 0.1
    assert restored[bright].min() > 0.4


def test_colour_alpha_and_dtypes() -> None:
    model, random = random_model(), np.random.RandomState(0)
    noise = PoissonNoise(8.0, 2.0)
    image = random.randint(0, 256, (20, 24, 3)).astype(np.uint8)
    out = nlrn.denoise(image, noise, model)
    assert (out.dtype, out.shape) == (image.dtype, image.shape)
    alpha = np.ones((20, 24))
    alpha[:5] = 0
    scaled = image / 255
    restored = Restorer(model).denoise(scaled, noise, alpha=alpha)
    assert np.array_equal(restored[:5], scaled[:5])
    scaled[:5] = 0.5  # what is invisible does not reach the rest
    assert np.array_equal(Restorer(model).denoise(scaled, noise, alpha=alpha)[5:], restored[5:])


def test_strong_noise_stays_within_what_the_model_knows() -> None:
    shown = []
    PoissonNoise(200.0).removed(np.random.RandomState(0).random((20, 20)), lambda x, sigma: shown.append(sigma) or x)  # type: ignore[func-returns-value]
    assert shown == [75.0]


def test_bad_noise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for gain, read in ((0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.inf)):
        with pytest.raises(ConfigError, match="must be a number"):
            PoissonNoise(gain, read)
    blind = NLRN(NLRNConfig(channels=8, embed_channels=4, states=2, window=5)).eval()
    with pytest.raises(ConfigError, match="receives the level of white noise"):
        Restorer(blind).denoise(np.zeros((20, 20)), PoissonNoise(1.0))
    with pytest.raises(InputError, match="finite"):
        Restorer(random_model()).denoise(np.full((20, 20), np.nan), PoissonNoise(1.0))
    out = tmp_path / "out.png"
    for words, message in (
        (["--noise", "poisson", "--read-noise", "2"], "requires a gain"),
        (["--noise", "poisson", "--gain", "8", "--gain-adu", "8"], "not both"),
        (["--black-level-adu", "8"], "belong to poisson noise"),
        (["--noise", "poisson", "--gain", "8", "--sigma", "5"], "takes no sigma"),
        (["--gain", "8"], "belong to poisson noise"),
        (["--noise", "poisson", "--gain", "0"], "outside"),
    ):
        assert run(["denoise", str(CAMERA), "-o", str(out), *words]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_what_the_restorer_gives(tmp_path: Path) -> None:
    clean = np.asarray(Image.open(CAMERA))[60:124, 150:214]
    noise = PoissonNoise(8.5, 3.0)
    Image.fromarray(np.clip(np.rint(noise.add(clean)), 0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    words = ["--noise", "poisson", "--gain", "8.5", "--read-noise", "3", "-q"]
    assert run(["denoise", str(tmp_path / "noisy.png"), "-o", str(tmp_path / "out.png"), *words]) == 0
    noisy = np.asarray(Image.open(tmp_path / "noisy.png"))
    expected = np.rint(np.clip(Restorer().denoise(noisy / np.float32(255), noise), 0, 1) * 255)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
