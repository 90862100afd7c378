"""nlrn.denoise: the same kind, dtype, shape and device comes back; and the public surface."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import FP32, random_image, random_model
from PIL import Image

import nlrn
import nlrn.inference.api
from nlrn.errors import ConfigError, InputError, ModelNotFoundError, NLRNError
from nlrn.functional.degradations import resize_bicubic8
from nlrn.models import checkpoint
from nlrn.models.checkpoint import save_model

SOURCE = Path(nlrn.__file__).parent


def test_floats_come_back_as_floats_and_integers_as_integers() -> None:
    model, image = random_model(), random_image(20, 24, 3)
    expected = nlrn.Restorer(model, settings=nlrn.Settings()).denoise(image, 25)
    for dtype in (np.float32, np.float64):
        out = nlrn.denoise(image.astype(dtype), 25, model)
        assert out.dtype == dtype
        np.testing.assert_allclose(out, expected, atol=1e-6)
    for dtype, levels in ((np.uint8, 255), (np.uint16, 65535)):
        stored = np.rint(image * levels).astype(dtype)
        exact = nlrn.Restorer(model).denoise(stored / np.float32(levels), 25)
        out = nlrn.denoise(stored, 25, model)
        assert out.dtype == dtype
        exact = np.clip(exact.astype(np.float64), 0, 1)  # as it is rounded in files
        np.testing.assert_array_equal(out, np.rint(exact * levels).astype(dtype))


def test_a_weights_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    image, file = random_image(20, 24), tmp_path / "own.safetensors"
    for seed in (0, 1):
        model = random_model(seed=seed)
        save_model(file, model, {}, overwrite=True)
        np.testing.assert_array_equal(nlrn.denoise(image, 25, file), nlrn.denoise(image, 25, model))


def test_hidden_colour_does_not_choose_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey wherever it is seen, an image goes to the grey model, whatever lies under alpha = 0."""
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    save_model(tmp_path / "denoise-gray.safetensors", random_model(), {})
    save_model(tmp_path / "denoise-color.safetensors", random_model(in_channels=3), {})
    sums = [f"{checkpoint.sha256(file)}  {file.name}\n" for file in sorted(tmp_path.glob("*.safetensors"))]
    (tmp_path / "SHA256SUMS").write_text("".join(sums))
    levels = np.random.RandomState(0).randint(0, 256, (20, 24, 1)).astype(np.uint8).repeat(3, axis=2)
    alpha = np.full((20, 24), 255, np.uint8)
    alpha[3:9, 4:12] = 0
    found = []
    for hidden in ((255, 0, 0), (0, 0, 0)):
        colour = np.where(alpha[..., None] == 0, np.uint8(hidden), levels)
        given = Image.fromarray(np.dstack([colour, alpha]))
        found.append(np.where(alpha[..., None] == 0, 0, np.asarray(nlrn.denoise(given, 25))[..., :3]))
    np.testing.assert_array_equal(*found)
    assert (found[0][..., 0] == found[0][..., 1]).all()


def test_a_transparent_colour_is_refused() -> None:
    given = Image.new("RGB", (20, 24))
    given.info["transparency"] = (0, 0, 0)
    for restore in (nlrn.denoise, nlrn.upscale):
        with pytest.raises(InputError, match="convert it to RGBA"):
            restore(given)


