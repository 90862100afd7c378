"""spandrel's own loader, given a weights file of ours, restores as we do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vision  # noqa: F401  # what spandrel imports
from networks import random_model
from safetensors.torch import load_file, save_file
from spandrel import MAIN_REGISTRY, ImageModelDescriptor, ModelLoader, UnsupportedModelError

import nlrn
import nlrn.integrations
from nlrn.errors import BackendError, CheckpointError, ConfigError
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera
from nlrn.functional.degradations import add_gaussian_noise, resize_bicubic
from nlrn.integrations.spandrel import register
from nlrn.models.checkpoint import load_model, resolve_model, save_model


@pytest.fixture
def registry() -> Any:
    """A copy of spandrel's registry, with its own architectures."""
    return MAIN_REGISTRY.copy()


def noisy(channels: int = 1) -> torch.Tensor:
    ramp = np.linspace(0.2, 0.8, 40)[:, None].repeat(48, axis=1)
    return torch.from_numpy(add_gaussian_noise(ramp, 20)).float().expand(1, channels, 40, 48)


def test_the_shipped_model_by_spandrels_own_loader() -> None:
    register()
    file = resolve_model("denoise-gray-small")
    descriptor = ModelLoader().load_from_file(file)
    assert isinstance(descriptor, ImageModelDescriptor)
    assert (descriptor.purpose, descriptor.scale, descriptor.input_channels) == ("Restoration", 1, 1)
    image = noisy()
    restorer = nlrn.load("denoise-gray-small", precision="fp32")
    expected = restorer.denoise(image[0, 0].numpy(), "auto").clip(0, 1)
    found = descriptor(image)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - image[0, 0].numpy()).mean() > 0.03


def test_the_model_for_photographs_receives_the_level_of_camera_noise(registry: Any) -> None:
    """And not the sigma that a model for white noise is given for it."""
    random = np.random.default_rng(3)
    smooth = resize_bicubic(random.random((6, 6, 3)), 128, 128).clip(0, 1)
    image = add_camera_noise(smooth, at_level(draw_camera(random), 14.0), random).astype(np.float32)
    found = nlrn.estimate_noise(image)
    assert found.kind == "camera"
    assert found.sigma > 1.2 * found.level
    register("denoise-photo-small", registry=registry)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    descriptor = ModelLoader(registry=registry).load_from_file(resolve_model("denoise-photo-small"))
    expected = load_model("denoise-photo-small").eval()(planes, found.level / 255).clamp(0, 1)
    np.testing.assert_allclose(descriptor(planes).numpy(), expected.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"window": 7, "propagation": False}, {"in_channels": 3}, {"sigma_input": False}]
)
def test_the_header_counts_and_not_the_shapes(tmp_path: Path, registry: Any, changes: dict[str, Any]) -> None:
    """Files of the same shapes and of other windows, each with its own."""
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for seed, file in enumerate(files):
        save_model(file, random_model(seed, **(changes | ({"window": 9} if seed else {}))))
    register(*files, sigma=15, registry=registry)
    for file in files:
        model = load_model(file)
        image = noisy(model.config.in_channels)
        with torch.no_grad():
            expected = model(image, 15 / 255 if model.config.sigma_input else None).clamp(0, 1)
        descriptor = ModelLoader(registry=registry).load_from_file(file)
        torch.testing.assert_close(descriptor(image), expected, rtol=0, atol=1e-6)


def test_a_file_that_was_not_registered_or_was_changed_is_not_ours(tmp_path: Path, registry: Any) -> None:
    ours, other, changed = (tmp_path / f"{name}.safetensors" for name in ("ours", "other", "changed"))
    save_model(ours, random_model(0))
    save_model(other, random_model(1))
    tensors = load_file(ours)
    tensors["tail.bias"] = tensors["tail.bias"] + 1e-3
    save_file(tensors, changed)
    before = len(registry)
    for _ in range(2):  # the second time changes nothing
        register(ours, registry=registry)
        assert len(registry) == before + 1
    with pytest.raises(ConfigError, match="is registered already"):
        register(ours, sigma=15, registry=registry)
    wider = tmp_path / "wider.safetensors"  # the same tensors, which is all that spandrel will see
    save_model(wider, load_model(ours).reconfigured(window=9))
    with pytest.raises(ConfigError, match="is registered already"):
        register(wider, registry=registry)
    for file in (other, changed):
        with pytest.raises(UnsupportedModelError):
            ModelLoader(registry=registry).load_from_file(file)


def test_what_spandrel_cannot_hold_is_refused(tmp_path: Path, registry: Any) -> None:
    file = tmp_path / "w.safetensors"
    save_model(file, random_model(task="sr", sigma_input=False))
    with pytest.raises(ConfigError, match="one scale"):
        register(file, registry=registry)
    for sigma in (-1, 76, "high", float("nan")):
        with pytest.raises(ConfigError, match="sigma must be"):
            register(sigma=sigma, registry=registry)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError):
        register(file, registry=registry)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nlrn.integrations.spandrel")
    monkeypatch.setattr(nlrn.integrations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'spandrel: pip install "nlrn\[spandrel\]"'):
        importlib.import_module("nlrn.integrations.spandrel")
