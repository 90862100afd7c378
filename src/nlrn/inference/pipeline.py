"""One image restored, with messages about it: every entry (Python, command line, service) comes through here.

It decides which model an image goes to, its range, its noise level, its alpha, and whether the memory suffices; so all
entries give the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nlrn.errors import ConfigError, InputError, MemoryBudgetError
from nlrn.functional.alpha import fill_hidden, hidden
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.counting import estimate_photons
from nlrn.functional.levels import channels_of, check_auto, scale_hint
from nlrn.functional.limits import MAX_SIGMA
from nlrn.functional.noise import NOISES, NoiseEstimate, level_text
from nlrn.functional.ranges import Range, Scale, on_unit_scale
from nlrn.inference.beside import ALONE, Beside
from nlrn.inference.memory import backing_off
from nlrn.inference.restorer import Restorer, Settings
from nlrn.inference.self_ensemble import Progress
from nlrn.io.image import ImageData, middle
from nlrn.models.checkpoint import resolve_model, ships_photo_model
from nlrn.system.hardware import memory

Report = Callable[[str], None]
Sigma = float | str | np.ndarray
RestorerFor = Callable[[int, bool], Restorer]
KINDS = (*NOISES, "photo", "poisson")
# Of a camera's noise, 0-255 units of the range that is restored: from it on the model for photographs is used
# (docs/photographs.md)
PHOTO_LEVEL = 0.75


def restorer_of(name: str, device: str, settings: Settings) -> Restorer:
    """The Restorer of a shipped name or a weights file, loaded once for all images. Raises as Restorer."""
    path = resolve_model(name).absolute()
    found = path.stat()  # a file that was written again is another model
    return _loaded(path, found.st_mtime_ns, found.st_size, device, settings)


@lru_cache(maxsize=4)
def _loaded(path: Path, time: int, size: int, device: str, settings: Settings) -> Restorer:
    return Restorer(path, device=device, settings=settings)


@dataclass(frozen=True)
class Counts:
    """What is known of a camera that counts photons, in sample values (ADU).

    gain_adu: what one photon adds; read_noise_adu: a standard deviation; black_level_adu: the value without light.
    Without a gain, all that is None is estimated; with one, the others are 0.
    """

    gain_adu: float | None = None
    read_noise_adu: float | None = None
    black_level_adu: float | None = None

    def noise(self, planes: Iterable[np.ndarray], levels: float) -> PoissonNoise:
        """The noise on the 0-255 scale, estimated from the planes of one image or stack where no gain is known.

        levels: the sample value that is 1 in them. Raises ConfigError, and InputError as `estimate_photons`.
        """
        unit = 255 / levels
        black = None if self.black_level_adu is None else self.black_level_adu * unit
        if self.gain_adu is not None:
            return PoissonNoise(self.gain_adu * unit, (self.read_noise_adu or 0.0) * unit, black or 0.0)
        found = estimate_photons((255 * plane for plane in planes), black)
        if self.read_noise_adu is None:
            return found
        return dataclasses.replace(found, read_noise=self.read_noise_adu * unit)


@dataclass(frozen=True)
class Denoising:
    """The options of denoising, the same for every entry.

    sigma, strength: as of Restorer.denoise. noise: "auto", "gaussian" as of `estimate_noise`; "photo", the noise of
    cameras, by the model for photographs, whose level sigma then is; "poisson", that of counted photons, by what
    `counts` knows and, for the rest, estimated. named: a model was named, so that none is chosen.
    value_range: as of Restorer.denoise, numbers being sample values. Raises InputError for another noise, and for a
    PoissonNoise together with "photo".
    """

    sigma: Sigma | PoissonNoise = "auto"
    strength: float = 1.0
    noise: str = "auto"
    named: bool = False
    value_range: Range = "auto"
    counts: Counts = Counts()

    def __post_init__(self) -> None:
        if self.noise == "poisson" and not (self.sigma == "auto" if isinstance(self.sigma, str) else False):
            raise InputError("noise 'poisson' takes no sigma: it has a gain and a read noise, given or estimated")
        if self.noise not in KINDS:
            raise InputError(f"noise must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {self.noise!r}")
        if self.noise == "photo" and isinstance(self.sigma, PoissonNoise):
            raise InputError("noise 'photo' is not for counted photons: give a level, or auto")


@dataclass(frozen=True)
class Result:
    """One restored image.

    array: the restored image, float HW or HWC, not clipped. alpha: HW, of its size, or None. limits: what was seen
    as black and white, in sample values. noise: what was found in the image, or in each of its channels. tile: the side
    of the tiles in which it was made, where the system refused memory for larger ones.
    """

    array: np.ndarray
    alpha: np.ndarray | None
    limits: tuple[float, float]
    noise: tuple[NoiseEstimate, ...] = ()
    tile: int | None = None

    def recorded(self, image: ImageData) -> ImageData:
        """The image with what manifests list of this result: noise, black and white, the tile."""
        noise = tuple(one.record() for one in self.noise)
        return dataclasses.replace(image, noise=noise, value_range=self.limits, tile=self.tile)


def denoised(
    image: ImageData,
    restorer_for: RestorerFor,
    asked: Denoising,
    *,
    say: Report = lambda line: None,
    progress: Progress | None = None,
    beside: Beside = ALONE,
    preview: int | None = None,
) -> ImageData:
    """The denoised image; its `noise` is the estimate, its `value_range` the black and white in sample values.

    The rest as for `denoised_array`.
    """
    for note in image.notes:
        say(note)
    result = denoised_array(
        image.array, image.alpha, restorer_for, asked,
        levels=image.levels, say=say, progress=progress, form=image.format, beside=beside, preview=preview,
    )  # fmt: skip
    image = image if preview is None else image.middle(preview)
    return result.recorded(image.with_array(result.array))


def denoised_array(
    image: np.ndarray,
    alpha: np.ndarray | None,
    restorer_for: RestorerFor,
    asked: Denoising,
    *,
    levels: float = 1.0,
    say: Report = lambda line: None,
    progress: Progress | None = None,
    form: str = "",
    beside: Beside = ALONE,
    preview: int | None = None,
) -> Result:
    """An image HW or HWC in [0, 1], denoised: every entry comes through here.

    restorer_for(channels, photo): of the number of channels that have colour, 1 or 3, the one that restores; photo: it
    should be the one for photographs. levels: the sample value of 1. say receives messages, a line each: the
    noise that was found, the range, how colour is treated, tiles. form: of the file, by Pillow's name. beside: as of
    Restorer.denoise. preview: restore only the middle, of so many pixels a side, by the noise and the range of the
    whole. Raises what Restorer.denoise raises, MemoryBudgetError before any work where too little is free.
    """
    seen = fill_hidden(image, alpha)
    asked = with_photons(asked, [seen], levels, say)
    channels, sigma, photo = channels_of(seen), asked.sigma, asked.noise == "photo"
    chosen = on_unit_scale(asked.value_range, levels)
    found: tuple[NoiseEstimate, ...] = ()
    restorer = restorer_for(channels, photo)
    restorer.require("denoise")
    config = restorer.model.config
    if photo and config.noise != "camera":
        raise ConfigError("noise 'photo' is for a model for photographs, and this one was trained on white noise")
    if isinstance(sigma, str) and config.sigma_input:
        check_auto(sigma)
        found = restorer.found_noise(image, alpha, "auto" if photo else asked.noise, chosen)
    spread = restorer.scale(image, alpha=alpha, value_range=chosen).spread
    if channels == 3 and not asked.named and for_photographs(found, spread):
        restorer = restorer_for(channels, True)
        config = restorer.model.config
    _say_how(say, restorer, asked, found, form, spread)
    level = restorer.level_for(found, spread) if found else sigma
    if not isinstance(level, str | PoissonNoise):
        level = restorer.noise_level(image, level, value_range=chosen)
    if channels == 3 and config.in_channels == 1:
        say("colour goes channel by channel through a grey model")
    scale = restorer.scale(image, level, alpha=alpha, value_range=chosen)
    whole = image.shape[:2]
    if preview is not None:
        place, chosen = middle(whole, preview), scale.limits
        image, alpha = image[place], None if alpha is None else alpha[place]
        level = level[place] if isinstance(level, np.ndarray) and level.ndim == 2 else level
    say_plan(restorer, say, *image.shape[:2])
    say_range(say, scale, levels, asked.value_range)
    grey = photo and channels == 1  # the model for photographs is one of colour
    given = np.repeat(image[..., None] if image.ndim == 2 else image[..., :1], 3, axis=2) if grey else image
    started = time.monotonic()
    array, tile = backing_off(
        restorer,
        image.shape[:2],
        lambda tried: tried.denoise(
            given, level, strength=asked.strength, alpha=alpha, value_range=chosen, progress=progress, beside=beside
        ),
    )
    if preview is not None:
        _say_preview(say, image.shape[:2], whole, time.monotonic() - started)
    if grey:
        mean = array.mean(axis=2, keepdims=True)
        array = mean[..., 0] if image.ndim == 2 else np.repeat(mean, image.shape[2], axis=2)
        array = array if alpha is None else np.where(hidden(image, alpha), image, array)
    return Result(array, alpha, sample_range(scale, levels), found, tile)


def for_photographs(found: tuple[NoiseEstimate, ...], spread: float) -> bool:
    """Whether an image of colour with this noise goes to the model for photographs: a camera's, and not too weak.

    spread: of the range that is restored, as a share of the type's.
    """
    camera = bool(found) and all(one.kind == "camera" for one in found)
    return camera and min(one.level for one in found) >= PHOTO_LEVEL * spread and ships_photo_model()


def with_photons(
    asked: Denoising, planes: Iterable[np.ndarray], levels: float, say: Report = lambda line: None
) -> Denoising:
    """The same with a PoissonNoise as its sigma where the noise is that of photons; planes as of Counts.noise."""
    if asked.noise != "poisson":
        return asked
    noise = asked.counts.noise(planes, levels)
    if asked.counts.gain_adu is None:
        say(f"estimated photons: {photons_text(noise, levels)}")
    return dataclasses.replace(asked, sigma=noise, noise="auto", counts=Counts())


def photons_text(noise: PoissonNoise, levels: float) -> str:
    """In sample values."""
    seen = noise.times(levels / 255)
    return f"gain {seen.gain:.4g}, read noise {seen.read_noise:.3g}, black {seen.black:.4g} (sample values)"


def sample_range(scale: Scale, levels: float, sigma: float = 0.0) -> tuple[float, float]:
    """What was seen as black and white, in sample values of the file, six digits of each.

    sigma: a level, 0-255 units, that the range has to allow: a rounding that made it smaller goes outwards.
    """
    low, high = (limit * levels for limit in scale.limits)
    near = float(f"{low:.6g}"), float(f"{high:.6g}")
    return (-_rounded_up(-low), _rounded_up(high)) if MAX_SIGMA * (near[1] - near[0]) < sigma * levels else near


def _rounded_up(value: float) -> float:
    """To six digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 5)
    return float(f"{math.ceil(value / unit) * unit:.6g}")


