"""Writes the measured tables of README.md and docs/*.md from results/*.json; --check only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Published numbers come from results/published.json,
each with its source; ours from the files that `nlrn evaluate`, `python -m benchmarks` and `python -m studies` wrote.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ledger
import measure_photons
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nlrn  # noqa: E402
from benchmarks import report  # noqa: E402
from benchmarks.peers import table as peers_table  # noqa: E402
from nlrn.inference.enlarging import WHITE  # noqa: E402
from studies import growth  # noqa: E402
from studies.study import STUDIES  # noqa: E402
from studies.study import table as study_table  # noqa: E402

RESULTS = ROOT / "results"
PAGES = (
    "README.md",
    "docs/models.md",
    "docs/performance.md",
    "docs/training.md",
    "docs/studies.md",
    "docs/sigma.md",
    "docs/photographs.md",
    "docs/speed.md",
    "docs/upscaling.md",
    "docs/cluster.md",
)
MARK = re.compile(r"(<!-- table: ([a-z-]+) -->\n)((?:(?!<!-- ).)*)(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    """results/<name>.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def evaluations(kind: str) -> list[dict[str, Any]]:
    """The results of nlrn evaluate of a kind of model: <kind>.json, the base model's, and <kind>-*.json."""
    return [load(path.stem) for path in sorted(RESULTS.glob("*.json")) if f"{path.stem}-".startswith(f"{kind}-")]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table of strings."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


@dataclass(frozen=True)
class Task:
    """What models of a kind are scored on: files of results/ by their beginning, published scores by their key."""

    files: str
    published: str
    label: str
    conditions: tuple[str, ...]
    sets: tuple[str, ...]


TASKS = {
    "denoising": Task("denoise-gray", "denoise_grey", "sigma", ("15", "25", "50"), ("set12", "bsd68")),
    "colour": Task("denoise-color", "denoise_colour", "sigma", ("15", "25", "50"), ("cbsd68",)),
    "enlarging": Task("sr", "sr_y", "", ("x2", "x3", "x4"), ("set5", "set14", "bsd100")),
}
TITLES = {"set12": "Set12", "bsd68": "BSD68", "cbsd68": "CBSD68", "set5": "Set5", "set14": "Set14", "bsd100": "BSD100"}


def scores(task: Task) -> str:
    """Ours beside the published ones."""
    results = evaluations(task.files)
    rows = [[f"**{r['model']}**, {_way(r)}", *(_scores(r, task, name) for name in task.sets)] for r in results]
    for name, method in load("published")[task.published]["methods"].items():
        rows.append([_title(name, method), *(" / ".join(f"{v:.2f}" for v in method[s]) for s in task.sets)])
    under = f"{task.label} {' / '.join(task.conditions)}".strip()
    table = markdown([f"PSNR (dB) at {under}", *(TITLES[name] for name in task.sets)], rows)
    notes = [
        f"{r['model']}, {_way(r)}: {r['run']['date']}, commit {r['run']['commit']},"
        f" {r['run']['precision']}, weights {r['sha256'][:12]}"
        for r in results
    ]
    return table + "\nMeasured: " + "; ".join(notes) + ". Published numbers: `results/published.json`.\n"


# The published methods of README, and their names in colour; docs/models.md has all
FRONT = {"BM3D": "CBM3D", "DnCNN-S": "DnCNN", "FFDNet": "FFDNet", "NLRN": "", "DRUNet": "DRUNet"}


def front() -> str:
    """Of the tables of denoising, grey and colour, one level of noise and a few methods."""
    grey, colour = TASKS["denoising"], TASKS["colour"]
    models = [r for task in (grey, colour) for r in evaluations(task.files) if not r["run"].get("tta")]
    rows = []
    for result in models:
        found = (result["scores"].get(name) for name in (*grey.sets, *colour.sets))
        rows.append(
            [f"**{result['model']}**", *("" if score is None else f"{score['25']['psnr']:.2f}" for score in found)]
        )
    published, at = load("published"), grey.conditions.index("25")
    for name, in_colour in FRONT.items():
        method, other = (
            published[grey.published]["methods"][name],
            published[colour.published]["methods"].get(in_colour),
        )
        scores = [method[name] for name in grey.sets] + [other[name] for name in colour.sets if other]
        rows.append([_title(name, {}), *(f"{score[at]:.2f}" for score in scores), *([] if other else [""])])
    sets = [TITLES[name] for name in grey.sets] + [f"{TITLES[name]}, colour" for name in colour.sets]
    return markdown(["PSNR (dB) at sigma 25", *sets], rows)


