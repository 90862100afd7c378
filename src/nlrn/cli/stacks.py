"""A stack restored plane by plane, for the commands that restore images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrn.cli.digest import digest
from nlrn.cli.interrupts import check_interrupt
from nlrn.cli.shared import ProgressBar, Report, mebibytes, side
from nlrn.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from nlrn.batch.plan import Job
    from nlrn.inference.beside import Beside
    from nlrn.inference.larger import Enlarging
    from nlrn.inference.options import DenoiseOptions, Options, UpscaleOptions
    from nlrn.inference.stacks import Channel
    from nlrn.io.image import ImageData
    from nlrn.io.stacks import Stack
    from nlrn.io.stackwriting import Writer
    from nlrn.system.journal import Journal


Record = dict[str, Any]  # of what was done, for JSON
Ready = Callable[[str, Path, Record], None]


def add_stack_options(parser: argparse.ArgumentParser, *, neighbors: bool) -> None:
    """--axes and the limits of a file of many planes; neighbors: --neighbors, too."""
    group = parser.add_argument_group("where IN is a stack (OUT: a TIFF, or name_%04d.png)")
    group.add_argument(
        "--axes", metavar="AXES", help="of planes whose file does not say: ZYX, or with all sizes but one, TC2YX"
    )
    if neighbors:
        group.add_argument(
            "--neighbors",
            type=int,
            choices=(0, 1, 2),
            default=0,
            help="restore each plane with so many before and after it, which shows more detail and takes 5 or 13 times"
            " as long (default: 0)",
        )
    group.add_argument("--max-planes", type=side, metavar="COUNT", help="refuse files of more (default: 100,000)")
    group.add_argument("--max-bytes", type=mebibytes, metavar="MIB", help="refuse larger files (default: 256 GiB)")


def is_stack(path: Path) -> bool:
    """Whether a file is restored plane by plane."""
    from nlrn.io.frames import is_animation
    from nlrn.io.stacks import is_tiff_stack

    return is_tiff_stack(path) or is_animation(path)


def stack_of_folder(
    options: argparse.Namespace,
    asked: Any,
    task: Callable[[argparse.Namespace, Any], StackTask],
    job: Job,
    ready: Ready,
) -> list[str]:
    """Restore a stack of the folder IN as the command for its file does; returns what that prints."""
    lines: list[str] = []
    alone = argparse.Namespace(
        **{**vars(options), "input": job.source, "output": job.target, "quiet": True, "derived": True}
    )
    restore_stack(alone, task(alone, asked), lines.append, ready)
    return lines


def restore_stack(
    options: argparse.Namespace,
    task: StackTask,
    say: Report,
    ready: Ready = lambda source, whole, record: None,
) -> Record:
    """Restore IN, a file of many planes, into OUT, as the task says; returns axes, planes and what channels have.

    say: receives the lines. ready: called with the sha256 of IN, the whole file, a TIFF, and what is returned, before
    it gets its name.
    """
    from nlrn.io.stackwriting import PART, NumberedWriter, TiffStackWriter, check_stack_output, is_numbered
    from nlrn.models.checkpoint import sha256
    from nlrn.system.atomic import check_folder, remove_second_name
    from nlrn.system.journal import Journal

    decides, inputs = digest(options), [options.input]
    numbers = is_numbered(options.output) and not options.derived  # a pattern that was given
    inputs += [path] if (path := getattr(options, "sigma_map", None)) is not None else []
    with _opened(options, alone=numbers) as stack:
        if not numbers and options.depth is not None and options.depth != stack.read(0).depth:
            raise ConfigError("a stack keeps its depth; --depth is for an image, or numbered files")
        if not numbers and options.compression is not None:
            raise ConfigError("a stack keeps its compression; --compression is for an image, or numbered files")
        output, asked = options.output, task.asked
        check_folder(output)
        result = task.result(stack)
        if not numbers and remove_second_name(output.with_name(output.name + PART), output):
            Journal(output, {}).remove()
        source = sha256(options.input)
        work = {"input": source, "work": decides, "axes": options.axes, "planes": len(stack)}
        with Journal(output, work) as journal:
            resumed = bool(journal.records)
            try:
                if not resumed:
                    check_stack_output(
                        output, result, asked.expected(asked.prepared(stack.read(0))),
                        numbers=numbers,
                        overwrite=options.overwrite,
                        inputs=inputs,
                    )  # fmt: skip
                _say_stack(say, result, asked.neighbors)
                if numbers:
                    say("numbered files hold the planes alone, without what IN says of axes, scale, time and channels")
                levels, channels = _plan(options, stack, task, journal, say)
            except BaseException:
                if not resumed:
                    journal.give_up()
                raise
            kind = NumberedWriter if numbers else TiffStackWriter
            with kind(output, result, journal, overwrite=options.overwrite) as writer:
                if writer.done:
                    say(f"resumed: {writer.done} of {len(stack)} planes were done")
                _write(options, task, stack, writer, levels, channels)
                record = {"planes": len(stack), "axes": result.axes, "sizes": list(result.sizes)}
                record["channels"] = journal.records[0]["channels"]
                writer.finish(lambda whole: ready(source, whole, record))
    return record


def _opened(options: argparse.Namespace, *, alone: bool) -> Stack:
    from nlrn.io.frames import FrameStack
    from nlrn.io.image import MAX_PIXELS
    from nlrn.io.stacks import MAX_PLANES, MAX_STACK_BYTES, Limits, TiffStack, is_tiff_stack

    limits = Limits(
        options.max_pixels or MAX_PIXELS, options.max_planes or MAX_PLANES, options.max_bytes or MAX_STACK_BYTES
    )
    if is_tiff_stack(options.input):
        return TiffStack(options.input, axes=options.axes, limits=limits, alone=alone)
    if options.axes is not None:
        raise ConfigError("--axes is for a TIFF: frames have one axis, time")
    return FrameStack(options.input, limits=limits)


def _say_stack(say: Report, stack: Stack, neighbors: int) -> None:
    from nlrn.inference.stacks import check_lines

    check_lines(stack.lines, neighbors)
    sizes = " x ".join(f"{letter} {size}" for letter, size in zip(stack.axes, stack.sizes, strict=True))
    say(f"{stack.kind}: {len(stack)} planes" + (f" ({sizes})" if len(stack.axes) > 1 or stack.axes not in "QI" else ""))
    for note in stack.notes:
        say(note)
    if neighbors:
        say(f"each plane is restored with {neighbors} before and after it")


class _Planes:
    """The planes of a file as arrays on the scale where `levels` is 1."""

    def __init__(self, asked: Options, stack: Stack, levels: float) -> None:
        self.asked, self.stack, self.levels = asked, stack, levels

    def __len__(self) -> int:
        return len(self.stack)

    def channel(self, index: int) -> int:
        return self.stack.channel(index)

    def image(self, index: int) -> ImageData:
        from nlrn.io.stacks import scaled

        return self.asked.formed(scaled(self.stack.read(index), self.levels))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        image = self.image(index)
        return image.array, image.alpha


@dataclass(frozen=True)
class DenoiseStack:
    """Denoising, as of nlrn.inference.stacks."""

    asked: DenoiseOptions

    def result(self, stack: Stack) -> Stack:
        """The stack."""
        return stack

    def channels(self, planes: _Planes, samples: list[np.ndarray], say: Report) -> list[Channel]:
        """Range and noise."""
        from nlrn.inference.stacks import channels_for

        return channels_for(planes, samples, self.asked.restorer, self.asked.asked(), planes.levels)

    def recorded(self, record: dict[str, Any]) -> Channel:
        """By the record of an earlier run."""
        from nlrn.inference.stacks import Channel

        return Channel.of(record, self.asked.asked())

    def restored(self, image: ImageData, how: Channel, beside: Beside) -> ImageData:
        """One plane, with those beside it."""
        from nlrn.inference.pipeline import denoised

        return denoised(image, self.asked.restorer, how.asked, progress=check_interrupt, beside=beside)


@dataclass(frozen=True)
class EnlargeStack:
    """Enlarging, as of nlrn.inference.larger. how: what a person writes to have noise removed before, for messages."""

    asked: UpscaleOptions
    how: str = ""

    def result(self, stack: Stack) -> Stack:
        """The stack in its new size."""
        from nlrn.io.largerstacks import LargerStack

        return LargerStack(stack, self.asked.size_of)

    def channels(self, planes: _Planes, samples: list[np.ndarray], say: Report) -> list[Enlarging]:
        """Range, and whether noise is removed before."""
        from nlrn.inference.larger import enlarging_of

        restorer, first = self.asked.restorer(1), self.asked.first(how=self.how)
        return enlarging_of(planes, samples, restorer, first, self.asked.range, planes.levels, say)

    def recorded(self, record: dict[str, Any]) -> Enlarging:
        """By the record of an earlier run."""
        from nlrn.inference.larger import Enlarging

        return Enlarging.of(record)

    def restored(self, image: ImageData, how: Enlarging, beside: Beside) -> ImageData:
        """One plane; there are none beside it."""
        asked = dataclasses.replace(self.asked, denoise_first=how.remove, range=how.value_range)
        return asked.restored(image, lambda line: None, check_interrupt)


StackTask = DenoiseStack | EnlargeStack  # what is done with each plane of a stack


def _plan(
    options: argparse.Namespace, stack: Stack, task: StackTask, journal: Journal, say: Report
) -> tuple[float, list[Any]]:
    """The sample value that is 1, of floats, and how each channel is restored.

    As in the journal, else found in all planes.
    """
    from nlrn.inference.stacks import samples_of
    from nlrn.io.stacks import float_levels

    planes = _Planes(task.asked, stack, 1.0)
    first = stack.read(0)
    if journal.records:
        plan = journal.records[0]
        channels: list[Any] = [task.recorded(record) for record in plan["channels"]]
        levels = float(plan["levels"])
    else:
        with ProgressBar(options, "reading planes", total=len(stack)) as tick:
            samples = samples_of(planes, lambda done: tick(done, len(stack)))
        low, high = min(float(s.min()) for s in samples), max(float(s.max()) for s in samples)
        levels = float_levels(low, high) if first.depth == 32 else first.levels
        if first.depth == 32:
            samples = [sample / levels for sample in samples]
        planes.levels = levels
        with ProgressBar(options, "estimating range and noise"):
            channels = task.channels(planes, samples, say)
        journal.add({"levels": levels, "channels": [channel.record() for channel in channels]})
    for number, channel in enumerate(channels):
        say((f"channel {number + 1}: " if len(channels) > 1 else "") + str(channel))
    return levels, channels


def _write(
    options: argparse.Namespace,
    task: StackTask,
    stack: Stack,
    writer: Writer,
    levels: float,
    channels: list[Any],
) -> None:
    """Every plane that is not done, one after the other."""
    from nlrn.inference.stacks import beside

    planes = _Planes(task.asked, stack, levels)
    with ProgressBar(options, "restoring planes", total=len(stack)) as tick:
        for index in range(writer.done, len(stack)):
            around = beside(planes, stack.lines, index, task.asked.neighbors)
            writer.put(index, task.restored(planes.image(index), channels[stack.channel(index)], around))
            tick(index + 1, len(stack))
