"""nlrn upscale."""

from __future__ import annotations

import argparse
import dataclasses
import math
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
    from nlrn.enlarging import passes_of
    from nlrn.images import MAX_RESULT_PIXELS, check_output, write_picture

    picture = read_input(options)
    before = picture.array.shape[:2]
    height, width = _size(options, *before)
    passes = passes_of(before, (height, width))
    if height * width > MAX_RESULT_PIXELS:
        raise InputError(f"a result of {width} x {height} pixels is beyond the limit of {MAX_RESULT_PIXELS:,}")
    larger = picture.of_size(height, width)
    check_output(options.output, overwrite=options.overwrite, inputs=(options.input,), picture=larger)
    restorer = make_restorer(options, channels=1)
    say = sayer(options)
    if passes > 1:
        say("beyond 4 times: two equal steps, the second on what the first made")
    say_tiles(options, restorer, height, width)
    seen = picture.array if picture.alpha is None else fill_hidden(picture.array, picture.alpha)
    with ProgressBar(options, "enlarging") as tick:
        array = restorer.upscale(seen, height, width, progress=tick)
    alpha = None if picture.alpha is None else enlarged_alpha(picture.alpha, height, width)
    result = dataclasses.replace(larger, array=array, alpha=alpha)
    write_picture(options.output, result, overwrite=options.overwrite)
    say(f"wrote {options.output}, {width} x {height}")
    return 0


def _size(options: argparse.Namespace, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the result; a side alone sets the other in proportion, halves rounded up."""
    from nlrn.enlarging import enlarged_size

    if options.width is None and options.height is None:
        return enlarged_size((height, width), options.scale or 2.0)
    if options.scale is not None:
        raise ConfigError("give a scale, or a width and a height, not both")
    return (
        options.height or max(1, math.floor(height * options.width / width + 0.5)),
        options.width or max(1, math.floor(width * options.height / height + 0.5)),
    )


def _scale(text: str) -> float:
    return number(text, "scale", 1.5, 16)
