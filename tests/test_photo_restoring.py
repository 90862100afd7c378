"""The model for photographs: the level of camera noise, estimated or given, from every entry."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.transform import downscale_local_mean

import nlrn
from nlrn.cli import run as command
from nlrn.errors import ConfigError, InputError, ModelNotFoundError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.functional.degradations import resize_bicubic
from nlrn.functional.noise import estimate_noise
from nlrn.functional.ranges import scale_beyond
from nlrn.inference.coarse import removal_share
from nlrn.inference.options import DenoiseOptions
from nlrn.inference.pipeline import PHOTO_LEVEL
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.image import ImageData, rounded
from nlrn.models import checkpoint
from nlrn.models.checkpoint import save_model, sha256
from nlrn.models.folded import FoldedNLRN
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.web import handlers as work
from nlrn.web.fields import Denoising
from nlrn.web.handlers import Handlers
from nlrn.web.messages import ServiceConfig, Task


@pytest.fixture(scope="module")
def model() -> NLRN:
    """It was not trained; every number counts."""
    torch.manual_seed(0)
    config = NLRNConfig(3, 8, 4, states=2, window=5, sigma_input=True, noise="camera")
    network = NLRN(config).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.normal_().mul_(0.2)
    return network


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return 0.3 + 0.4 * np.random.default_rng(0).random((24, 20, 3), np.float32)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 2.0])
def test_the_level_is_the_plane_that_the_network_sees(model: NLRN, image: np.ndarray, level: float) -> None:
    restorer = Restorer(model, settings=Settings(precision="fp32", level=level))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    sigma = min(75.0, level * estimate_noise(image).level)
    expected = FoldedNLRN(model)(planes, sigma / 255)[0].permute(1, 2, 0).numpy()
    found = restorer.denoise(image, value_range="type")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
    assert restorer.noise_level(image, "auto", value_range="type") == pytest.approx(sigma)
    np.testing.assert_array_equal(
        restorer.denoise(image, sigma, value_range="type"), found
    )  # a level that is given has no factor
    other = Restorer(model, settings=Settings(precision="fp32", level=level + 0.01 if level < 2 else 1.9))
    assert np.abs(other.denoise(image, value_range="type") - found).max() > 1e-4  # it is used


@pytest.mark.parametrize("shape", [(32, 40), (45, 38)])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_second_pass_at_half_size_removes_what_is_coarse(shape: tuple[int, int], mapped: bool) -> None:
    """Both passes by the network itself, the means and the enlargement by scikit-image and MATLAB's bicubic."""
    random = np.random.default_rng(3)
    coarse = ndimage.gaussian_filter(random.normal(0, 0.2, (*shape, 3)), (2, 2, 0))
    image = np.clip(np.linspace(0.3, 0.7, shape[1])[:, None] + coarse, 0, 1).astype(np.float32)
    sigma = 12 + 6 * random.random(shape, np.float32) if mapped else 12.0
    restorer = nlrn.load("denoise-photo-small", device="cpu", precision="fp32")
    network = FoldedNLRN(restorer.model)

    def run(x: np.ndarray, level: Any) -> np.ndarray:
        plane = torch.as_tensor(np.asarray(level, np.float32) / 255)
        planes = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]
        result: np.ndarray = network(planes, plane[None, None] if plane.dim() else float(plane))[0].numpy()
        return result.transpose(1, 2, 0)

    fine = run(image, sigma)
    even = [(0, n % 2) for n in shape]
    small = downscale_local_mean(np.pad(fine, (*even, (0, 0)), mode="edge"), (2, 2, 1)).astype(np.float32)
    level = downscale_local_mean(np.pad(sigma, even, mode="edge"), (2, 2)) / 2 if mapped else 6.0
    removed = small - run(small, level)
    share = expected_share(small, removed)
    assert 0.02 < share.mean() < 0.98
    coarse = resize_bicubic(share * removed, 2 * small.shape[0], 2 * small.shape[1])
    expected = fine - coarse[: shape[0], : shape[1]]
    found = restorer.denoise(image, sigma, value_range="type")
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * float(np.abs(expected).max()))
    assert np.abs(found - fine).max() > 1e-3


