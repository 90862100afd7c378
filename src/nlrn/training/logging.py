"""What a training run displays and records: its pace, a progress bar, log.jsonl and, on request, TensorBoard."""

from __future__ import annotations

import bisect
import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlrn.errors import ConfigError
from nlrn.system.atomic import open_record
from nlrn.training.config import TrainConfig
from nlrn.training.growth import work

EVERY = 50  # steps between two records of the log
LOG = "log.jsonl"


class Pace:
    """How long steps take: measured over the last ones, by their arithmetic since stages differ in it.

    The first measurements are dropped as soon as there is a later one: a first step also includes what is set up once,
    and on a busy machine takes minutes.
    """

    FIRST = 3  # measurements

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.recent: deque[tuple[float, float]] = deque(maxlen=64)
        self.aside = 0.0  # seconds of the last validation
        self._measured = 0

    def add(self, start: int, end: int, seconds: float) -> None:
        """The steps from `start` up to but without `end` took `seconds`."""
        if self._measured <= self.FIRST:
            self.recent.clear()
        self._measured += 1
        self.recent.append((seconds, work(self.config, start, end)))

    def seconds(self, start: int, end: int) -> float:
        """What the steps from `start` to `end` will take, validations included."""
        done = sum(n for _, n in self.recent)
        rate = sum(seconds for seconds, _ in self.recent) / done if done else 0.0
        validations = (end - start) / self.config.validate_every
        return rate * work(self.config, start, end) + self.aside * validations

    def fitting(self, start: int, seconds: float, limit: int) -> int:
        """How many steps from `start` on fit into `seconds`, at most `limit`."""
        return bisect.bisect_right(range(1, limit + 1), seconds, key=lambda n: self.seconds(start, start + n))


class TrainingLog:
    """The display and the log of a run, a context: steps() every few steps, validation() after each validation.

    show: draw a progress bar by rich, or plain lines where the output is not a terminal. keep: write log.jsonl in the
    run folder. tensorboard: write the same numbers for TensorBoard; raises ConfigError where it is not installed.
    """

    def __init__(self, folder: Path, *, show: bool = True, keep: bool = True, tensorboard: bool = False) -> None:
        self.path, self.keep, self.show = folder / LOG, keep, show
        self.losses: list[tuple[float, int]] = []
        self.elapsed = 0.0
        self.writer = _summary_writer(folder) if tensorboard else None
        self.bar, self.next_line = _bar() if show and os.isatty(1) else None, 0

    def __enter__(self) -> TrainingLog:
        if self.keep:
            with open_record(self.path) as file:
                file.seek(0)
                content = file.read()
                if content and not content.endswith(b"\n"):  # a run killed in a record: keep the next one whole
                    file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def steps(
        self,
        step: int,
        end: int,
        *,
        loss: float,
        count: int,
        seconds: float,
        lr: float,
        norm: float,
        left: float,
    ) -> None:
        """`count` steps up to number `step` of `end`: their mean loss and seconds, and the seconds left."""
        self.losses.append((loss, count))
        self.elapsed += seconds
        total = sum(n for _, n in self.losses)
        mean, pace = sum(value * n for value, n in self.losses) / total, self.elapsed / total
        text = f"loss {mean:.5f}  {pace:.3f} s/step  {_clock(left)} left"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=step, total=end, text=text)
        elif step >= self.next_line or step == end:
            self.say(f"step {step}/{end}  {text}")
            self.next_line = step + EVERY
        if total >= EVERY or step == end:
            self.record({"step": step, "loss": mean, "lr": lr, "gradient": norm, "seconds_a_step": pace})
            self.losses, self.elapsed = [], 0.0

    def validation(self, step: int, result: dict[str, Any], weights: str = "raw") -> None:
        """PSNR, effective neighbours and |S|max of one validation, of the "raw" or the "averaged" weights."""
        self.record({"step": step, "weights": weights, **result})
        self.say(f"step {step}, {weights} weights: {summary(result)}")

    def say(self, text: str) -> None:
        """Display a line of text, where anything is displayed."""
        if self.bar is not None:
            self.bar.console.print(text)
        elif self.show:
            print(text, flush=True)

    def record(self, values: dict[str, Any]) -> None:
        """One line of log.jsonl, and the same numbers to TensorBoard."""
        if self.keep:
            with open_record(self.path) as file:
                file.write(json.dumps(values).encode() + b"\n")
        if self.writer is not None:
            for tag, number in _numbers(values):
                self.writer.add_scalar(tag, number, values["step"])


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's log.jsonl; a line torn by a killed process is left out."""
    for line in (folder / LOG).read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def summary(result: dict[str, Any]) -> str:
    """One line of a validation: PSNR by sigma, then neighbours and |S|max over the states."""
    parts = []
    for key, value in result.items():
        text = str([round(v, 1) for v in value]) if isinstance(value, list) else f"{value:.2f}"
        parts.append(f"{key} {text}")
    return ", ".join(parts)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    suffix = "_averaged" if values.get("weights") == "averaged" else ""
    for key, value in values.items():
        if isinstance(value, list):
            yield from ((f"{key}{suffix}/{i}", number) for i, number in enumerate(value))
        elif not isinstance(value, str):
            yield key + suffix, value


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = ("step {task.completed}/{task.total}", "{task.fields[text]}")
    bar = Progress(TextColumn(columns[0]), BarColumn(), TextColumn(columns[1]))
    bar.add_task("train", total=None, text="")
    bar.start()
    return bar


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed: pip install 'nlrn[train]'") from error
    return SummaryWriter(str(folder))
