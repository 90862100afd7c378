"""What is done with one image: the bytes of a file and options -> the bytes of an answer. Runs in the worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nlrn.errors import BackendError, ConfigError, InputError, ModelError, ModelNotFoundError
from nlrn.evaluation.explain import correlation_maps
from nlrn.functional.alpha import fill_hidden
from nlrn.inference.options import DenoiseOptions, Options, UpscaleOptions
from nlrn.inference.restorer import Restorer
from nlrn.inference.self_ensemble import Progress
from nlrn.io.decode import is_known
from nlrn.io.image import ImageData, check_holds, encode_image, left_out_by, read_image
from nlrn.io.written import SUFFIXES, WRITTEN
from nlrn.models.checkpoint import WEIGHTS, ModelInfo, default_model, describe, list_models, resolve_model
from nlrn.web.limits import RefusedError
from nlrn.web.messages import Answer, ServiceConfig, Task

_FLAGS = {"pixels": "--max-pixels", "result": "--max-result-pixels"}


class Handlers:
    """Does tasks one after the other. Raises ModelError for a file of the operator's that is no model.

    Raises ConfigError for two of one name.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        own = [describe(resolve_model(name)) for name in config.models]
        names = [info.name for info in own]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two models are called {min(twice)}: rename the file of one")
        self.offered: dict[str, ModelInfo] = {info.name: info for info in (*list_models(), *own)}
        self._own = {"device": config.device, "memory": config.memory}

    def perform(self, task: Task, progress: Progress | None = None) -> Answer:
        """The answer to a task. Raises RefusedError, and what `progress` raises, after which nothing is left."""
        if not is_known(task.data):
            raise RefusedError(415, f"not an image of a known format ({', '.join(sorted(WRITTEN))}, GIF)")
        try:
            limits = self.config.limits
            image = read_image(task.data, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes, apart=True)
            match task.kind:
                case "denoise":
                    return self._denoise(image, task.options, progress)
                case "upscale":
                    return self._upscale(image, task.options, progress)
                case "explain":
                    return self._explain(image, task.options)
                case _:
                    image = Options().prepared(image).with_depth(8)
                    self._check_result(image, "PNG")
                    return _encoded(image, "PNG")
        except InputError as error:
            raise _refusal(error) from error
        except (ConfigError, ModelError) as error:
            raise RefusedError(422, str(error)) from error
        except (BackendError, MemoryError) as error:
            raise RefusedError(503, str(error) or "out of memory", limit="memory") from error

    def _denoise(self, image: ImageData, options: dict[str, Any], progress: Progress | None) -> Answer:
        asked = DenoiseOptions.of(options, **self._own)
        try:
            asked.asked()
        except ConfigError as error:
            field = "gain" if asked.noise == "poisson" else "noise"
            raise RefusedError(422, str(error), field=field) from error
        return self._restored(image, asked, asked.restored, options["format"], progress)

    def _upscale(self, image: ImageData, options: dict[str, Any], progress: Progress | None) -> Answer:
        asked = UpscaleOptions.of(options, **self._own)
        restored = partial(asked.restored, how="denoise_first=true", how_not="denoise_first=false")
        return self._restored(image, asked, restored, options["format"], progress)

    def _restored(
        self,
        image: ImageData,
        asked: Options,
        restored: Callable[..., ImageData],
        wanted: str | None,
        progress: Progress | None,
    ) -> Answer:
        """restored: of the options; wanted: the format of the answer, else that of the image, PNG for a GIF."""
        image, form = asked.prepared(image), SUFFIXES[f".{wanted}"] if wanted else image.format
        form = form if form in WRITTEN else "PNG"
        self._check_result(asked.expected(image, self.config.limits.max_result_pixels), form)
        lines: list[str] = []
        result = restored(image, lines.append, progress, partial(self._restorer, asked))
        return _encoded(result, form, lines)

    def _explain(self, image: ImageData, options: dict[str, Any]) -> Answer:
        asked = Options.of(options, **self._own)
        image = asked.prepared(image)
        seen = fill_hidden(image.array, image.alpha)
        restorer = self._restorer(asked, 1)
        restorer.require("denoise")
        level = restorer.noise_level(seen, options["sigma"])
        maps = correlation_maps(restorer, seen, (options["x"], options["y"]), float(np.max(level)))
        said = {
            "sigma": round(maps.sigma, 2),
            "centre": [int(n) for n in maps.centre],
            "neighbours": [round(n, 2) for n in maps.neighbours],
            "states": [[[float(f"{p:.4g}") for p in row] for row in state] for state in maps.states],
        }
        return Answer(json.dumps(said).encode(), "application/json")

    def _check_result(self, image: ImageData, form: str) -> None:
        """Before the work, of a result in its size and depth. Raises InputError, or RefusedError for one too large."""
        check_holds(image, form)
        size = image.array.size + (0 if image.alpha is None else image.alpha.size)
        size, most = size * image.depth // 8, self.config.limits.held_bytes - self.config.limits.max_bytes
        if size > most:
            words = f"a result of {size:,} bytes is beyond {most:,} (nlrn serve --held-bytes, less --max-bytes)"
            raise RefusedError(413, words, limit="held_bytes")

    def _restorer(self, asked: Options, channels: int, photo: bool = False) -> Restorer:
        return replace(asked, model=self._model(asked, channels, photo)).restorer(channels)

    def _model(self, asked: Options, channels: int, photo: bool) -> str:
        """What load_model takes. Raises RefusedError for a name that is not offered."""
        if asked.model is None:
            try:
                return default_model(asked.task, channels, photo=photo)
            except ModelNotFoundError:
                own = [info for info in self.offered.values() if info.task == asked.task]
                if not own:
                    words = f"there is no model for the task {asked.task!r} here"
                    raise RefusedError(422, words, field="model") from None
                return str(own[0].path)
        if asked.model not in self.offered:
            names = ", ".join(self.offered)
            raise RefusedError(422, f"no model of that name is offered; there are: {names}", field="model")
        info = self.offered[asked.model]
        return asked.model if info.path.parent == WEIGHTS else str(info.path)


def listed(offered: dict[str, ModelInfo]) -> list[dict[str, str | int]]:
    """What is published about the models, not where they lie."""
    keys = ("name", "task", "channels", "parameters", "sha256")
    return [{key: getattr(info, key) for key in keys} for info in offered.values()]


def _refusal(error: InputError) -> RefusedError:
    """The error with what raises the limit, where there is one: an option, or for a stack another command."""
    if error.limit in _FLAGS:
        words = str(error).partition(", raised by")[0]
        return RefusedError(413, f"{words} (nlrn serve {_FLAGS[error.limit]})", limit=error.limit)
    if error.limit == "frames":
        return RefusedError(422, f"{error}; stacks are for the command line: nlrn denoise FILE", limit="frames")
    return RefusedError(422, str(error), **({"limit": error.limit} if error.limit else {}))


def _encoded(image: ImageData, form: str, lines: list[str] | None = None) -> Answer:
    """The answer with the file of an image. lines: of its restoring; None for an image that was not restored."""
    data = encode_image(image, form)
    headers = {"content-disposition": f'attachment; filename="restored{WRITTEN[form].suffixes[0]}"'}
    said = [*lines, *left_out_by(image, form)] if lines is not None else []
    if said:
        headers["nlrn-said"] = "; ".join(said)
    return Answer(data, WRITTEN[form].media, headers)
