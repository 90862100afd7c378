"""What the commands that restore images share: one image, or a folder of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.batch.s3 import ObjectPath, Place, place
from nlrn.cli.digest import CLUSTER_OPTIONS, FOLDER_OPTIONS, digest
from nlrn.cli.naming import SUFFIXES, result_beside
from nlrn.cli.shared import (
    ProgressBar,
    Report,
    add_model_options,
    complain,
    count,
    mebibytes,
    reporter,
    side,
    whole,
)
from nlrn.cli.stacks import StackTask, is_stack, restore_stack, stack_of_folder
from nlrn.errors import ConfigError, InputError

if TYPE_CHECKING:
    from nlrn.batch.ray import RayEngine
    from nlrn.batch.run import Outcome
    from nlrn.functional.ranges import Range
    from nlrn.inference.options import Options
    from nlrn.inference.self_ensemble import Progress
    from nlrn.io.image import ImageData

    Restored = Callable[[Any, ImageData, Report, Progress | None], ImageData]  # Any: what is asked, as of its task
    Task = Callable[[argparse.Namespace, Any], StackTask]  # of the options and what is asked


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """IN, --output, --overwrite, --depth, the options of a model, of tiles and of folders."""
    parser.usage = "%(prog)s IN [-o OUT] [OPTION ...]"
    parser.add_argument(
        "input",
        type=partial(_place, "IN"),
        metavar="IN",
        help="an image, or a folder of images: of a disk, or s3://BUCKET/FOLDER",
    )
    group = parser.add_argument_group("result")
    group.add_argument(
        "-o",
        "--output",
        type=partial(_place, "OUT"),
        metavar="OUT",
        help="its suffix sets the format; of a folder: a folder (default: beside IN, its name with"
        f" {SUFFIXES[parser.prog.rpartition(' ')[2]]})",
    )
    group.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    group.add_argument(
        "--depth", type=int, choices=(8, 16, 32), help="bits a sample of OUT, 32: floats (default: those of IN)"
    )
    group.add_argument(
        "--range",
        type=_range,
        default="auto",
        metavar="auto|type|image|LO,HI",
        help="the values restored as black and white: the type's, the image's own, or given sample values (default:"
        " the image's own where it is a small part of the type's); sigma stays in 1/255 of the type's",
    )
    group.add_argument(
        "--quality", type=whole("expected 1 to 100", most=100), metavar="1-100", help="of JPEG and AVIF (default: 95)"
    )
    group.add_argument(
        "--compression", choices=("none", "lzw", "deflate"), help="of TIFF, without loss (default: none)"
    )
    group.add_argument("--keep-gps", action="store_true", help="keep GPS data in EXIF and XMP")
    group.add_argument("--json", action="store_true", help="print what was done as JSON")
    add_model_options(parser)
    group = parser.add_argument_group("memory")
    group.add_argument("-t", "--tile", type=_tile, metavar="PIXELS", help="side of a tile; 0: the whole image")
    group.add_argument("--overlap", type=count, metavar="PIXELS", help="shared by tiles (default: 32)")
    group.add_argument("--memory", type=mebibytes, metavar="MIB", help="memory limit in MiB (default: 4096)")
    group.add_argument(
        "--max-pixels", type=side, metavar="COUNT", help="refuse images with more pixels (default: 100,000,000)"
    )
    group = parser.add_argument_group("where IN is a folder")
    group.add_argument("-r", "--recursive", action="store_true", help="the folders below it too")
    group.add_argument("--suffix", default="", metavar="TEXT", help="at the end of the results' names: --suffix=-clean")
    group.add_argument("--format", metavar="EXT", help="of all results: png, tif ... (default: each image's own)")
    group.add_argument("--skip-existing", action="store_true", help="keep results that exist")
    group.add_argument(
        "-j", "--jobs", type=side, help="images at once, sharing the threads (default: 1; of ray: all that fit)"
    )
    group = parser.add_argument_group("a folder on a Ray cluster (docs/cluster.md)")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="what restores (default: local)")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: Ray is started here)"
    )
    group.add_argument("--worker-cpus", type=side, default=1, metavar="N", help="of one of Ray's workers (default: 1)")
    group.add_argument(
        "--worker-gpus", type=_share, default=0.0, metavar="SHARE", help="of one of Ray's workers: 1, 0.5 (default: 0)"
    )


def _place(what: str, text: str) -> Place:
    if not text:
        raise argparse.ArgumentTypeError(f"{what} is empty: give an image, or a folder of images")
    try:
        return place(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _range(text: str) -> Range:
    if text == "auto":  # the default; numpy is not imported for it
        return text
    from nlrn.functional.ranges import parsed

    try:
        return parsed(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def restore_input(
    options: argparse.Namespace,
    asked: Options,
    restored: Restored,
    what: str,
    task: Task,
) -> int:
    """IN, an image or a folder, restored into OUT; returns the exit code.

    restored(asked, image, say, tick): a function of a module or class, the result of one image. task(options,
    asked): what is done with a file of many planes.
    """
    stored = isinstance(options.input, ObjectPath)
    if not (stored or options.input.exists()):  # before OUT is checked, which of a folder has no suffix
        raise InputError(f"there is no file or folder {options.input}")
    unnamed = options.output is None
    if unnamed:
        options.output = result_beside(options)
    if stored or options.input.is_dir():
        return _restore_folder(options, asked, restored, what, task)
    from nlrn.io.image import left_out_by, write_image
    from nlrn.io.written import SUFFIXES

    many = is_stack(options.input)
    _name_result(options, many, unnamed)
    _check_single(options)
    started, lines, kind = time.monotonic(), list[str](), SUFFIXES.get(options.output.suffix.lower(), "TIFF")
    say = lines.append if options.json else reporter(options)
    if many:
        options.quiet |= options.json
        lost = ["--keep-gps has no effect on a stack, which keeps no place"] * options.keep_gps
        for line in (*_without_effect(options, kind), *lost):
            say(line)
        found = restore_stack(options, task(options, asked), say)
        size = f", {found['planes']} planes"
    else:
        image = _read_input(options, asked)
        with ProgressBar(options, what) as tick:
            result = restored(asked, image, say, tick)
        for line in (*left_out_by(result, kind), *_without_effect(options, kind)):
            say(line)
        write_image(options.output, result, overwrite=options.overwrite)
        height, width = result.array.shape[:2]
        size = f", {width} x {height}" if (height, width) != image.array.shape[:2] else ""
        found = {"width": width, "height": height, "noise": result.noise}
    if options.json:
        record = {"input": str(options.input), "output": str(options.output), "seconds": time.monotonic() - started}
        print(json.dumps(record | found | {"said": lines}))
    say(f"wrote {options.output}{size}" + (f"; {options.input} is unchanged" if unnamed else ""))
    return 0


def _name_result(options: argparse.Namespace, many: bool, unnamed: bool) -> None:
    """The name of the result in a folder that was given, and of a stack that was not named."""
    options.derived = unnamed or (isinstance(options.output, Path) and options.output.is_dir())
    if isinstance(options.output, Path) and options.output.is_dir():
        from nlrn.batch.plan import stack_written_as, written_as

        suffix = (stack_written_as if many else written_as)(options.input.suffix)
        options.output = options.output / f"{options.input.stem}{suffix}"
    elif unnamed and many and "tif" not in options.output.suffix.lower():
        options.output = options.output.with_suffix(".tif")


def _without_effect(options: argparse.Namespace, kind: str) -> list[str]:
    """A line for each option that a file of this format has no use for."""
    from nlrn.io.written import WRITTEN

    none = {"quality": not WRITTEN[kind].quality, "compression": kind != "TIFF"}
    return [f"--{name} has no effect on {kind}" for name in none if none[name] and getattr(options, name) is not None]


def _check_single(options: argparse.Namespace) -> None:
    """Raises ConfigError for what is for folders only."""
    given = [name for name, usual in FOLDER_OPTIONS.items() if getattr(options, name) != usual and name != "json"]
    given = [name for name in given if (name, options.jobs) != ("jobs", 1)]
    if given:
        raise ConfigError(f"{options.input} is no folder: --{given[0].replace('_', '-')} is for one")
    if isinstance(options.output, ObjectPath):
        raise ConfigError(
            f"{options.output} is in a store, which takes the results of a folder; {options.input} is none"
        )


def _read_input(options: argparse.Namespace, asked: Options) -> ImageData:
    """The image IN, once nothing speaks against writing what is expected of it as OUT."""
    from nlrn.io.image import check_output, read_image

    inputs = [path for path in (options.input, getattr(options, "sigma_map", None)) if path is not None]
    check_output(options.output, overwrite=options.overwrite, inputs=inputs)
    image = asked.prepared(read_image(options.input, **_reading(options)))
    check_output(options.output, overwrite=options.overwrite, inputs=inputs, image=asked.expected(image))
    return image


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """Further arguments of read_image."""
    return {"gps": options.keep_gps} | ({"max_pixels": options.max_pixels} if options.max_pixels else {})


def _tile(text: str) -> int:
    value = count(text)
    if 0 < value < 32:
        raise argparse.ArgumentTypeError("a tile has sides of at least 32 pixels; 0 is the whole image")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 64 or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError("a worker has a share of one GPU, such as 0.5, or whole ones")
    return value


def _one_of_many(restored: Restored, asked: Options, image: ImageData, form: str) -> ImageData:
    from nlrn.io.image import check_holds

    image = asked.prepared(image)
    check_holds(asked.expected(image), form)
    lines: list[str] = []
    result = restored(asked, image, lines.append, None)
    return dataclasses.replace(result, said=tuple(lines))


def _restore_folder(options: argparse.Namespace, asked: Options, restored: Restored, what: str, task: Task) -> int:
    """Every image of the folder IN into the folder OUT."""
    from nlrn.batch.plan import left_out, plan
    from nlrn.batch.run import run

    _check_folder(options.output)
    if options.engine == "ray":  # whose workers run in other folders
        if isinstance(options.input, Path):
            options.input = options.input.absolute()
        if options.model is not None and Path(options.model).is_file():
            options.model = str(Path(options.model).absolute())
            asked = dataclasses.replace(asked, model=options.model)
    work = digest(options)
    form = options.format and f".{options.format.lower().lstrip('.')}"
    unread: dict[str, str] = {}
    jobs = plan(
        options.input, options.output,
        recursive=options.recursive,
        ending=options.suffix,
        form=form,
        is_stack=is_stack if isinstance(options.output, Path) else lambda source: False,
        unread=unread,
    )  # fmt: skip
    others = left_out(options.input, recursive=options.recursive)
    if not jobs:
        for name, reason in unread.items():
            complain(f"{name}: {reason}")
        complain(
            f"there is no image in {options.input}" + (f"; left out, not read: {_listed(others)}" if others else "")
        )
        return 3
    workers = min(options.jobs or 1, len(jobs))
    if options.engine == "local":
        _check_memory(options, workers)
    started, say = time.monotonic(), (lambda line: None) if options.json else reporter(options)

    def report(name: str, lines: Sequence[str], seconds: float) -> None:
        say("; ".join((f"{name}: {lines[0]}" if lines else name, *lines[1:], f"{seconds:.1f} s")))

    with ProgressBar(options, what, total=len(jobs)) as tick:
        outcome = run(
            jobs, partial(partial, _one_of_many, restored, asked), options.output, work,
            workers=workers,
            engine=_engine(options, work),
            overwrite=options.overwrite,
            skip_existing=options.skip_existing,
            reading=_reading(options),
            tick=lambda count: tick(count, len(jobs)),
            report=report,
            stacked=partial(stack_of_folder, options, asked, task),
        )  # fmt: skip
    outcome.failed |= unread
    _say_outcome(options, outcome, time.monotonic() - started, others)
    return 1 if outcome.failed else 0


def _say_outcome(options: argparse.Namespace, outcome: Outcome, seconds: float, others: dict[str, int]) -> None:
    """What was refused, and the last line, or all as JSON. others: files left out, by suffix."""
    for name, reason in outcome.failed.items():
        complain(f"{name}: {reason}")
    if options.json:
        print(json.dumps({"seconds": seconds, **vars(outcome), "left_out": others}))
        return
    if others:
        reporter(options)(f"left out, not read: {_listed(others)}")
    pace = f" in {seconds:.0f} s ({len(outcome.done) / seconds:.2f} a second)" if outcome.done else ""
    reporter(options)(
        f"{len(outcome.done)} images restored{pace}, {len(outcome.skipped)} already done,"
        f" {len(outcome.failed)} refused; {_account(options.output)}"
    )


def _listed(others: dict[str, int]) -> str:
    return ", ".join(f"{number} {suffix}" for suffix, number in others.items())


def _check_folder(output: Place) -> None:
    from nlrn.io.written import SUFFIXES

    there = isinstance(output, Path) and output.exists()
    if there and not output.is_dir():
        raise ConfigError(f"{output} is a file: the results of a folder go into a folder")
    if not there and output.suffix.lower() in SUFFIXES:
        raise ConfigError(f"{output} is the name of an image: the results of a folder go into a folder")


def _account(output: Place) -> str:
    """Where the results are listed."""
    from nlrn.batch.manifest import MANIFEST

    return f"{output / MANIFEST} lists them" if isinstance(output, Path) else f"metadata in {output} says of what"


def _check_memory(options: argparse.Namespace, several: int) -> None:
    """Raises ConfigError where several images at once may exceed the free memory: the system would kill silently."""
    from nlrn.inference.restorer import MEMORY
    from nlrn.system.hardware import memory

    each, found = (options.memory or MEMORY) >> 20, memory()
    if several > 1 and found is not None and several * each > found["available"]:
        raise ConfigError(
            f"{several} images at once may take {each:,} MiB each, and {found['available']:,} are free:"
            " fewer --jobs, or less --memory for each"
        )


def _engine(options: argparse.Namespace, work: str) -> RayEngine | None:
    """What restores the folder where this machine's processes do not."""
    given = [name for name, usual in CLUSTER_OPTIONS.items() if getattr(options, name) != usual]
    if options.engine == "local":
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is for --engine ray")
        return None
    from nlrn.batch.ray import RayEngine
    from nlrn.inference.restorer import MEMORY

    return RayEngine(
        address=options.address,
        workers=options.jobs,
        cpus=options.worker_cpus,
        gpus=options.worker_gpus,
        memory=options.memory or MEMORY,
        check=partial(_seen_by_a_worker, options),
        expected=work,
    )


def _seen_by_a_worker(options: argparse.Namespace) -> str:
    """The digest as a worker, possibly on another machine, computes it."""
    if not options.input.is_dir():
        raise InputError(f"there is no folder {options.input}; every machine of the cluster must see it there")
    return digest(options)
