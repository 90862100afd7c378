"""nlrn upscale."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from typing import Any

from nlrn.batch.s3 import ObjectPath
from nlrn.cli.images import add_image_options, restore_input
from nlrn.cli.shared import add_command, number, side
from nlrn.cli.stacks import EnlargeStack, add_stack_options
from nlrn.errors import ConfigError

EXAMPLES = """
nlrn upscale image.png                              twice as large; writes image-enlarged.png
nlrn upscale image.png -o large.png --scale 3
nlrn upscale image.png -o wide.png --width 1920
nlrn upscale noisy.png -o large.png --denoise-first   a photograph with grain
"""


def add(commands: Any) -> None:
    """Add the parser of `nlrn upscale` to the subparsers of argparse."""
    parser = add_command(commands, "upscale", "enlarge an image (super-resolution)", EXAMPLES)
    group = parser.add_argument_group("size")
    group.add_argument("-s", "--scale", type=number("scale", 1.5, 16), help="how many times, 1.5 to 16 (default: 2)")
    group.add_argument("--width", type=side, metavar="PIXELS", help="of OUT, instead of a scale; one side sets both")
    group.add_argument("--height", type=side, metavar="PIXELS", help="of OUT, instead of a scale; one side sets both")
    group = parser.add_argument_group("noise, which would be enlarged, too")
    first = group.add_mutually_exclusive_group()
    first.add_argument(
        "--denoise-first",
        action="store_true",
        default=None,
        help="remove it before (default: where white noise is found)",
    )
    first.add_argument("--keep-noise", action="store_false", dest="denoise_first", help="do not look for it")
    add_image_options(parser)
    add_stack_options(parser, neighbors=False)
    parser.set_defaults(run=_upscale, task="sr")


def _upscale(options: argparse.Namespace) -> int:
    from nlrn.inference.options import UpscaleOptions

    if options.scale is not None and (options.width or options.height):
        raise ConfigError("give a scale, or a width and a height, not both")
    restored = partial(UpscaleOptions.restored, how=_command(options), how_not="--keep-noise")
    asked = UpscaleOptions.of(vars(options))
    return restore_input(options, asked, restored, "enlarging", lambda at, asked: EnlargeStack(asked, _command(at)))


def _command(options: argparse.Namespace) -> str:
    """The same command with the noise removed first; of a folder what is added to it."""
    if isinstance(options.input, ObjectPath) or options.input.is_dir():
        return "--denoise-first"
    added = [word for word in ("--denoise-first", "--overwrite") if word not in options.words]
    return " ".join(map(shlex.quote, ["nlrn", options.words[0], *added, *options.words[1:]]))