def expected_share(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """`removal_share` of HWC as [H, W, 1], by scipy's uniform filter in float64."""

    def mean(x: np.ndarray, side: int) -> np.ndarray:
        inside, size = np.ones(x.shape[:2]), (side, side)
        parts = [ndimage.uniform_filter(x[..., c], size, mode="constant") for c in range(x.shape[2])]
        return np.stack(parts, -1) / ndimage.uniform_filter(inside, size, mode="constant")[..., None]

    def energy(x: np.ndarray) -> np.ndarray:
        return mean(x.sum(-1, keepdims=True), 13)

    h, r = (x - mean(x, 3) for x in (image.astype(np.float64), removed.astype(np.float64)))
    fits = np.clip(energy(h * r) / energy(r * r), 0, 1)
    return np.asarray(fits * energy(r * r) / (energy(r * r) + 0.02 * energy((h - fits * r) ** 2)))


def test_of_the_second_pass_noise_counts_and_invented_texture_does_not() -> None:
    random = np.random.default_rng(5)
    noise, other = random.normal(0, 0.01, (2, 1, 3, 96, 120))
    smooth = np.broadcast_to(np.linspace(0, 1, 120), noise.shape).copy()
    inside = np.s_[..., 6:-6, 6:-6]
    assert removal_share(smooth + noise, noise)[inside].min() > 0.98
    assert removal_share(smooth, noise)[inside].max() < 0.02  # the pass added it
    assert removal_share(smooth + other, noise)[inside].mean() < 0.1  # nothing of it was there
    assert removal_share(smooth - noise, noise)[inside].max() < 0.02  # it was amplified
    texture = 10 * other
    assert removal_share(smooth + texture + noise, noise)[inside].mean() < 0.5
    assert removal_share(smooth + other / 3 + noise, noise)[inside].min() > 0.9
    flat = np.full((1, 3, 40, 40), 0.5)
    np.testing.assert_array_equal(removal_share(flat, np.zeros_like(flat)), 0)


def test_values_beyond_the_range_keep_the_level(model: NLRN, image: np.ndarray) -> None:
    wide = image * 3 - 1
    scale = scale_beyond(wide, 12.0)
    planes = torch.from_numpy(scale.unit(wide)).permute(2, 0, 1)[None]
    expected = FoldedNLRN(model)(planes, 12 / 255 / scale.spread)[0].permute(1, 2, 0).numpy() * scale.spread + scale.low
    found = Restorer(model, settings=Settings(precision="fp32")).denoise(wide, 12.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * float(np.abs(expected).max()))


def test_what_is_no_level_of_camera_noise_is_refused(model: NLRN, image: np.ndarray) -> None:
    with pytest.raises(InputError, match="'loud'"):
        nlrn.denoise(image, "loud", model)
    with pytest.raises(ConfigError, match="receives the level of white noise"):
        nlrn.denoise(image, PoissonNoise(1.0), model)
    for level in (-0.1, 2.1, float("nan")):
        with pytest.raises(ConfigError, match="level must lie in"):
            nlrn.load(model, level=level)


def test_the_command_takes_a_level(
    model: NLRN, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "photo.safetensors", model, {"steps": "0"})
    Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / "in.png")
    words = ["denoise", str(tmp_path / "in.png"), "--model", str(tmp_path / "photo.safetensors"), "--precision", "fp32"]
    assert command([*words, "-o", str(tmp_path / "out.png"), "--level", "0.5"]) == 0
    assert "restored by the model for photographs, level 0.5 times that" in capsys.readouterr().out
    restorer = nlrn.load(model, precision="fp32", level=0.5)
    expected = restorer.denoise(np.asarray(Image.open(tmp_path / "in.png")) / np.float32(255))
    found = np.asarray(Image.open(tmp_path / "out.png")) / 255
    np.testing.assert_allclose(found, expected.clip(0, 1), rtol=0, atol=0.51 / 255)
    assert command([*words, "-o", str(tmp_path / "no.png"), "--level", "3"]) == 2
    assert not (tmp_path / "no.png").exists()
    assert command([*words, "-o", str(tmp_path / "nine.png"), "--sigma", "9"]) == 0
    expected = restorer.denoise(np.asarray(Image.open(tmp_path / "in.png")) / np.float32(255), 9.0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "nine.png")), rounded(expected, 8))


