"""nlrn upscale."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nlrn.cli.images import add_image_options, restore_input
from nlrn.cli.shared import add_command, number, side
from nlrn.errors import ConfigError

if TYPE_CHECKING:
    from nlrn.cli.shared import Report
    from nlrn.inference.options import UpscaleOptions
    from nlrn.inference.self_ensemble import Progress
    from nlrn.io.image import ImageData

EXAMPLES = """
nlrn upscale image.png                              twice as large; writes image-enlarged.png
nlrn upscale image.png -o large.png --scale 3
nlrn upscale image.png -o wide.png --width 1920
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn upscale` to the subparsers of argparse."""
    parser = add_command(commands, "upscale", "enlarge an image (super-resolution)", EXAMPLES)
    group = parser.add_argument_group("size")
    group.add_argument("-s", "--scale", type=_scale, help="how many times, 1.5 to 16 (default: 2)")
    group.add_argument("--width", type=side, metavar="PIXELS", help="of OUT, instead of a scale; one side sets both")
    group.add_argument("--height", type=side, metavar="PIXELS", help="of OUT, instead of a scale; one side sets both")
    add_image_options(parser)
    parser.set_defaults(run=_upscale, task="sr")


def _upscale(options: argparse.Namespace) -> int:
    from nlrn.inference.options import UpscaleOptions

    if options.scale is not None and (options.width or options.height):
        raise ConfigError("give a scale, or a width and a height, not both")
    return restore_input(options, UpscaleOptions.of(vars(options)), _restored, "enlarging", _expected)


def _expected(asked: UpscaleOptions, image: ImageData) -> ImageData:
    return image.of_size(*asked.size(image))


def _restored(asked: UpscaleOptions, image: ImageData, say: Report, tick: Progress | None) -> ImageData:
    from nlrn.inference.pipeline import upscaled

    restorer = asked.restorer(1)
    return upscaled(image, restorer, *asked.size(image), value_range=asked.range, say=say, progress=tick)


def _scale(text: str) -> float:
    return number(text, "scale", 1.5, 16)