def _title(name: str, method: dict[str, Any]) -> str:
    size = f" ({method['params'] / 1e6:.2f}M)" if "params" in method else ""
    return ("NLRN, the paper" if name == "NLRN" else name) + size


def _way(result: dict[str, Any]) -> str:
    """How a model was run."""
    views = ", mean of 8 views" if result["run"].get("tta") else ""
    protocol = result["protocol"].partition(":")[0] + ", " if result["task"] == "sr" else ""
    return f"{protocol}{result['run']['mode']} mode{views}"


def _scores(result: dict[str, Any], task: Task, name: str) -> str:
    found = result["scores"].get(name)
    return " / ".join(f"{found[c]['psnr']:.2f}" for c in task.conditions) if found else "not measured"


def attention(task: Task) -> str:
    """What the attention of every evaluated model is worth."""
    parts = []
    for result in evaluations(task.files):
        study = result.get("attention")
        if study is None:  # another mode of a model that has one
            continue
        first = task.conditions[0]
        rows = [[v, *(f"{study[c]['psnr'][v]:.2f}" for c in task.conditions)] for v in study[first]["psnr"]]
        for key, label in (("neighbours", "effective neighbours, states 1.."), ("largest", "largest abs(S)")):
            rows.append([label, *(" ".join(f"{x:.3g}" for x in study[c][key]) for c in task.conditions)])
        set_name = TITLES[next(iter(result["scores"]))]
        header = [f"{result['model']}, {set_name}", *(f"{task.label} {c}".strip() for c in task.conditions)]
        parts.append(markdown(header, rows))
    return "\n".join(parts)


def card() -> str:
    """What the headers of the shipped weights say."""
    rows = []
    for model in nlrn.list_models():
        meta = model.metadata
        pixels = f"{int(meta['training_pixels']) / 1e9:.2f} billion"
        hours = f"{float(meta['hardware_seconds']) / 3600:.1f} h, {meta['hardware']}"
        values = (f"{model.parameters:,}", f"{int(meta['steps']):,}", pixels, hours, f"`{model.sha256}`")
        rows.append([model.name, *values])
    return markdown(["model", "parameters", "steps", "pixels seen", "training time", "sha256"], rows)


def estimate() -> str:
    """What `nlrn evaluate --auto` says of estimated noise levels: files results/estimate-*.json."""
    results = [load(path.stem) for path in sorted(RESULTS.glob("estimate-*.json"), reverse=True)]
    levels = sorted({level for result in results for by in result["scores"].values() for level in by}, key=float)
    lines, notes = [], []
    for result in results:
        ((name, found),) = result["scores"].items()
        images = {level: np.array(list(score["images"].values())) for level, score in found.items()}
        errors = {level: np.abs(values[:, 2] - float(level)) for level, values in images.items()}
        lost = {level: values[:, 3] - values[:, 0] for level, values in images.items()}
        for what, values in (("error, mean", errors), ("PSNR lost (dB), mean", lost)):
            cells = [f"{values[x].mean():.2f} ({values[x].max():.2f})" if x in values else "" for x in levels]
            lines.append([f"{TITLES[name]}, {what} (largest)", *cells])
        notes.append(
            f"{result['model']} on {TITLES[name]}" + _measured(result).removeprefix("\nMeasured").rstrip("\n.")
        )
    return markdown(["sigma", *levels], lines) + "\nMeasured: " + "; ".join(notes) + ".\n"