@pytest.mark.parametrize("shape", [(20, 24), (1, 20, 24), (3, 20, 24), (2, 3, 20, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_tensors_come_back_as_tensors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    random = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = (random * 255).to(dtype) if dtype == torch.uint8 else random.to(dtype)
    out = nlrn.denoise(x, 25, random_model())
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    last = x[-1] if len(shape) == 4 else x
    image = last.float().numpy() / (255 if dtype == torch.uint8 else 1)
    hwc = image if image.ndim == 2 else np.moveaxis(image, 0, -1)
    expected = nlrn.Restorer(random_model()).denoise(hwc, 25)
    found = (out[-1] if len(shape) == 4 else out).float().numpy() / (255 if dtype == torch.uint8 else 1)
    found = found if found.ndim == 2 else np.moveaxis(found, 0, -1)
    expected = np.clip(expected, 0, 1) if dtype == torch.uint8 else expected
    tolerance = {torch.uint8: 0.5 / 255 + 1e-6, torch.bfloat16: 0.02}.get(dtype, 1e-6)
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pil_images_keep_mode_size_and_alpha(mode: str) -> None:
    random = np.random.RandomState(0)
    shape = (20, 24, len(mode)) if mode != "I;16" and len(mode) > 1 else (20, 24)
    top = 65536 if mode == "I;16" else 256
    given = Image.fromarray(random.randint(0, top, shape).astype(np.uint16 if mode == "I;16" else np.uint8))
    assert given.mode == mode
    out = nlrn.denoise(given, 25, random_model())
    assert (out.mode, out.size) == (given.mode, given.size)
    if mode.endswith("A"):
        assert np.array_equal(out.getchannel("A"), given.getchannel("A"))
    given.info["icc_profile"] = b"a profile"
    assert nlrn.denoise(given, 25, random_model()).info == given.info
    if mode == "L":
        assert np.array_equal(out, nlrn.denoise(np.asarray(given), 25, random_model()))


def sr_model() -> nlrn.NLRN:
    return random_model(task="sr", sigma_input=False)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_enlarged_images_keep_their_mode_and_enlarge_their_alpha(mode: str) -> None:
    random = np.random.RandomState(0)
    shape = (20, 24, len(mode)) if mode != "I;16" and len(mode) > 1 else (20, 24)
    top = 65536 if mode == "I;16" else 256
    array = random.randint(0, top, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    given = Image.fromarray(array)
    out = nlrn.upscale(given, 1.75, sr_model(), denoise_first=False)
    assert (out.mode, out.size) == (mode, (42, 35))
    if mode.endswith("A"):
        expected = resize_bicubic8(array[..., -1], 35, 42)
        assert np.array_equal(out.getchannel("A"), expected)
    else:
        exact = nlrn.Restorer(sr_model()).upscale(array / np.float32(top - 1), 35, 42)
        np.testing.assert_array_equal(np.asarray(out), np.rint(np.clip(exact, 0, 1) * (top - 1)))


def test_arrays_and_tensors_are_enlarged_as_they_are_denoised() -> None:
    image = random_image(20, 24, 3)
    expected = nlrn.Restorer(sr_model()).upscale(image, 60, 72)
    np.testing.assert_array_equal(nlrn.upscale(image, 3, sr_model(), denoise_first=False), expected)
    batch = torch.from_numpy(image).movedim(-1, 0)[None].repeat(2, 1, 1, 1)
    out = nlrn.upscale(batch, 3, sr_model(), denoise_first=False)
    assert out.shape == (2, 3, 60, 72)
    np.testing.assert_array_equal(out[1].movedim(0, -1).numpy(), expected)
    for scale in (np.int64(3), np.float32(3)):
        found = nlrn.upscale(image, scale, sr_model(), denoise_first=False)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
    for scale in (1.2, 17, 1e308, float("inf"), float("nan"), "2", None):
        with pytest.raises(InputError, match=r"scale|grow"):
            nlrn.upscale(image, scale, sr_model())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is for denoise"):
        nlrn.upscale(image, 2, random_model())


def test_what_is_not_an_image_is_refused() -> None:
    for thing in ("noisy.png", [[0.5]], None):
        with pytest.raises(InputError, match="expected a PIL image"):
            nlrn.denoise(thing, 25)  # type: ignore[type-var]
    with pytest.raises(InputError, match="empty"):
        nlrn.denoise(torch.zeros(0, 1, 8, 8), 25)
    with pytest.raises(InputError, match="mode P"):
        nlrn.denoise(Image.new("P", (20, 20)), 25)
    with pytest.raises(ModelNotFoundError, match="shipped models"):
        nlrn.denoise(random_image(8, 8), 25, "denoise-grey")


def test_settings_reach_the_restorer() -> None:
    restorer = nlrn.load(random_model(), mode="patch", precision="fp32")
    assert (restorer.settings.mode, restorer.settings.precision) == ("patch", FP32.precision)


def test_every_public_name_is_there_for_programs_and_for_type_checkers() -> None:
    typed = re.findall(r"^    from [\w.]+ import (\w+) as \1$", Path(nlrn.__file__).read_text(), re.MULTILINE)
    assert sorted(typed) == nlrn.__all__
    for name in nlrn.__all__:
        assert getattr(nlrn, name).__doc__ or name == "PRESETS"
    with pytest.raises(AttributeError, match="no attribute 'denoize'"):
        nlrn.denoize  # noqa: B018
    assert all(issubclass(getattr(nlrn, n), NLRNError) for n in nlrn.__all__ if n.endswith("Error"))


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(nlrn.inference.api)
    assert result.attempted >= 3
    assert result.failed == 0


def test_importing_the_package_does_not_import_torch() -> None:
    heavy = "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    assert subprocess.run([sys.executable, "-c", f"import sys, nlrn, nlrn.cli; {heavy}"], check=False).returncode == 0


@pytest.mark.parametrize("words", ["--help", "denoise", "denoise a.png -o b.png --sigma 300"])
def test_arguments_are_checked_before_torch_is_imported(words: str) -> None:
    command = f"""
import sys
from nlrn.__main__ import main
sys.argv = ["nlrn", *{words.split()!r}]
try:
    main()
except SystemExit as stop:
    assert stop.code == ({"0" if words == "--help" else "2"})
sys.exit(any(m in sys.modules for m in ("torch", "numpy", "rich")))
"""
    assert subprocess.run([sys.executable, "-c", command], check=False, capture_output=True).returncode == 0


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {f.name: len(f.read_text().splitlines()) for f in SOURCE.rglob("*.py")}
    assert max(lengths.values()) <= 400, max(lengths, key=lambda name: lengths[name])
    assert sorted(lengths.values())[len(lengths) // 2] <= 170
