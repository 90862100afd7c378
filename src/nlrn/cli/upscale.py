"""nlrn upscale."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import TYPE_CHECKING, Any

from nlrn.cli.pictures import add_picture_options, restore_input, say_plan
from nlrn.cli.shared import make_restorer, number, side
from nlrn.errors import ConfigError, InputError

if TYPE_CHECKING:
    from nlrn.cli.shared import Say
    from nlrn.images import Picture
    from nlrn.views import Progress


def add(commands: Any) -> None:
    parser = commands.add_parser("upscale", help="enlarge a picture (super-resolution)")
    parser.add_argument("-s", "--scale", type=_scale, help="how many times, 1.5 to 16 (default: 2)")
    parser.add_argument("--width", type=side, metavar="PIXELS", help="of OUT, instead of a scale; alone it sets both")
    parser.add_argument("--height", type=side, metavar="PIXELS", help="of OUT, instead of a scale; alone it sets both")
    add_picture_options(parser)
    parser.set_defaults(run=_upscale, task="sr")


def _upscale(options: argparse.Namespace) -> int:
    if options.scale is not None and (options.width or options.height):
        raise ConfigError("give a scale, or a width and a height, not both")
    return restore_input(
        options, _restored, "enlarging", lambda picture: picture.of_size(*_size(options, *picture.array.shape[:2]))
    )


def _restored(options: argparse.Namespace, picture: Picture, say: Say, tick: Progress | None) -> Picture:
    from nlrn.alpha import enlarged_alpha, fill_hidden
    from nlrn.enlarging import passes_of

    height, width = _size(options, *picture.array.shape[:2])
    restorer = make_restorer(options, channels=1)
    if passes_of(picture.array.shape[:2], (height, width)) > 1:
        say("beyond 4 times: two equal steps, the second on what the first made")
    say_plan(options, restorer, say, height, width)
    seen = picture.array if picture.alpha is None else fill_hidden(picture.array, picture.alpha)
    array = restorer.upscale(seen, height, width, progress=tick)
    alpha = None if picture.alpha is None else enlarged_alpha(picture.alpha, height, width)
    return dataclasses.replace(picture.of_size(height, width), array=array, alpha=alpha)


def _size(options: argparse.Namespace, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the result, one that is offered; a side alone sets the other, halves rounded up."""
    from nlrn.enlarging import enlarged_size, passes_of
    from nlrn.images import MAX_RESULT_PIXELS

    if options.width is None and options.height is None:
        size = enlarged_size((height, width), options.scale or 2.0)
    else:
        size = (
            options.height or max(1, math.floor(height * options.width / width + 0.5)),
            options.width or max(1, math.floor(width * options.height / height + 0.5)),
        )
    passes_of((height, width), size)
    if size[0] * size[1] > MAX_RESULT_PIXELS:
        raise InputError(f"a result of {size[1]} x {size[0]} pixels is beyond the limit of {MAX_RESULT_PIXELS:,}")
    return size


def _scale(text: str) -> float:
    return number(text, "scale", 1.5, 16)