# -- which model restores, by every entry ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(model: NLRN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as they would be shipped: for grey, colour and photographs, none of which was trained."""
    folder = tmp_path_factory.mktemp("weights")
    save_model(folder / "denoise-photo-small.safetensors", model)
    for name, channels in (("gray", 1), ("color", 3)):
        torch.manual_seed(channels)
        config = NLRNConfig(channels, 8, 4, states=2, window=5, sigma_input=True)
        save_model(folder / f"denoise-{name}-small.safetensors", NLRN(config).eval())
    names = sorted(folder.glob("*.safetensors"))
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in names))
    return folder


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    """Of 160 x 160: a colour one with noise as cameras make it and with white noise, uint8, and a grey one."""
    random = np.random.default_rng(5)
    smooth = resize_bicubic(random.random((6, 6, 3)), 160, 160).clip(0, 1)
    camera = add_camera_noise(smooth, at_level(draw_camera(random), 14.0), random)
    white = smooth + random.normal(0, 12 / 255, smooth.shape)
    weak = add_camera_noise(smooth, at_level(draw_camera(random), 0.5), random)
    named = ("camera", camera), ("white", white), ("weak", weak)
    images = {name: np.rint(x.clip(0, 1) * 255).astype(np.uint8) for name, x in named}
    return images | {"grey": images["camera"][..., 1]}


def by_python(image: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(nlrn.denoise(Image.fromarray(image), **options))


def by_command(image: np.ndarray, folder: Path, **options: Any) -> np.ndarray:
    Image.fromarray(image).save(folder / "in.png")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["-o", str(folder / "out.png"), "--overwrite", "-q"]
    assert command(["denoise", str(folder / "in.png"), *words]) == 0
    return np.asarray(Image.open(folder / "out.png"))


def by_service(image: np.ndarray, **options: Any) -> tuple[np.ndarray, str]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    fields = {name: field.default for name, field in Denoising.model_fields.items() if name != "image"}
    answer = Handlers(ServiceConfig()).perform(Task("denoise", file.getvalue(), fields | options))
    return np.asarray(Image.open(io.BytesIO(answer.content))), answer.headers.get("nlrn-said", "")


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for module in (checkpoint, work):
        monkeypatch.setattr(module, "WEIGHTS", folder)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("camera", {}, "photo"),
        ("camera", {"noise": "photo", "level": 0.5}, "photo"),
        ("camera", {"noise": "photo", "sigma": 9.0}, "photo"),
        ("camera", {"noise": "gaussian"}, "color"),
        pytest.param("camera", {"sigma": 9.0}, "color", marks=pytest.mark.slow),
        pytest.param("camera", {"model": "denoise-gray-small"}, "gray", marks=pytest.mark.slow),
        ("white", {}, "color"),
        pytest.param("weak", {}, "color", marks=pytest.mark.slow),
        pytest.param("white", {"noise": "photo"}, "photo", marks=pytest.mark.slow),
        ("grey", {}, "gray"),
        pytest.param("grey", {"noise": "photo"}, "photo", marks=pytest.mark.slow),
    ],
)
def test_every_entry_takes_the_same_model_and_gives_the_same_pixels(
    shipped: Path,
    photographs: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    expected: str,
) -> None:
    use(monkeypatch, shipped)
    image = photographs[name]
    restored = by_python(image, **options)
    served, said = by_service(image, **options)
    np.testing.assert_array_equal(restored, by_command(image, tmp_path, **options))
    np.testing.assert_array_equal(restored, served)
    assert ("by the model for photographs" in said) == (expected == "photo" and "sigma" not in options)
    chosen = nlrn.load(f"denoise-{expected}-small", level=options.get("level", 1.0))
    sigma, noise = options.get("sigma", "auto"), options.get("noise", "auto")
    noise = "auto" if noise == "photo" else noise
    level = chosen.noise_level(image / np.float32(255), sigma, noise=noise)
    given = image / np.float32(255)
    found = chosen.denoise(
        given if expected != "photo" or image.ndim == 3 else np.repeat(given[..., None], 3, 2), level
    )
    found = found.mean(axis=2) if found.ndim > image.ndim else found
    np.testing.assert_array_equal(restored, rounded(found, 8))


