"""What a training run shows and keeps: a progress bar, log.jsonl and, on request, TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nlrn.errors import ConfigError

EVERY = 50  # steps between two records of the log


class TrainingLog:
    """A context: step() after each step, validation() after each validation."""

    def __init__(self, folder: Path, *, enabled: bool, tensorboard: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.loss_sum, self.count, self.since = 0.0, 0, time.monotonic()
        self.writer = _summary_writer(folder) if tensorboard else None
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.5f}  {task.fields[pace]:.3f} s/step"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not enabled,
        )

    def __enter__(self) -> TrainingLog:
        self.bar.start()
        self.task = self.bar.add_task("train", total=None, loss=0.0, pace=0.0, note="")
        self.since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def step(self, step: int, end: int, loss: float, lr: float, norm: float, minutes: float | None) -> None:
        """After step number `step` of `end`; minutes is the clock's limit, if any."""
        self.loss_sum, self.count = self.loss_sum + loss, self.count + 1
        pace = (time.monotonic() - self.since) / self.count
        note = f"at most {minutes:g} min" if minutes else ""
        mean = self.loss_sum / self.count
        self.bar.update(self.task, completed=step, total=end, loss=mean, pace=pace, note=note)
        if self.count >= EVERY or step == end:
            self.record({"step": step, "loss": mean, "lr": lr, "gradient": norm, "seconds_a_step": pace})
            self.loss_sum, self.count, self.since = 0.0, 0, time.monotonic()

    def validation(self, step: int, result: dict[str, Any]) -> None:
        """PSNR, effective neighbours and |S|max of one validation."""
        self.record({"step": step, **result})
        self.bar.console.print(f"step {step}: " + summary(result)) if self.enabled else None
        self.since = time.monotonic()

    def record(self, values: dict[str, Any]) -> None:
        """One line of log.jsonl, and the same scalars to TensorBoard."""
        if not self.enabled and self.writer is None:
            return
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        if self.writer is not None:
            for key, value in values.items():
                for i, scalar in enumerate(value if isinstance(value, list) else [value]):
                    tag = f"{key}/{i}" if isinstance(value, list) else key
                    self.writer.add_scalar(tag, scalar, values["step"])


def summary(result: dict[str, Any]) -> str:
    """One line of a validation: PSNR by sigma, then neighbours and |S|max over the states."""
    parts = []
    for key, value in result.items():
        parts.append(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {[round(v, 1) for v in value]}")
    return ", ".join(parts)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed: pip install 'nlrn[train]'") from error
    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
