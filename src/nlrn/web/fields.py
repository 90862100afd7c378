"""The fields of the requests: the type of each, defined once for the checks and for the document at /openapi.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from nlrn.functional.limits import MAX_SIGMA
from nlrn.io.written import SUFFIXES

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(suffix.removeprefix(".") for suffix in SUFFIXES)]
Level = Annotated[float, Field(ge=0, le=MAX_SIGMA)]
Tile = Annotated[int, Field(ge=0, le=0)] | Annotated[int, Field(ge=32, le=1_000_000)]
Side = Annotated[int, Field(ge=1, le=1_000_000)]


class Upload(BaseModel):
    """image: the file itself; there is no field for an address of one."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    image: Annotated[UploadFile, Field(description="an image's file")]


class Restoration(Upload):
    """The options of nlrn denoise and nlrn upscale, under the same names."""

    model: Annotated[str | None, Field(max_length=200, description="a name that /v1/models lists")] = None
    format: Annotated[Format | None, Field(description="of the result; else that of the image, PNG for a GIF")] = None
    range: Annotated[
        str,
        Field(
            pattern=r"^(auto|type|image|[-+.eE0-9]{1,32},[-+.eE0-9]{1,32})$",
            description="the values restored as black and white: auto, type, image, or LO,HI in sample values",
        ),
    ] = "auto"
    depth: Annotated[Literal["8", "16", "32"] | None, Field(description="bits a sample; 32: floats")] = None
    quality: Annotated[int | None, Field(ge=1, le=100, description="of JPEG and AVIF, 95 if not given")] = None
    compression: Annotated[Literal["none", "lzw", "deflate"] | None, Field(description="of TIFF")] = None
    mode: Literal["window", "patch"] = "window"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tta: bool = False
    tile: Annotated[Tile | None, Field(description="side in pixels, 32 and more; 0: the whole image")] = None
    overlap: Annotated[int | None, Field(ge=0, le=1_000_000, description="pixels shared by tiles")] = None
    watch: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9_-]{16,64}$", description="a random word; /v1/progress/WORD returns the progress"),
    ] = None


class Denoising(Restoration):
    """Noise levels are in 0-255 units."""

    sigma: Annotated[Level | Literal["auto"], Field(description="noise level, or auto: estimated")] = "auto"
    strength: Annotated[float, Field(ge=0, le=1, description="how much of the noise goes")] = 1.0
    noise: Annotated[
        Literal["auto", "gaussian", "poisson", "photo"],
        Field(
            description="auto: white or camera-like, as found; gaussian: white; poisson: counted photons; photo:"
            " that of cameras, by the model for photographs"
        ),
    ] = "auto"
    level: Annotated[float, Field(ge=0, le=2, description="of the model for photographs: factor on the estimate")] = 1.0
    gain: Annotated[float | None, Field(ge=1e-4, le=255, description="with poisson")] = None
    read_noise: Annotated[Level | None, Field(description="with poisson: sigma of the read-out")] = None
    gain_adu: Annotated[float | None, Field(gt=0, le=1e6, description="with poisson: of a photon, sample values")] = (
        None
    )
    read_noise_adu: Annotated[float | None, Field(ge=0, le=1e6, description="with poisson: sigma, sample values")] = (
        None
    )
    black_level_adu: Annotated[
        float | None, Field(ge=-1e6, le=1e6, description="with poisson: the value without light")
    ] = None


class Upscaling(Restoration):
    """By a scale, or to a width, a height or both."""

    scale: Annotated[float | None, Field(ge=1.5, le=16, description="2 if no size is given")] = None
    width: Annotated[Side | None, Field(description="pixels, instead of a scale")] = None
    height: Annotated[Side | None, Field(description="pixels, instead of a scale")] = None
    denoise_first: Annotated[
        bool | None, Field(description="whether noise is removed before; if not given, where white noise is found")
    ] = None


class Explaining(Upload):
    """A pixel, column and row from 0 at the top left."""

    x: Annotated[int, Field(ge=0, le=1_000_000)]
    y: Annotated[int, Field(ge=0, le=1_000_000)]
    sigma: Annotated[Level | Literal["auto"], Field(description="of the noise in the image")] = "auto"
    model: Annotated[str | None, Field(max_length=200)] = None