FITTED = "Canon5D2"  # the camera of PolyU whose noisy images the simulated noise was looked at with
METHODS = {
    "noisy": "noisy input",
    "auto": "**nlrn, default settings**",
    "photo": "nlrn, `--noise photo`",
    "gaussian": "nlrn, `--noise gaussian`",
    "sigma": "nlrn, the best single sigma",
    "opencv": "OpenCV, fastNlMeansDenoisingColored, best",
    "bm3d": "BM3D, best",
}


def photographs() -> str:
    """Crops of the PolyU set, of results/photographs.json: of a family with a parameter the best for the whole set."""
    result = load("photographs")["camera"]
    lines, rows = result["lines"], []
    others = [name for name in lines if not name.startswith(FITTED)]
    measured = [method for method in next(iter(lines.values())) if method != "found"]
    for family, title in METHODS.items():
        members = [method for method in measured if method.partition(" ")[0] == family]
        if not members:
            continue
        best = max(members, key=lambda m: np.mean([line[m][0] for line in lines.values()]))
        gains = [line[best][0] - line["noisy"][0] for line in lines.values()]
        scores = [np.mean([lines[name][best][:2] for name in names], axis=0) for names in (lines, others)]
        cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in scores]
        shift = max(line[best][2] for line in lines.values())
        rows.append([title + best.removeprefix(family), *cells, f"{min(gains):+.2f}", f"{shift:.2f}"])
    header = [
        f"PSNR (dB) / SSIM, {len(lines)} crops",
        "all",
        f"four cameras ({len(others)})",
        "smallest gain",
        "largest shift of a channel's mean",
    ]
    return markdown(header, rows) + _measured(result)


def camera() -> str:
    """PSNR and SSIM on CBSD68 under the noise of simulated cameras."""
    photo = load("denoise-photo-small")
    found = photo["scores"]["cbsd68"]
    rows = [
        ["noisy input", *(f"{one['psnr_noisy']:.2f}" for one in found.values())],
        ["**denoise-photo-small**", *(f"{one['psnr']:.2f} / {one['ssim']:.4f}" for one in found.values())],
    ]
    header = ["PSNR (dB) / SSIM, CBSD68, camera noise", *(f"level {level}" for level in found)]
    return markdown(header, rows) + _measured(photo)


def simulated() -> str:
    """Methods on CBSD68 under simulated cameras, of results/photographs.json: of a family the best for a level."""
    result = load("photographs")["simulated"]
    by_level: dict[str, list[dict[str, list[float]]]] = {}
    for name, line in result["lines"].items():
        by_level.setdefault(name.rsplit(" ", 1)[1], []).append(line)
    rows = []
    for family, title in METHODS.items():
        cells = []
        for lines in by_level.values():
            members = [method for method in lines[0] if method.partition(" ")[0] == family]
            means = [np.mean([line[method] for line in lines], axis=0) for method in members]
            if means:
                psnr, ssim = max(means, key=lambda scores: scores[0])
                cells.append(f"{psnr:.2f} / {ssim:.4f}")
        if cells:
            rows.append([title, *cells])
    count = len(next(iter(by_level.values())))
    header = [f"PSNR (dB) / SSIM, {count} images of CBSD68", *(f"level {level}" for level in by_level)]
    return markdown(header, rows) + _measured(result)


def _by_kind_and_level(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, float]]]:
    lines: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name, line in result["lines"].items():
        _, kind, level = name.rsplit(" ", 2)
        lines.setdefault((kind, level), []).append(line)
    return lines


def route() -> str:
    """PSNR by level and content, of results/photographs.json."""
    result = load("photographs")["route"]
    lines = _by_kind_and_level(result)
    rows = [
        [
            f"{kind}, level {level}",
            *(f"{np.mean([one[key] for one in found]):.2f}" for key in ("noisy", "white", "photo")),
        ]
        for (kind, level), found in lines.items()
    ]
    count = len(next(iter(lines.values())))
    header = [f"PSNR (dB), {count} crops", "noisy input", "denoise-color-small, sigma estimated", "denoise-photo-small"]
    return markdown(header, rows) + _measured(result)


