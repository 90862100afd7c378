"""nlrn denoise."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.cli.images import add_image_options, restore_input
from nlrn.cli.shared import add_command, number, sigma_level, sigma_or_auto, whole
from nlrn.cli.stacks import DenoiseStack, add_stack_options, is_stack
from nlrn.errors import ConfigError, InputError
from nlrn.functional.limits import MAX_SIGMA

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """
nlrn denoise photo.jpg                              the noise is found; writes photo-restored.jpg
nlrn denoise noisy.png -o clean.png --sigma 25      white noise of a level that is known
nlrn denoise night.jpg --noise photo --level 0.7    a photograph, less smoothed
nlrn denoise photos -o restored -r                  a folder and those below it
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn denoise` to the subparsers of argparse."""
    parser = add_command(commands, "denoise", "remove noise from an image", EXAMPLES)
    group = parser.add_argument_group("noise")
    group.add_argument(
        "--sigma",
        type=_sigma,
        help=f"noise level in 0-255 units, 0..{MAX_SIGMA:g}, or auto (default); of a stack also per-plane",
    )
    group.add_argument(
        "--sigma-map",
        type=Path,
        metavar="FILE",
        help="a noise level for each pixel: the levels, 0-255, of a grey image, or the numbers of a float TIFF",
    )
    group.add_argument(
        "--strength", type=number("strength", 0, 1), default=1.0, help="how much of the noise goes, 0..1 (default: 1)"
    )
    group.add_argument(
        "--noise",
        choices=("auto", "gaussian", "poisson", "photo"),
        default="auto",
        help="auto: white or camera-like, as found (default); gaussian: white; poisson: counted photons, noise that"
        " grows with the light, estimated where no gain is given; photo: that of cameras, by the model for"
        " photographs",
    )
    group.add_argument(
        "--level",
        type=number("level", 0, 2),
        default=1.0,
        help="of the model for photographs: factor on the level that is estimated, 0..2 (default: 1)",
    )
    group.add_argument(
        "--gain", type=number("gain", 1e-4, 255), metavar="G", help="with poisson: what one photon adds, 0-255 units"
    )
    group.add_argument("--read-noise", type=sigma_level, metavar="R", help="with poisson: sigma of the read-out")
    for name, letter, what, least in (
        ("gain", "G", "what one photon adds", 1e-9),
        ("read-noise", "R", "sigma of the read-out", 0.0),
        ("black-level", "B", "the value without light", -1e6),
    ):
        adu = number("number of sample values", least, 1e6)
        group.add_argument(
            f"--{name}-adu", type=adu, metavar=letter, help=f"with poisson: {what}, in IN's own sample values"
        )
    add_image_options(parser)
    parser.add_argument(
        "--preview",
        nargs="?",
        type=whole("a preview has sides of at least 32 pixels", 32),
        const=512,
        metavar="PIXELS",
        help="restore only the middle, so many pixels a side (512 if none is given), by the noise of the whole image,"
        " and print what the whole takes",
    )
    add_stack_options(parser, neighbors=True)
    parser.set_defaults(run=_denoise)


def _denoise(options: argparse.Namespace) -> int:
    from nlrn.inference.options import DenoiseOptions

    asked = DenoiseOptions.of(vars(options))  # before any work
    asked.asked()
    if options.preview and (options.input.is_dir() or is_stack(options.input)):
        raise ConfigError(
            f"{options.input} is {'a folder' if options.input.is_dir() else 'a stack'}: --preview is for one image"
        )
    if options.sigma_map is not None:
        if options.input.is_dir():
            raise ConfigError("a map of noise levels fits one image, not a folder")
        if options.noise == "poisson" or options.sigma is not None:
            raise ConfigError("--sigma-map takes neither --sigma nor --noise poisson")
    of_stacks = "--sigma per-plane" if options.sigma == "per-plane" else "--neighbors" if options.neighbors else None
    if of_stacks and (options.input.is_dir() or not is_stack(options.input)):
        raise ConfigError(f"{options.input} is no stack: {of_stacks} is for one")
    if options.neighbors and options.sigma == "per-plane":
        raise ConfigError("--neighbors are restored with one sigma: give it, or auto, not per-plane")
    if options.sigma_map is not None:
        asked = dataclasses.replace(asked, sigma=_map(options.sigma_map))
    return restore_input(options, asked, DenoiseOptions.restored, "denoising", lambda _, asked: DenoiseStack(asked))


def _map(path: Path) -> np.ndarray:
    """Noise levels in 0-255 units, float32 HW."""
    from nlrn.functional.levels import channels_of
    from nlrn.io.image import read_image

    image = read_image(path)
    if channels_of(image.array) == 3 or image.alpha is not None:
        raise InputError(f"{path}: a map of noise levels is a grey image without alpha")
    levels = image.array if image.array.ndim == 2 else image.array[..., 0]
    return levels if image.depth == 32 else levels * 255


def _sigma(text: str) -> float | str:
    return text if text == "per-plane" else sigma_or_auto(text)
