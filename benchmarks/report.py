"""What was measured, as tables and as a plot. A table is (title, header, rows) of strings, whoever prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.measure import Cell
from nlrn.evaluation.plotting import new_figure, write_figure

Table = tuple[str, list[str], list[list[str]]]


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables of a benchmark's result."""
    rows = result["rows"]
    parts = _OPERATOR if result["benchmark"] == "operator" else _NETWORK
    return [table for make in parts for table in [make(rows)] if table[2]]


def _of(rows: Iterable[Cell], section: str) -> list[Cell]:
    return [r for r in rows if r["section"] == section]


def seconds(value: float) -> str:
    """Three digits, and their unit."""
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if value * f >= 0.9995), ("us", 1e6))
    digits = f"{value * factor:#.3g}" if value * factor < 999.5 else f"{value * factor:,.0f}"
    return f"{digits.rstrip('.')} {unit}"


def _mib(value: float) -> str:
    return f"{value:,.0f} MiB" if value < 10240 else f"{value / 1024:,.1f} GiB"


# -- the operator ------------------------------------------------------------------------------------------------


def limit_table(rows: list[Cell]) -> Table:
    """How near the limit every pass comes."""
    lines = []
    for r in _of(rows, "limit"):
        kind = r["dtype"] + (f", {r['instruction_set']}" if r.get("instruction_set") else "")
        found = [r.get("reason", ""), "", ""]
        if "seconds" in r:
            of_bf16 = r["fraction"] if r["dtype"] == "bf16" else r.get("fraction_of_bf16")
            found = [seconds(r["seconds"]), f"{r['fraction']:.2f}", "" if of_bf16 is None else f"{of_bf16:.2f}"]
        lines.append([f"{r['shape']}, {r['size']} x {r['size']}", kind, r["work"], *found])
    header = ["shape", "type", "pass", "time", "fraction of the type's GEMM rate", "of bf16's"]
    threads = {r["threads"] for r in _of(rows, "limit")}
    return f"The kernel against the machine's limit ({_threads(threads)})", header, lines


def weights_table(rows: list[Cell]) -> Table:
    """How near the limit the gradient of a 3 x 3 kernel comes."""
    lines = []
    for r in _of(rows, "weights"):
        place = [f"{r['shape']}, {r['batch']} of {r['size']} x {r['size']}", r["dtype"], r["contestant"]]
        found = [seconds(r["seconds"]), f"{r['fraction']:.2f}"] if "seconds" in r else [r["reason"], ""]
        lines.append([*place, *found])
    return "The gradient of 3 x 3 weights (1 thread)", ["maps", "type", "", "time", "fraction of the GEMM rate"], lines


def beside_table(rows: list[Cell]) -> Table:
    """Everyone on the same tensors."""
    found = _of(rows, "beside")
    sizes = sorted({r["size"] for r in found})
    lines = []
    for key in dict.fromkeys((r["shape"], r["work"], r["contestant"]) for r in found):
        mine = {r["size"]: r for r in found if (r["shape"], r["work"], r["contestant"]) == key}
        lines.append([*key[:2], CONTESTANTS[key[2]].title, *(_time_and_memory(mine.get(size)) for size in sizes)])
    header = ["shape", f"pass, {_types(found)}", "", *(f"{size} x {size}" for size in sizes)]
    return f"Side by side ({_threads({r['threads'] for r in found})})", header, lines


def _time_and_memory(r: Cell | None) -> str:
    if r is None:
        return ""
    if "seconds" not in r:
        return str(r["reason"])
    return f"{seconds(r['seconds'])}, {_mib(r['peak_mib'])}"


def growth_table(rows: list[Cell]) -> Table:
    """The kernel's time by pixels and by window."""
    lines = []
    for r in _of(rows, "growth"):
        place = [r["shape"], r["along"], f"{r['size']} x {r['size']}, window {r['window']}"]
        if "seconds" in r:
            by_pair = r["seconds"] * 1e9 / (r["useful_gflop"] * 1e9 / (2 * (r["embed"] + r["channels"])))
            lines.append([*place, seconds(r["seconds"]), f"{by_pair:.3f}"])
        else:
            lines.append([*place, r["reason"], ""])
    header = ["shape", "along", "image", "time", "ns a pair"]
    return f"Growth of the kernel's time ({_types(_of(rows, 'growth'))}, forward)", header, lines


# -- the network -------------------------------------------------------------------------------------------------


def images_table(rows: list[Cell]) -> Table:
    """One image, window against patch mode."""
    lines = []
    for r in _of(rows, "images") + _of(rows, "backends"):
        mode = r["mode"] + (f", {r['backend']}" if r["backend"] != "auto" else "")
        place = [r["preset"], mode, r["dtype"], f"{r['size']} x {r['size']}"]
        if "seconds" not in r:
            lines.append([*place, r["reason"], "", "", ""])
            continue
        predicted = f"{r['predicted_mib']:,.0f}" if "predicted_mib" in r else ""
        lines.append(
            [*place, seconds(r["seconds"]), f"{r['fraction']:.2f}", f"{r['peak_mib']:,.0f}", predicted]
        )  # fmt: skip
    header = ["model", "mode", "type", "pixels", "time", "fraction of the GEMM rate", "peak MiB", "predicted MiB"]
    return "One image", header, lines