def levels() -> str:
    """dB gained by the model for photographs at factors on the level, of results/photographs.json."""
    result = load("photographs")["levels"]
    lines = _by_kind_and_level(result)
    factors = [key for key in next(iter(result["lines"].values())) if key != "noisy"]
    rows = []
    for (kind, level), found in lines.items():
        before, *gains = (np.mean([one[key] for one in found]) for key in ("noisy", *factors))
        rows.append([f"{kind}, level {level}", f"{before:.2f}", *(f"{gain:+.2f}" for gain in gains)])
    count = len(next(iter(lines.values())))
    return markdown([f"PSNR (dB), {count} crops", "noisy input", *(f"level x {f}" for f in factors)], rows) + _measured(
        result
    )


def passes() -> str:
    """dB gained by one pass and by two, of results/photographs.json: by the cameras and how sharp an image is."""
    result = load("photographs")["passes"]
    words = {"even": "smooth everywhere alike", "denoising": "spare detail", "coarse": "spare detail, coarse noise"}
    groups: dict[str, list[dict[str, float]]] = {}
    for zoom, names in (("sharp", ("1",)), ("soft", ("2", "3"))):
        for kind, word in words.items():
            found = [v for k, v in result["lines"].items() if k.rsplit(" ", 2)[1] == kind and k[-1] in names]
            groups[f"{zoom}, cameras that {word} ({len(found)})"] = found
    groups[f"**all ({len(result['lines'])})**"] = list(result["lines"].values())
    keys = ("noisy", "one", "full", "share")
    rows = []
    for name, found in groups.items():
        before, *gains = (np.mean([line[key] for line in found]) for key in keys)
        worst = min(line["share"] for line in found)
        rows.append([name, f"{before:.2f}", *(f"{gain:+.2f}" for gain in gains), f"{worst:+.2f}"])
    header = ["PSNR (dB)", "noisy input", "one pass", "the second in full", "**its share**", "the least of these"]
    return markdown(header, rows) + _measured(result)


def noise_first() -> str:
    """What removing noise before enlarging gains, of results/upscale-noise.json."""
    result = load("upscale-noise")["noisy"]
    lines: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, line in result["lines"].items():
        _, scale, kind, level = name.rsplit(" ", 3)
        lines.setdefault(f"{kind} {level}", {}).setdefault(scale, []).append(line)
    rows = []
    for noise, by_scale in lines.items():
        row = [f"{'a camera, level' if 'camera' in noise else 'white, sigma'} {noise.partition(' ')[2]}"]
        for found in by_scale.values():
            means = [np.mean([one[way] for one in found]) for way in ("bicubic", "alone", "denoised")]
            gains = [one["denoised"] - one["alone"] for one in found]
            row += [" / ".join(f"{mean:.2f}" for mean in means), f"{min(gains):+.2f} to {max(gains):+.2f}"]
        rows.append(row)
    scales = list(next(iter(lines.values())))
    header = [f"PSNR (dB), {result['images'] // len(scales)} images"]
    for scale in scales:
        header += [f"{scale}: bicubic / network / noise removed first", "gained by removing"]
    certain = [
        line["denoised"] - line["alone"]
        for line in result["lines"].values()
        if all(one["kind"] == "white" and one["level"] >= WHITE for one in line["found"])
    ]
    words = (
        f"\nWhite noise of sigma {WHITE:g} or more was found in {len(certain)} of {len(result['lines'])} cases; there"
        f" removing it gained {min(certain):+.2f} dB at least, {np.mean(certain):+.2f} on average.\n"
    )
    return markdown(header, rows) + words + _measured(result)


def texture_first() -> str:
    """The same of textured images without noise."""
    result = load("upscale-noise")["textured"]
    rows = []
    for scale in ("x2", "x3"):
        found = [line for name, line in result["lines"].items() if f" {scale} " in name]
        gains = [line["denoised"] - line["alone"] for line in found]
        means = [f"{np.mean([line[way] for line in found]):.2f}" for way in ("alone", "denoised")]
        row = [f"{scale}: {len(found)} of {result['images'] // 2}", *means, f"{min(gains):+.2f} to {max(gains):+.2f}"]
        rows.append(row)
    header = ["images without noise, a reported level is found", "network", "noise removed first", "gained"]
    return markdown(header, rows) + _measured(result)


