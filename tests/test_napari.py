"""The widget of napari with its viewer's model: layers and widgets are real, nothing is drawn, which needs OpenGL.

Needs the extra `napari` and a Qt: make test-napari.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

if "DISPLAY" not in os.environ:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytestmark = pytest.mark.filterwarnings("default")  # of Qt's and napari's own

from qtpy.QtWidgets import QApplication  # noqa: E402

import nlrn  # noqa: E402
from nlrn.errors import ConfigError, InputError  # noqa: E402
from nlrn.inference.options import DenoiseOptions  # noqa: E402
from nlrn.integrations.napari import DenoiseWidget, denoised_planes, letters_of  # noqa: E402

RNG = np.random.default_rng(0)


def stack(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """A ramp with noise, in each plane."""
    ramp = np.linspace(400, 1600, shape[-1])
    return np.clip(ramp + RNG.normal(0, 60, shape), 0, None).astype(dtype)


@pytest.fixture
def viewer() -> Iterator[Any]:
    from napari.components import ViewerModel

    application = QApplication.instance() or QApplication([])
    yield ViewerModel()
    application.processEvents()


def wait_for(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        QApplication.processEvents()
        assert time.monotonic() < end, "it did not come to an end"
        time.sleep(0.01)


def test_the_manifest_is_found_and_names_the_widget() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("nlrn")
    assert manifest.contributions.widgets is not None
    assert [widget.command for widget in manifest.contributions.widgets] == ["nlrn.denoise"]
    (command,) = manifest.contributions.commands or []
    module, _, name = str(command.python_name).partition(":")
    assert (module, name) == (DenoiseWidget.__module__, DenoiseWidget.__name__)


def test_a_stack_becomes_a_new_layer_like_its_source(viewer: Any) -> None:
    data = stack(3, 2, 40, 48)
    source = viewer.add_image(
        data, name="cells", scale=(2.0, 1.0, 0.3, 0.3), translate=(5, 0, 1, 2), units=("s", "um", "um", "um"),
        axis_labels=("t", "c", "y", "x"), contrast_limits=(300, 1700), colormap="green", gamma=0.8, blending="additive",
    )  # fmt: skip
    viewer.add_points(np.zeros((1, 4)))  # no image
    widget = DenoiseWidget(viewer)
    assert widget.native.layout() is not None  # a Qt widget, which napari docks
    assert [layer.name for layer in widget.image.choices] == ["cells"]
    widget.image.value = source
    assert widget.axes.value == "TCYX"
    widget.start.clicked.emit(True)
    assert not widget.start.enabled
    wait_for(lambda: widget.start.enabled)
    result = viewer.layers["cells denoised"]
    np.testing.assert_array_equal(result.data, nlrn.denoise(data, axes="TCYX"))
    assert result.data.dtype == np.uint16
    for name in ("scale", "translate", "gamma", "blending", "axis_labels", "units", "contrast_limits"):
        np.testing.assert_array_equal(getattr(result, name), getattr(source, name), err_msg=name)
    assert result.colormap.name == "green"
    assert (widget.progress.value, widget.progress.max) == (6, 6)
    np.testing.assert_array_equal(source.data, data)


@pytest.mark.screen
def test_in_a_window_of_napari() -> None:
    import napari

    viewer = napari.Viewer(show=False)
    try:
        data = stack(2, 40, 48)
        viewer.add_image(data, name="cells")
        _, widget = viewer.window.add_plugin_dock_widget("nlrn", "Denoise")
        assert widget.image.value is viewer.layers["cells"]
        widget.start.clicked.emit(True)
        wait_for(lambda: widget.start.enabled)
        np.testing.assert_array_equal(viewer.layers["cells denoised"].data, nlrn.denoise(data, axes="ZYX"))
    finally:
        viewer.close()


def test_an_image_of_colour_with_a_level(viewer: Any) -> None:
    data = RNG.integers(90, 160, (40, 48, 3)).astype(np.uint8)
    viewer.add_image(data, rgb=True, name="photo")
    widget = DenoiseWidget(viewer)
    widget.image.value = viewer.layers["photo"]
    assert widget.axes.value == "YXS"
    widget.estimate.value = False
    assert widget.sigma.enabled
    widget.sigma.value, widget.range.value = 20, "type"
    widget.start.clicked.emit(True)
    wait_for(lambda: widget.start.enabled)
    expected = nlrn.denoise(data, sigma=20, value_range="type")
    np.testing.assert_array_equal(viewer.layers["photo denoised"].data, expected)
    assert viewer.layers["photo denoised"].rgb


def test_cancelling_leaves_no_layer(viewer: Any) -> None:
    viewer.add_image(stack(40, 96, 96), name="long")
    widget = DenoiseWidget(viewer)
    widget.image.value = viewer.layers["long"]
    widget.start.clicked.emit(True)
    wait_for(lambda: widget.progress.value >= 1)
    widget.cancel.clicked.emit(True)
    began = time.monotonic()
    wait_for(lambda: widget.start.enabled)
    assert time.monotonic() - began < 20
    assert widget.progress.value < 40
    assert [layer.name for layer in viewer.layers] == ["long"]


def test_what_cannot_be_restored_is_shown_and_the_widget_stays(viewer: Any) -> None:
    from napari.utils.notifications import notification_manager

    viewer.add_image(np.zeros((3, 40, 48), np.int64), name="labels")
    widget = DenoiseWidget(viewer)
    widget.image.value = viewer.layers["labels"]
    widget.start.clicked.emit(True)
    wait_for(lambda: widget.start.enabled)
    assert "expected uint8, uint16 or floats; got int64" in str(notification_manager.records[-1].message)
    assert [layer.name for layer in viewer.layers] == ["labels"]


def test_a_lazy_layer_is_read_plane_by_plane(viewer: Any) -> None:
    import dask.array as da

    data, seen = stack(4, 40, 48), []

    def read(block: np.ndarray, block_id: Any = None) -> np.ndarray:
        seen.append(block.shape)
        return block

    lazy = da.from_array(data, chunks=(1, 40, 48)).map_blocks(read, dtype=data.dtype, meta=data[:0])
    layer = viewer.add_image(lazy, name="lazy", contrast_limits=(0, 2000))
    seen.clear()
    *_, result = denoised_planes(layer, letters_of(layer), DenoiseOptions(sigma=15.0, range="type"), threading.Event())
    np.testing.assert_array_equal(result, nlrn.denoise(data, 15.0, value_range="type", axes="ZYX"))
    assert set(seen) == {(1, 40, 48)}


def test_letters_and_errors(viewer: Any) -> None:
    layer = viewer.add_image(stack(2, 3, 40, 48))
    assert letters_of(layer) == "TZYX"
    for letters in ("TZY", "YXTZ", "TTYX"):
        with pytest.raises(InputError, match="axes"):
            next(denoised_planes(layer, letters, DenoiseOptions(), threading.Event()))
    with pytest.raises(ConfigError):
        next(denoised_planes(layer, "TZYX", DenoiseOptions(noise="poisson", sigma=3.0), threading.Event()))