def say_range(say: Report, scale: Scale, levels: float, chosen: Range) -> None:
    """One line where an image is not restored on its type's range."""
    if scale.limits != (0.0, 1.0):
        low, high = sample_range(scale, levels)
        of = "of its values" if isinstance(chosen, str) else "given"
        say(f"restored on the range {low:g}..{high:g} {of} ({100 * scale.spread:.3g} % of the type's)")


def _say_preview(say: Report, part: tuple[int, ...], whole: tuple[int, ...], seconds: float) -> None:
    """One line: what the part took, and what that makes of the whole."""
    pixels = part[0] * part[1]
    all_seconds = seconds * whole[0] * whole[1] / pixels
    text = f"{all_seconds:.0f} s" if all_seconds < 100 else f"{all_seconds / 60:.0f} minutes"
    say(f"the middle {part[1]} x {part[0]} pixels in {seconds:.1f} s; the whole image takes about {text}")


def _say_how(
    say: Report, restorer: Restorer, asked: Denoising, found: tuple[NoiseEstimate, ...], form: str, spread: float
) -> None:
    """One line, or two: the noise that was found or is given, and how the model treats it."""
    config, sigma = restorer.model.config, asked.sigma
    if not config.sigma_input:
        say("this model was trained for one noise level and takes none")
    elif found and config.noise == "camera":
        factor = "" if restorer.settings.level == 1 else f", level {restorer.settings.level:g} times that"
        _say_margins(say, found)
        say(f"found {found[0]}: restored by the model for photographs{factor}")
    elif found:
        _say_margins(say, found)
        _say_found(say, found, form, MAX_SIGMA * max(1.0, spread))
    elif not isinstance(sigma, str | PoissonNoise) and (hint := scale_hint(sigma, spread)) is not None:
        say(hint)
    if restorer.settings.level != 1 and not (found and config.noise == "camera"):
        say(f"level {restorer.settings.level:g} has no effect here: it multiplies what the model for photographs finds")


