"""nlrn denoise."""

from __future__ import annotations

import argparse
from typing import Any

from nlrn.cli.shared import ProgressBar, add_picture_options, make_restorer, read_input, say_tiles, sayer, sigma_or_auto


def add(commands: Any) -> None:
    parser = commands.add_parser("denoise", help="remove noise from a picture")
    parser.add_argument(
        "--sigma", type=sigma_or_auto, default="auto", help="noise level in 0-255 units, 0..75, or auto (default)"
    )
    add_picture_options(parser)
    parser.set_defaults(run=_denoise)


def _denoise(options: argparse.Namespace) -> int:
    from nlrn.alpha import fill_hidden
    from nlrn.images import write_picture
    from nlrn.restore import channels_of

    picture = read_input(options)
    seen = picture.array if picture.alpha is None else fill_hidden(picture.array, picture.alpha)
    channels = channels_of(seen)
    restorer = make_restorer(options, channels=channels)
    say = sayer(options)
    level = restorer.noise_level(seen, options.sigma)
    if not restorer.model.config.sigma_input:
        say("this model was trained for one noise level and takes none")
    elif options.sigma == "auto":
        say(f"estimated noise: sigma {level:.1f}" + (" or more, this model's limit" if level == 75 else ""))
    if channels == 3 and restorer.model.config.in_channels == 1:
        say("colour goes channel by channel through a grey model")
    say_tiles(options, restorer, *picture.array.shape[:2])
    with ProgressBar(options, "denoising") as tick:
        restored = restorer.denoise(picture.array, level, alpha=picture.alpha, progress=tick)
    write_picture(options.output, picture.with_array(restored), overwrite=options.overwrite)
    say(f"wrote {options.output}")
    return 0
