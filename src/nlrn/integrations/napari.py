"""A widget of napari: an image layer, or a stack of planes, denoised into a new layer.

napari finds it by the manifest `napari.yaml` beside this file. The work runs in a thread, plane by plane; it can be
cancelled between the tiles of a plane. Extra: `pip install "nlrn[napari]"`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrn.errors import InputError
from nlrn.inference.arrays import Axes, each_restored
from nlrn.inference.options import DenoiseOptions
from nlrn.inference.pipeline import KINDS
from nlrn.inference.stacks import PER_PLANE
from nlrn.integrations import require
from nlrn.models.checkpoint import list_models

require("napari", "napari", "magicgui", "qtpy")

from magicgui.widgets import (  # noqa: E402
    CheckBox,
    ComboBox,
    Container,
    FloatSlider,
    FloatSpinBox,
    LineEdit,
    ProgressBar,
    PushButton,
)

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

AUTOMATIC = "automatic"
_OTHERS = "QRTZ"  # letters of axes that a layer does not name
_DROPPED = frozenset({"name", "multiscale", "visible"})


class LayerPlanes:
    """The planes of a layer's data, read one at a time; its last axes are Y, X and, of RGB, S."""

    def __init__(self, data: Any, axes: Axes) -> None:
        self.data, self.sizes = data, axes.leading[1]

    def __len__(self) -> int:
        return int(np.prod(self.sizes, dtype=int))

    def __getitem__(self, index: int) -> np.ndarray:
        place = tuple(int(i) for i in np.unravel_index(index, self.sizes)) if self.sizes else ()
        return np.asarray(self.data[place] if place else self.data)


class _CancelledError(Exception):
    """Raised between two tiles, once the work is to stop."""


def letters_of(layer: Image) -> str:
    """A letter for each axis of a layer: its own where they are single letters, else made up ones."""
    named = [str(label).upper() for label in layer.axis_labels]
    count = layer.ndim - 2
    outer = "".join(named[:count])
    if not all(len(label) == 1 and label.isalpha() and label not in "YXS" for label in named[:count]):
        outer = _OTHERS[len(_OTHERS) - count :]
    return outer + "YX" + ("S" if layer.rgb else "")


def denoised_planes(layer: Image, letters: str, options: DenoiseOptions, stop: threading.Event) -> Iterator[Any]:
    """(planes done, planes) of a layer, then its denoised array; no more once `stop` is set.

    Raises InputError for axes that do not fit, or data that is not restored, and what the options raise.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    shape = tuple(int(n) for n in data.shape)
    axes = Axes(letters, shape)
    samples = int(layer.rgb)
    if letters[len(letters) - 2 - samples :] != "YX" + "S" * samples:
        raise InputError(f"axes {letters!r}: the last ones of a layer are YX, or YXS where it is RGB")
    planes, channels = LayerPlanes(data, axes), axes.channels()
    out = np.empty((len(planes), *shape[len(axes.leading[0]) :]), data.dtype)

    def check(done: int, total: int = 0) -> None:
        if stop.is_set():
            raise _CancelledError

    asked = options.asked()
    yield 0, len(planes)
    each = each_restored(planes, channels, data.dtype, options.restorer, asked, check, check)
    try:
        for index, plane in enumerate(each):
            out[index] = plane
            yield index + 1, len(planes)
    except _CancelledError:
        return
    yield out.reshape(shape)


class DenoiseWidget(Container):  # type: ignore[misc]
    """The widget: what is asked of a layer, a button that starts, one that cancels, progress."""

    def __init__(self, napari_viewer: ViewerModel) -> None:
        self.viewer = viewer = napari_viewer
        self.image = ComboBox(label="image", choices=self._images)
        self.axes = LineEdit(label="axes", tooltip="a letter for each axis; C: channels, each with a noise of its own")
        self.noise = ComboBox(label="noise", choices=KINDS, value="auto")
        self.estimate = CheckBox(label="estimate sigma", value=True)
        self.per_plane = CheckBox(label="of each plane", value=False)
        self.sigma = FloatSpinBox(label="sigma (0-255 scale)", min=0, max=75, step=1, value=15, enabled=False)
        self.strength = FloatSlider(label="strength", min=0, max=1, value=1)
        self.range = ComboBox(label="range", choices=("auto", "type", "image"), value="auto")
        names = [info.name for info in list_models() if info.task == "denoise"]
        self.model = ComboBox(label="model", choices=(AUTOMATIC, *names), value=AUTOMATIC)
        self.start, self.cancel = PushButton(text="Denoise"), PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(label="planes", min=0, max=1, value=0)
        super().__init__(
            widgets=[
                self.image, self.axes, self.noise, self.estimate, self.per_plane, self.sigma, self.strength, self.range,
                self.model, self.start, self.cancel, self.progress,
            ]
        )  # fmt: skip
        self._stop, self.worker = threading.Event(), None
        self.image.changed.connect(self._chosen)
        self.noise.changed.connect(self._enable)
        self.estimate.changed.connect(self._enable)
        self.start.changed.connect(self._begin)
        self.cancel.changed.connect(self._cancel)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.reordered):
            event.connect(self._listed)
        self._chosen(self.image.value)

    def asked(self) -> DenoiseOptions:
        """What is asked for. Raises ConfigError."""
        estimated = self.estimate.value or self.noise.value == "poisson"
        sigma: Any = (PER_PLANE if self.per_plane.value else "auto") if estimated else self.sigma.value
        if self.noise.value == "poisson":
            sigma = "auto"
        model = None if self.model.value == AUTOMATIC else self.model.value
        return DenoiseOptions(
            model=model, sigma=sigma, strength=self.strength.value, noise=self.noise.value, range=self.range.value
        )

    def _images(self, _: Any = None) -> list[Any]:
        from napari.layers import Image

        return [layer for layer in self.viewer.layers if type(layer) is Image]

    def _listed(self, _: Any = None) -> None:
        self.image.reset_choices()

    def _chosen(self, layer: Image | None) -> None:
        self.axes.value = "" if layer is None else letters_of(layer)

    def _enable(self) -> None:
        photons = self.noise.value == "poisson"
        self.estimate.enabled = not photons
        self.per_plane.enabled = self.estimate.value and not photons
        self.sigma.enabled = not (self.estimate.value or photons)

    def _begin(self) -> None:
        from napari.qt.threading import create_worker
        from napari.utils.notifications import show_error

        layer = self.image.value
        if layer is None:
            show_error("there is no image layer")
            return
        self._stop = threading.Event()
        self._busy(True)
        self.worker = create_worker(
            denoised_planes, layer, self.axes.value.upper(), self.asked(), self._stop,
            _start_thread=True,
            _connect={
                "yielded": lambda found: self._yielded(layer, found),
                "errored": lambda error: show_error(str(error)),
                "finished": lambda: self._busy(False),
            },
        )  # fmt: skip

    def _yielded(self, layer: Image, found: Any) -> None:
        if isinstance(found, tuple):
            self.progress.max, self.progress.value = found[1], found[0]
        elif not self._stop.is_set():
            self._add(layer, found)

    def _add(self, layer: Image, array: np.ndarray) -> None:
        """The result as a layer that looks as its source does, and lies where it lies."""
        state = {key: value for key, value in layer.as_layer_data_tuple()[1].items() if key not in _DROPPED}
        self.viewer.add_image(array, name=f"{layer.name} denoised", **state)

    def _cancel(self) -> None:
        self._stop.set()

    def _busy(self, busy: bool) -> None:
        self.start.enabled, self.cancel.enabled = not busy, busy