def ratio_table(rows: list[Cell]) -> Table:
    """What window mode saves, in time and in arithmetic."""
    lines = []
    for patch in [r for r in _of(rows, "images") if r["mode"] == "patch" and "seconds" in r]:
        key = (patch["preset"], patch["size"])
        for r in _of(rows, "images"):
            if r["mode"] == "window" and (r["preset"], r["size"]) == key and "seconds" in r:
                time, work = patch["seconds"] / r["seconds"], patch["useful_gflop"] / r["useful_gflop"]
                place = f"{key[1]} x {key[1]}"
                lines.append([key[0], place, f"{patch['patches']:,}", f"{time:.1f}", f"{work:.1f}"])
    return "Patch mode against window mode", ["model", "pixels", "patches", "times slower", "times the work"], lines


def states_table(rows: list[Cell]) -> Table:
    """Growth with the recurrent states."""
    lines = [
        [r["preset"], str(r["states"])]
        + ([seconds(r["seconds"]), f"{r['peak_mib']:,.0f}"] if "seconds" in r else [r["reason"], ""])
        for r in _of(rows, "states")
    ]
    title = f"Growth with the states (256 x 256, {_types(_of(rows, 'states'))})"
    return title, ["model", "states", "time", "peak MiB"], lines


def training_table(rows: list[Cell]) -> Table:
    """A training step."""
    lines = []
    for r in _of(rows, "training"):
        place, found = f"{r['batch']} of {r['size']} x {r['size']}", [r.get("reason", ""), *[""] * 4]
        if "seconds" in r:
            rate = f"{r['batch'] * r['size'] ** 2 / r['seconds']:,.0f}"
            share, peak = f"{100 * r['attention']:.0f} %", f"{r['peak_mib']:,.0f}"
            found = [seconds(r["seconds"]), rate, f"{r['fraction']:.2f}", share, peak]
        model = r["preset"] + (f", {r['channels']} channels" if r.get("channels") else "")
        lines.append([model, place, r["dtype"], str(r["threads"]), *found])
    header = [
        "model",
        "patches",
        "type",
        "threads",
        "time",
        "pixels a second",
        "fraction of the GEMM rate",
        "of the operators' time the attention",
        "peak MiB",
    ]
    return "A training step (batch norms frozen)", header, lines


def _types(rows: list[Cell]) -> str:
    return ", ".join(dict.fromkeys(r["dtype"] for r in rows))


def _threads(counts: set[int]) -> str:
    return ", ".join(f"{n} thread" + "s" * (n != 1) for n in sorted(counts))


_OPERATOR: tuple[Callable[[list[Cell]], Table], ...] = (limit_table, weights_table, beside_table, growth_table)
_NETWORK: tuple[Callable[[list[Cell]], Table], ...] = (images_table, ratio_table, states_table, training_table)


# -- the plot ----------------------------------------------------------------------------------------------------


def plot(result: dict[str, Any], path: Path) -> None:
    """A PNG beside the tables. Raises BackendError without matplotlib, and OSError."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    draw = _plot_operator if result["benchmark"] == "operator" else _plot_network
    draw(result["rows"], left, right)
    run = result["run"]
    figure.suptitle(f"{run['device']}, {run['threads']} threads, torch {run['torch']}, {run['date']}", fontsize=9)
    write_figure(figure, path)


def _line(axis: Any, rows: list[Cell], x: Callable[[Cell], float], label: str, **style: Any) -> None:
    points = sorted((x(r), r["seconds"]) for r in rows if "seconds" in r)
    if points:
        axis.loglog(*zip(*points, strict=True), marker="o", label=label, **style)


def _plot_operator(rows: list[Cell], left: Any, right: Any) -> None:
    beside, growth = _of(rows, "beside"), _of(rows, "growth")
    for shape, style in (("base", "-"), ("small", "--")):
        for i, (name, contestant) in enumerate(CONTESTANTS.items()):
            mine = [r for r in beside if (r["shape"], r["work"], r["contestant"]) == (shape, "forward", name)]
            _line(left, mine, lambda r: r["size"] ** 2, f"{contestant.title}, {shape}", ls=style, color=f"C{i}")
        along = [r for r in growth if r["shape"] == shape and r["along"] == "window"]
        _line(right, along, lambda r: r["window"] ** 2, f"{shape}, 256 x 256", ls=style)
    left.set(xlabel="pixels", ylabel="seconds, one attention forward, bf16", title="Side by side")
    right.set(xlabel="pixels in the window", ylabel="seconds", title="nlrn's kernel by window")
    _finish(left, right)


def _plot_network(rows: list[Cell], left: Any, right: Any) -> None:
    for i, preset in enumerate(dict.fromkeys(r["preset"] for r in rows)):
        for mode, style in (("window", "-"), ("patch", ":")):
            mine = [r for r in _of(rows, "images") if (r["preset"], r["mode"]) == (preset, mode)]
            _line(left, mine, lambda r: r["size"] ** 2, f"{preset}, {mode} mode", ls=style, color=f"C{i}")
        states = [r for r in _of(rows, "states") if r["preset"] == preset]
        _line(right, states, lambda r: r["states"], f"{preset}, 256 x 256", color=f"C{i}")
    left.set(xlabel="pixels", ylabel="seconds an image, bf16", title="An image")
    right.set(xlabel="recurrent states", ylabel="seconds an image", title="By recurrent states")
    _finish(left, right)


def _finish(*axes: Any) -> None:
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