def said(image: ImageData, **options: Any) -> tuple[np.ndarray, str]:
    lines: list[str] = []
    result = DenoiseOptions(**options).restored(image, lines.append, None)
    return result.array, "; ".join(lines)


@pytest.mark.parametrize("planes", [0, 2])
def test_the_level_counts_on_the_range_that_is_restored(
    shipped: Path, photographs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, planes: int
) -> None:
    """12 bits in 16: the same photograph, whose level is a sixteenth on the type's scale; and its stack."""
    use(monkeypatch, shipped)
    camera = photographs["camera"] / 255
    small = np.rint(4095 * (0.5 + 0.2 * (camera - 0.5))).astype(np.uint16)
    given = np.stack([small] * planes) if planes else small
    axes = "TYXS" if planes else "YXS"
    found = np.asarray(nlrn.denoise(given, axes=axes))
    level = nlrn.load("denoise-photo-small").found_noise(small / np.float32(65535), value_range="image")[0].level
    assert level < PHOTO_LEVEL
    named, white = (nlrn.denoise(given, noise=noise, axes=axes) for noise in ("photo", "gaussian"))
    assert np.array_equal(found, named)
    assert not np.array_equal(found, white)


def test_grey_planes_are_restored_by_the_model_for_photographs_as_grey_images_are(
    shipped: Path, photographs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, shipped)
    grey = photographs["grey"]
    stack = nlrn.denoise(np.stack([grey, grey]), 9.0, noise="photo", axes="ZYX", value_range="type")
    for plane in np.asarray(stack):
        np.testing.assert_array_equal(plane, nlrn.denoise(grey, 9.0, noise="photo", axes="YX", value_range="type"))


def test_hidden_colour_of_a_grey_image_comes_back(
    shipped: Path, photographs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, shipped)
    grey = photographs["grey"]
    image = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    image[5:20, 30:44] = 10, 200, 30, 0
    for noise in ("auto", "photo"):
        found = np.asarray(nlrn.denoise(Image.fromarray(image), noise=noise))
        np.testing.assert_array_equal(found[5:20, 30:44], image[5:20, 30:44])
        assert (found[..., 0] == found[..., 2])[image[..., 3] > 0].all()


@pytest.mark.parametrize(
    ("name", "options", "used"),
    [
        ("camera", {}, True),
        ("camera", {"sigma": 9.0, "noise": "photo"}, False),
        ("camera", {"noise": "gaussian"}, False),
        ("white", {}, False),
        ("grey", {}, False),
    ],
)
def test_a_level_that_has_no_effect_gets_a_line(
    shipped: Path,
    photographs: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    used: bool,
) -> None:
    use(monkeypatch, shipped)
    image = ImageData(photographs[name] / np.float32(255))
    (plain, before), (other, after) = said(image, **options), said(image, **options, level=1.5)
    assert np.array_equal(plain, other) != used
    assert ("level 1.5 has no effect here" in after) != used
    assert "no effect" not in before


def test_without_a_model_for_photographs_colour_is_restored_as_before(
    shipped: Path, photographs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(shipped, tmp_path / "weights")
    (folder / "denoise-photo-small.safetensors").unlink()
    use(monkeypatch, folder)
    image = photographs["camera"]
    restored = nlrn.load("denoise-color-small").denoise(image / np.float32(255))
    np.testing.assert_array_equal(by_python(image), rounded(restored, 8))
    with pytest.raises(ModelNotFoundError, match="no model for the noise of cameras"):
        by_python(image, noise="photo")


def test_what_does_not_fit_together_is_one_error(photographs: dict[str, np.ndarray]) -> None:
    image = photographs["white"]
    with pytest.raises(InputError, match="not for counted photons"):
        by_python(image, noise="photo", sigma=PoissonNoise(1.0))
    with pytest.raises(InputError, match="auto, gaussian, photo or poisson, not 'film'"):
        by_python(image, noise="film")
    with pytest.raises(ConfigError, match="trained on white noise"):
        by_python(image, noise="photo", model="denoise-color-small")
