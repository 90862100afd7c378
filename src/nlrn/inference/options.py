"""The options of restoring an image, made of the arguments of a command or the fields of a form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from nlrn.errors import ConfigError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.ranges import Range, parsed
from nlrn.inference.enlarging import NoiseFirst, result_size, upscaled
from nlrn.inference.pipeline import Counts, Denoising, Report, RestorerFor, Sigma, denoised, restorer_of
from nlrn.inference.restorer import Restorer
from nlrn.inference.self_ensemble import Progress
from nlrn.inference.settings import Settings
from nlrn.io.image import MAX_RESULT_PIXELS, ImageData
from nlrn.io.stacks import float_levels, scaled
from nlrn.models.checkpoint import default_model


@dataclass(frozen=True)
class Options(Settings):
    """The options of every restoration: Settings, and what is particular to images and files.

    model: a shipped name or a weights file, None for the best one. depth: bits a sample of the result, None for the
    image's. range: as of Restorer.denoise, numbers being sample values. quality: of JPEG and AVIF; compression: of
    TIFF; as of nlrn.io.image.encode_image. Raises ConfigError as Settings.
    """

    task: ClassVar[str] = "denoise"
    model: str | None = None
    device: str = "auto"
    range: Range = "auto"
    depth: int | None = None
    quality: int | None = None
    compression: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], **more: Any) -> Self:
        """The options of arguments or fields by their names, and more.

        What is None takes its default, other names are left out. Raises ConfigError for an invalid range.
        """
        known = {field.name for field in fields(cls)}
        found = {name: value for name, value in {**given, **more}.items() if name in known and value is not None}
        if isinstance(found.get("range"), str):
            found["range"] = parsed(found["range"])
        if "depth" in found:
            found["depth"] = int(found["depth"])
        return cls(**found)

    def restorer(self, channels: int, photo: bool = False) -> Restorer:
        """The Restorer for images of 1 or 3 channels, or for photographs. Raises as Restorer."""
        name = default_model(self.task, channels, photo=photo) if self.model is None else self.model
        settings = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        return restorer_of(name, self.device, settings)

    def expected(self, image: ImageData, most: int = MAX_RESULT_PIXELS) -> ImageData:
        """An image of the size of the result, before there is one. Raises InputError for more pixels than `most`."""
        return image

    def prepared(self, image: ImageData) -> ImageData:
        """The image as `formed`; floats beyond 0..1, which are counts, on the scale of 8, 16 or 32 bits.

        They come back on their own scale.
        """
        if image.depth == 32 and image.levels == 1:
            levels = float_levels(float(image.array.min()), float(image.array.max()))
            if levels != 1:
                note = f"floats beyond 0..1 are counts: sigma is in 1/255 of {levels:g}"
                image = replace(scaled(image, levels), notes=(*image.notes, note))
        return self.formed(image)

    def formed(self, image: ImageData) -> ImageData:
        """The image in the depth of the result, and written as asked."""
        image = image if self.depth is None else image.with_depth(self.depth)
        asked = {name: value for name in ("quality", "compression") if (value := getattr(self, name)) is not None}
        return replace(image, **asked) if asked else image


@dataclass(frozen=True)
class DenoiseOptions(Options):
    """The options of denoising.

    sigma, strength, noise: as of Denoising; noise "poisson": of counted photons, with a gain and the sigma of the
    read-out, read_noise, on the 0-255 scale, or gain_adu, read_noise_adu and black_level_adu in sample values; what is
    not given is estimated. preview: of the middle only, as of `denoised_array`.
    """

    sigma: Sigma = "auto"
    strength: float = 1.0
    noise: str = "auto"
    gain: float | None = None
    read_noise: float | None = None
    gain_adu: float | None = None
    read_noise_adu: float | None = None
    black_level_adu: float | None = None
    preview: int | None = None

    def expected(self, image: ImageData, most: int = MAX_RESULT_PIXELS) -> ImageData:
        """An image of the size of the result, before there is one."""
        return image if self.preview is None else image.middle(self.preview)

    def asked(self) -> Denoising:
        """The options for the pipeline.

        Raises ConfigError for a gain without noise of photons, for such noise with a sigma, and for numbers on two
        scales; InputError as Denoising.
        """
        in_adu = (self.gain_adu, self.read_noise_adu, self.black_level_adu)
        given = (self.gain, self.read_noise, *in_adu)
        if self.noise != "poisson" and any(number is not None for number in given):
            raise ConfigError("a gain and read noise belong to poisson noise")
        if self.noise == "poisson" and not isinstance(self.sigma, str):
            raise ConfigError("poisson noise takes no sigma: it has a gain and a read noise")
        if self.gain is None and self.read_noise is not None:
            raise ConfigError("poisson noise with a read noise on the 0-255 scale requires a gain on that scale")
        if self.gain is not None and any(number is not None for number in in_adu):
            raise ConfigError(
                "poisson noise: give gain and read noise on the 0-255 scale or in sample values, not both"
            )
        named = self.model is not None
        if self.gain is None:
            return Denoising(self.sigma, self.strength, self.noise, named, self.range, Counts(*in_adu))
        poisson = PoissonNoise(self.gain, self.read_noise or 0.0)
        return Denoising(poisson, self.strength, "auto", named, self.range)

    def restored(
        self, image: ImageData, say: Report, progress: Progress | None, restorer_for: RestorerFor | None = None
    ) -> ImageData:
        """The denoised image, as of `pipeline.denoised`. restorer_for: by default `restorer`."""
        return denoised(
            image, restorer_for or self.restorer, self.asked(), say=say, progress=progress, preview=self.preview
        )


@dataclass(frozen=True)
class UpscaleOptions(Options):
    """The options of enlarging.

    scale: how many times, 2 if no side is given; width, height: pixels of the result, one sets both. denoise_first:
    whether noise is removed before, as of NoiseFirst.
    """

    task: ClassVar[str] = "sr"
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    denoise_first: bool | None = None

    def expected(self, image: ImageData, most: int = MAX_RESULT_PIXELS) -> ImageData:
        """An image of the size of the result, before there is one. Raises InputError."""
        height, width = image.array.shape[:2]
        return image.of_size(*self.size_of(height, width, most))

    def restored(
        self,
        image: ImageData,
        say: Report,
        progress: Progress | None,
        restorer_for: RestorerFor | None = None,
        **words: str,
    ) -> ImageData:
        """The enlarged image, as of `enlarging.upscaled`. restorer_for: by default `restorer`; words: of NoiseFirst."""
        restorer = (restorer_for or self.restorer)(1, False)
        size = self.size_of(*image.array.shape[:2])
        return upscaled(
            image, restorer, *size, first=self.first(**words), value_range=self.range, say=say, progress=progress
        )

    def first(self, **words: str) -> NoiseFirst:
        """Whether noise is removed before. words: of NoiseFirst."""
        denoising = Options.of(vars(self), model=None)  # by what is shipped
        return NoiseFirst(denoising.restorer, self.denoise_first, **words)

    def size_of(self, height: int, width: int, most: int = MAX_RESULT_PIXELS) -> tuple[int, int]:
        """(height, width) of the result of an image of this size, as of `result_size`. Raises InputError."""
        return result_size(height, width, scale=self.scale, to_height=self.height, to_width=self.width, most=most)