def untouched() -> str:
    """Images without noise and images with white noise, of results/photographs.json."""
    found = load("photographs")
    clean, jpeg, white = (found[name]["lines"].values() for name in ("clean", "jpeg", "white"))
    wrong = [line for line in white if line["found"]["kind"] != "white"]
    lost = [line["true"] - line["auto"] for line in wrong]
    changed = np.array([line["changed"] for line in clean])
    gains = np.array([line["restored"] - line["given"] for line in jpeg])
    images = {name.rsplit(" ", 1)[0] for name in found["white"]["lines"]}
    rows = [
        [f"BSD100 without added noise ({len(clean)} images): PSNR of the result against it", f"{changed.mean():.1f} dB",
         f"{changed.min():.1f} dB"],
        [f"BSD100 as JPEG of quality 70 ({len(jpeg)}): PSNR gained", f"{gains.mean():+.2f} dB",
         f"{gains.min():+.2f} dB"],
        [f"CBSD68 with white noise ({len(images)} images at {len(white) // len(images)} levels): {len(wrong)} taken for"
         " camera noise, PSNR lost by that",
         f"{sum(lost) / len(white):.3f} dB", f"{max(lost, default=0):.2f} dB"],
    ]  # fmt: skip
    return markdown(["", "mean", "worst"], rows) + _measured(found["clean"]) + _measured(found["white"], "White noise")


def inference() -> str:
    """Seconds and memory of one image of 512 x 512."""
    result = load("benchmark-model")
    rows = [r for r in result["rows"] if r["section"] == "images" and r["size"] == 512]
    _, header, lines = report.images_table(rows)
    return markdown(header, lines) + _measured(result)


def between() -> str:
    """Scores at scales between the whole ones: files results/between-*.json."""
    lines, notes, found = [], [], {}
    for result in [load(path.stem) for path in sorted(RESULTS.glob("between-*.json"))]:
        ((name, found),) = result["scores"].items()
        scores = [f"{score['psnr']:.2f} / {score['ssim']:.4f}" for score in found.values()]
        lines.append([f"{result['model']}, {TITLES[name]}, {result['protocol'].partition(':')[0]}", *scores])
        notes.append(_measured(result))
    return markdown(["PSNR (dB) / SSIM", *found], lines) + "".join(notes)


def tiles() -> str:
    """Tiles against the whole image, of results/images.json."""
    rows = load("images")["price"]
    lines = [
        [r["model"], r["precision"], f"{r['side']}", f"{r['overlap']}",
         f"{r['nearness']:.1f} dB", f"{r['largest']:.2g}", f"{r['lost']:+.3f} dB", f"{r['time']:.2f}"]
        for r in rows
    ]  # fmt: skip
    header = [
        "model",
        "type",
        "side",
        "overlap",
        "PSNR against the whole",
        "largest difference",
        "lost",
        "times the time",
    ]
    return markdown(header, lines) + _measured(rows[0])


def commands() -> str:
    """What whole commands took, of results/images.json."""
    found = load("images")
    rows = [*found.get("enlarge", []), *found.get("large", [])]
    lines = [
        [r["model"], f"{r['width']} x {r['height']}" + (", colour" if r["colour"] else ""),
         f"{r['side']}" if r["side"] else "whole",
         f"{r['seconds']:.0f} s", f"{r['predicted']:,.0f}", f"{r['peak']:,.0f}"]
        for r in rows
    ]  # fmt: skip
    header = ["model", "result", "tiles", "time", "MiB predicted, network", "MiB at the peak, process"]
    return markdown(header, lines) + _measured(rows[-1])


