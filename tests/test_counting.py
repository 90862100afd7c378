"""The gain and the read noise of photons, estimated: against what was simulated, and what the restored image loses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import nlrn
from nlrn.cli import run
from nlrn.errors import InputError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.counting import estimate_photons
from nlrn.inference.restorer import Restorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import measure_photons


@pytest.mark.parametrize("peak", measure_photons.PEAKS)
def test_fluorescence_with_everything_estimated_loses_little(peak: int) -> None:
    """Within 0.2 dB of the true numbers, from a stack of 4 planes."""
    restorer = Restorer("denoise-gray-small")
    for read in measure_photons.READ_NOISES:
        found = measure_photons.measured(peak, read, 4, 128, 1, restorer)
        assert found.lost < 0.2, (read, found)
        assert abs(found.gain) < 0.25, (read, found)


@pytest.mark.parametrize("black", [0.0, 25.0])
def test_the_line_of_a_ramp_is_found(black: float) -> None:
    """No detail: gain and read noise to a few percent, whatever the black level that is known."""
    ramp = black + np.linspace(5, 150, 512 * 512).reshape(512, 512)
    for gain, read in ((0.5, 2.0), (4.0, 3.0)):
        found = estimate_photons([PoissonNoise(gain, read, black).add(ramp, seed=3)], black)
        assert found.gain == pytest.approx(gain, rel=0.06)
        assert found.read_noise**2 == pytest.approx(read**2, abs=0.1 * read**2 + 1.0 * gain)


def test_an_unknown_black_level_is_a_part_of_the_line() -> None:
    """Variance gain x mean + constant: the transform depends on nothing else."""
    image = 20 + np.linspace(5, 150, 256 * 256).reshape(256, 256)
    noisy = PoissonNoise(2.0, 1.0, 20.0).add(image)
    known, unknown = estimate_photons([noisy], 20.0), estimate_photons([noisy])
    assert unknown.black > 10
    np.testing.assert_allclose(unknown.stabilized(noisy), known.stabilized(noisy), atol=0.15)


def test_black_is_taken_off_and_put_back() -> None:
    noise, raised = PoissonNoise(3.0, 2.0), PoissonNoise(3.0, 2.0, 40.0)
    image = np.linspace(0, 200, 64 * 64).reshape(64, 64)
    np.testing.assert_allclose(raised.stabilized(image + 40), noise.stabilized(image), rtol=1e-12)
    np.testing.assert_allclose(raised.mean_of(noise.stabilized(image)), noise.mean_of(noise.stabilized(image)) + 40)
    assert raised.times(0.5) == PoissonNoise(1.5, 1.0, 20.0)


def test_what_has_no_photons_is_refused() -> None:
    random = np.random.default_rng(0)
    ramp = np.linspace(20, 200, 256 * 256).reshape(256, 256)
    with pytest.raises(InputError, match="nothing varies"):
        estimate_photons([np.full((64, 64), 30.0)])
    with pytest.raises(InputError, match="at least 32"):
        estimate_photons([np.ones((16, 64))])
    with pytest.raises(InputError, match="does not grow"):
        estimate_photons([ramp + 0.05 * (220 - ramp) * random.standard_normal(ramp.shape)])


def test_units_of_the_camera_are_those_of_0_to_255(tmp_path: Path, weights: Path) -> None:
    """40 ADU a photon of a file of 16 bits is 40 x 255 / 65535; a black level is subtracted."""
    photons = 40 * measure_photons.scene(0, 64)
    counts = PoissonNoise(40.0, 80.0, 1000.0).add(1000 + 40 * photons)
    tifffile.imwrite(tmp_path / "cells.tif", np.rint(counts.clip(0)).astype(np.uint16))
    options = ["--model", str(weights), "-q", "--noise", "poisson"]
    adu = ["--gain-adu", "40", "--read-noise-adu", "80", "--black-level-adu", "1000"]
    assert run(["denoise", str(tmp_path / "cells.tif"), "-o", str(tmp_path / "adu.tif"), *options, *adu]) == 0
    unit = 255 / 65535
    noise = PoissonNoise(40 * unit, 80 * unit, 1000 * unit)
    restored = nlrn.denoise(tifffile.imread(tmp_path / "cells.tif"), noise, weights)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "adu.tif"), restored)


def test_photons_are_estimated_by_every_entry(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image from Python and from the command line; a stack, all of its planes at once."""
    noise = PoissonNoise(400.0, 300.0)
    planes = np.stack([noise.add(20000 * measure_photons.scene(seed, 64), seed) for seed in range(3)])
    planes = np.rint(planes.clip(0, 65535)).astype(np.uint16)
    command = ["--model", str(weights), "--noise", "poisson"]
    tifffile.imwrite(tmp_path / "plane.tif", planes[0])
    assert run(["denoise", str(tmp_path / "plane.tif"), "-o", str(tmp_path / "out.tif"), *command]) == 0
    assert "estimated photons: gain" in capsys.readouterr().out
    given = nlrn.denoise(planes[0], model=weights, noise="poisson")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), given)
    tifffile.imwrite(tmp_path / "stack.tif", planes, photometric="minisblack")
    assert run(["denoise", str(tmp_path / "stack.tif"), "-o", str(tmp_path / "all.tif"), *command]) == 0
    assert "photons, gain" in capsys.readouterr().out
    unit = 255 / 65535
    found = estimate_photons([plane * np.float32(unit) for plane in planes])
    alone = nlrn.denoise(planes[1], found, weights)
    assert np.abs(alone.astype(int) - tifffile.imread(tmp_path / "all.tif")[1]).max() <= 2
    with pytest.raises(InputError, match="takes no sigma"):
        nlrn.denoise(planes[0], 20, weights, noise="poisson")
