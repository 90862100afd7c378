"""nlrn upscale."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from nlrn.cli.shared import (
    ProgressBar,
    add_picture_options,
    make_restorer,
    number,
    read_input,
    say_tiles,
    sayer,
    side,
)
from nlrn.errors import ConfigError, InputError


def add(commands: Any) -> None:
    parser = commands.add_parser("upscale", help="enlarge a picture (super-resolution)")
    parser.add_argument("-s", "--scale", type=_scale, help="how many times, 1.5 to 16 (default: 2)")
    parser.add_argument("--width", type=side, metavar="PIXELS", help="of OUT, instead of a scale; alone it sets both")
    parser.add_argument("--height", type=side, metavar="PIXELS", help="of OUT, instead of a scale; alone it sets both")
    add_picture_options(parser)
    parser.set_defaults(run=_upscale, task="sr")


def _upscale(options: argparse.Namespace) -> int:
    from nlrn.alpha import enlarged_alpha, fill_hidden
    from nlrn.images import MAX_RESULT_PIXELS, write_picture
    from nlrn.restore import passes_of

    picture = read_input(options)
    before = picture.array.shape[:2]
    height, width = _size(options, *before)
    passes = passes_of(before, (height, width))
    if height * width > MAX_RESULT_PIXELS:
        raise InputError(f"a result of {width} x {height} pixels is beyond the limit of {MAX_RESULT_PIXELS:,}")
    restorer = make_restorer(options, channels=1)
    say = sayer(options)
    if passes > 1:
        say("beyond 4 times: two equal steps, the second on what the first made")
    say_tiles(options, restorer, height, width)
    seen = picture.array if picture.alpha is None else fill_hidden(picture.array, picture.alpha)
    with ProgressBar(options, "enlarging") as tick:
        array = restorer.upscale(seen, height, width, progress=tick)
    alpha = None if picture.alpha is None else enlarged_alpha(picture.alpha, height, width)
    larger = dataclasses.replace(picture, array=array, alpha=alpha)
    write_picture(options.output, larger, overwrite=options.overwrite)
    say(f"wrote {options.output}, {width} x {height}")
    return 0


def _size(options: argparse.Namespace, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the result."""
    if options.width is None and options.height is None:
        scale = options.scale or 2.0
        return round(height * scale), round(width * scale)
    if options.scale is not None:
        raise ConfigError("give a scale, or a width and a height, not both")
    return (
        options.height or max(1, round(height * options.width / width)),
        options.width or max(1, round(width * options.height / height)),
    )


def _scale(text: str) -> float:
    return number(text, "scale", 1.5, 16)