def engines() -> str:
    """A folder by processes and by Ray, of results/engines.json; a million images by proportion."""
    result = load("engines")
    lines = []
    for r in result["lines"]:
        alone = (r["engine"], r["workers"]) == ("local", 1)  # which has all threads
        cores = result["run"]["threads"] if alone else r["workers"]
        hours = 1e6 / r["rate"] / 3600 * cores
        row = [r["engine"], f"{r['workers']}", f"{cores}", f"{r['images']} in {r['seconds']:.0f} s"]
        lines.append([*row, f"{r['rate']:.2f}", f"{r['mebibytes']:,.0f}", f"{hours:,.0f}"])
    header = ["engine", "workers", "cores", "images", "a second", "MiB, all processes", "core hours for a million"]
    return markdown(header, lines) + _measured(result)


def processes() -> str:
    """A training by several processes, of results/processes.json: steps a second, and as many times as alone."""
    result = load("processes")
    alone = result["lines"]["1 process"]
    phases = [name for name, found in alone.items() if isinstance(found, dict)]
    lines = []
    for name, line in result["lines"].items():
        rates = {phase: line[phase]["steps_a_second"] for phase in phases}
        times = {phase: rate / alone[phase]["steps_a_second"] for phase, rate in rates.items()}
        lines.append([name, *(f"{rates[phase]:.2f} ({times[phase]:.2f})" for phase in phases)])
    return markdown(["steps a second", *phases], lines) + _measured(result)


def recipes() -> str:
    """What a core trains on in a second by every recipe, of results/recipes.json."""
    result = load("recipes")
    kinds = {"fp32": "float32, AVX2", "bf16": "bf16"}
    found = {(line["recipe"], line["kind"]): line for line in result["lines"]}
    rows = []
    for name in dict.fromkeys(line["recipe"] for line in result["lines"]):
        mine = [found.get((name, kind)) for kind in kinds]
        size = next(f"{line['patches']} of {line['side']}" for line in mine if line is not None)
        cells = [["", "", ""] if m is None else [*_rates(m), f"{m['ratio']:.2f}"] for m in mine]
        rows.append([f"`{name}`", size, *(cell for three in cells for cell in three)])
    header = [
        "recipe",
        "patches",
        *(f"{kind}, {word}" if word else "times" for kind in kinds.values() for word in ("before", "now", "")),
    ]
    return markdown(header, rows) + f"\nBefore: commit {result['before']}." + _measured(result).replace("\n", " ", 1)


def _rates(line: dict[str, Any]) -> list[str]:
    return [f"{line[when]:,.0f}" for when in ("before", "now")]


def nearness() -> str:
    """The same runs: the largest relative differences from one process on one thread."""
    result = load("processes")
    lines = []
    for name, line in result["lines"].items():
        if name != "1 process":
            first, second = (found for found in line.values() if isinstance(found, dict))
            norms = max(first["norms"], second["norms"])
            numbers = (line["first loss"], first["losses"], second["losses"], norms, line["restored"])
            lines.append([name, *(f"{number:.1e}" for number in numbers)])
    header = ["", "loss of step 1", "losses before", "losses frozen", "gradient norms", "worst restored pixel"]
    return markdown(header, lines) + _measured(result)


def benchmark(what: str) -> str:
    """All tables of python -m benchmarks.operator or model."""
    result = load(f"benchmark-{what}")
    parts = [f"**{title}**\n\n{markdown(header, lines)}\n" for title, header, lines in report.tables(result)]
    again = [f"Of these, {p['what']}: {p['date']}, commit {p['commit']}.\n" for p in result.get("again", [])]
    return "".join(parts) + _measured(result).lstrip("\n") + "".join(again)


def held() -> str:
    """The kernel, the gradients and the network where everything is held to AVX2, of results/benchmark-held.json."""
    result = load("benchmark-held")
    makes = (report.limit_table, report.weights_table, report.images_table, report.training_table)
    tables = [make(result["rows"]) for make in makes]
    return "".join(f"**{title}**\n\n{markdown(header, lines)}\n" for title, header, lines in tables) + _measured(
        result
    ).lstrip("\n")


def peers() -> str:
    """Speed and PSNR beside other denoisers, as python -m benchmarks.peers measured them."""
    result = load("benchmark-peers")
    return markdown(*peers_table(result["rows"])) + _measured(result)


