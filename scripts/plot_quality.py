"""The plot of README: PSNR on Set12 at sigma 25 against parameters, from results/*.json alone."""

from __future__ import annotations

import json
from pathlib import Path

from nlrn.evaluation.plotting import new_figure, write_figure

ROOT = Path(__file__).resolve().parents[1]
MODEL, PARAMETERS = "denoise-gray-small", 86_403  # nlrn models prints them


def points() -> dict[str, tuple[float, float, bool]]:
    """Name -> (parameters, dB, whether it was measured here)."""
    published = json.loads((ROOT / "results" / "published.json").read_text())["denoise_grey"]
    at = published["sigmas"].index(25)
    found = {
        name: (float(one["params"]), float(one["set12"][at]), False)
        for name, one in published["methods"].items()
        if "params" in one
    }
    scores = json.loads((ROOT / "results" / f"{MODEL}.json").read_text())["scores"]
    return found | {MODEL: (float(PARAMETERS), float(scores["set12"]["25"]["psnr"]), True)}


def main() -> None:
    """Write docs/quality.png."""
    figure = new_figure(6.4, 2.6)
    axis = figure.subplots()
    for name, (parameters, psnr, own) in points().items():
        axis.plot(parameters, psnr, "o", color="tab:red" if own else "tab:blue", markersize=7 if own else 5)
        axis.annotate(
            name,
            (parameters, psnr),
            xytext=(6, -12 if name == "FFDNet" else -2),
            textcoords="offset points",
            fontsize=8,
        )
    axis.set_xscale("log")
    axis.set_xlim(5e4, 1.5e8)
    axis.margins(y=0.12)
    axis.set_xlabel("parameters")
    axis.set_ylabel("PSNR in dB")
    axis.set_title("Set12, sigma 25: measured here (red), published (blue)", fontsize=9)
    axis.grid(alpha=0.3)
    write_figure(figure, ROOT / "docs" / "quality.png")


if __name__ == "__main__":
    main()