def _say_margins(say: Report, found: tuple[NoiseEstimate, ...]) -> None:
    margins = [one.margin for one in found if one.margin is not None]
    if margins:
        say(f"margins with noise of {level_text(max(margins))} were left out of the estimate: the rest has more")


def _say_found(say: Report, found: tuple[NoiseEstimate, ...], form: str, most: float) -> None:
    """The noise of the image, or of each channel. most: the largest level that the model takes."""
    limit = " or more, this model's limit" if max(one.sigma for one in found) >= most else ""
    listed = ", ".join(level_text(min(one.sigma, most)) for one in found)
    if any(one.kind != "white" for one in found):
        say(f"found {' / '.join(map(str, found))}: restored as sigma {listed}{limit}")
        return
    say(f"estimated noise: sigma {listed}{limit}")
    if form == "JPEG":
        say("JPEG hides noise from the estimate: give a sigma where too much of it stays")


def say_plan(restorer: Restorer, say: Report, height: int, width: int) -> None:
    """Report the tiles of an image of this size, if any. Raises MemoryBudgetError where too little memory is free."""
    if restorer.settings.mode != "window":
        return
    side = restorer.tile_for(height, width)
    if side is not None:
        overlap = restorer.settings.overlap_of(side)
        say(f"{width} x {height} pixels in tiles of {side}, overlapping by {overlap}")
    height, width = min(height, side or height), min(width, side or width)
    need, found = height * width * restorer.memory_per_pixel(height, width) / 2**20, memory()
    if restorer.device.type == "cpu" and found is not None and need > found["available"]:
        raise MemoryBudgetError(
            f"{width} x {height} pixels at once take about {need:,.0f} MiB, and {found['available']:,} are free: give"
            " --memory what may be taken, or --tile a smaller side"
        )