def photons() -> str:
    """Gain and read noise estimated from simulated fluorescence, of results/photons.json."""
    result = load("photons")
    return markdown(list(measure_photons.HEADER), [measure_photons.cells(row) for row in result["rows"]]) + _measured(
        result
    )


def _measured(result: dict[str, Any], what: str = "Measured") -> str:
    run = result["run"]
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    precision = f"{run['precision']}, " if "precision" in run else ""
    machine = f"{precision}{run['device']}, {threads}, torch {run['torch']}"
    return f"\n{what}: {run['date']}, commit {run['commit']}, {machine}.\n"


def study(name: str) -> str:
    """Equal trainings that differ in one thing."""
    result = load(f"study-{name}")
    _, header, lines = study_table(result)
    commits = {run.get("commit", result["run"]["commit"]) for runs in result["runs"].values() for run in runs.values()}
    result["run"]["commit"] = ", ".join(sorted(commits))
    return markdown([f"{result['steps']:,} steps", *header[1:]], lines) + _measured(result)


def study_growth() -> str:
    """Growth against the finished network from the start, of results/study-growth.json."""
    result = load("study-growth")
    _, header, rows = growth.table(result)
    return markdown(header, rows) + _measured(result)


def training_ledger() -> str:
    """The slices of training/ledger.jsonl."""
    entries = ledger.read_ledger(ROOT / "training/ledger.jsonl")
    rows = [
        [
            entry.date,
            f"`{entry.model}`",
            f"{entry.hardware}, {entry.instruction_set}",
            "not measured" if entry.cpu_seconds is None else f"{entry.cpu_seconds / 3600:.2f}",
            f"{entry.steps:,}",
            f"{entry.pixels / 1e6:,.0f} (+{entry.slice_pixels / 1e6:,.0f})",
            " / ".join(f"{value:.2f}" for value in entry.psnr.values()) or "not measured",
            entry.decision,
        ]
        for entry in entries
    ]
    header = ["date", "model", "hardware", "core hours", "step", "million pixels", "validation PSNR", "decision"]
    total = ", ".join(ledger.hours(entries))
    return markdown(header, rows) + f"\nWeighted by instruction set: {total}.\n"


TABLES: dict[str, Callable[[], str]] = {
    "attention": partial(attention, TASKS["denoising"]),
    "attention-colour": partial(attention, TASKS["colour"]),
    "attention-enlarging": partial(attention, TASKS["enlarging"]),
    "benchmark-model": lambda: benchmark("model"),
    "benchmark-operator": lambda: benchmark("operator"),
    "benchmark-held": held,
    "between": between,
    "card": card,
    "commands": commands,
    "engines": engines,
    "front": front,
    "estimate": estimate,
    "inference": inference,
    "ledger": training_ledger,
    "nearness": nearness,
    "noise-first": noise_first,
    "texture-first": texture_first,
    "photographs": photographs,
    "photons": photons,
    "simulated": simulated,
    "processes": processes,
    "recipes": recipes,
    "tiles": tiles,
    "untouched": untouched,
    "peers": peers,
    "camera": camera,
    "route": route,
    "levels": levels,
    "passes": passes,
    **{name: partial(scores, task) for name, task in TASKS.items()},
    "study-growth": study_growth,
    **{f"study-{name}": partial(study, name) for name in STUDIES},
}


def rendered(text: str) -> str:
    """A page with its tables written anew. Exits when a mark is not a table's, or lacks its end."""
    places = len(re.findall("<!-- *(?:table|end)", text))
    unknown = {m[2] for m in MARK.finditer(text)} - TABLES.keys()
    if places != 2 * len(MARK.findall(text)) or unknown:
        sys.exit(f"a table's mark without its end, or misspelt{': ' if unknown else ''}{', '.join(unknown)}")
    return MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[4], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a page is out of date; write nothing")
    options = parser.parse_args()
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = rendered(text)
        if new != text:
            stale.append(name)
            if not options.check:
                page.write_text(new)
    if options.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run scripts/render_tables.py")


if __name__ == "__main__":
    main()
