"""What is published is true: rendered tables, links, the demo. Commands and snippets: test_snippets.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import peers
from nlrn.models.listing import shipped_models

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import render_tables  # noqa: E402


def test_tables_are_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "render_tables.py"), "--check"]
    subprocess.run(command, check=True)


def test_a_mark_without_its_end_is_refused_before_it_costs_a_line() -> None:
    good = "a\n<!-- table: card -->\nold\n<!-- end -->\nb\n"
    assert render_tables.rendered(good).startswith("a\n<!-- table: card -->\n| model")
    for bad in (
        "<!-- table: card -->\nprose\n" + good,
        good.replace("card", "cards"),
        good.replace("<!-- end -->", ""),
    ):
        with pytest.raises(SystemExit, match="mark"):
            render_tables.rendered(bad)


def test_every_evaluated_model_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and small, both protocols of super-resolution; a study of the attention where there is one."""
    conditions, run = ("x2", "x3", "x4"), {"date": "2026-01-02", "commit": "abc", "precision": "fp32", "mode": "window"}
    scores = {c: {"psnr": 30.0 + i} for i, c in enumerate(conditions)}
    row = {"psnr": {"as is": 31.5}, "neighbours": [3.25], "largest": [9.0]}
    for name, protocol in (("sr", "float-lr"), ("sr-8bit-lr", "8bit-lr"), ("sr-small", "float-lr")):
        result = {
            "model": name.removesuffix("-8bit-lr"),
            "task": "sr",
            "protocol": f"{protocol}: as it is",
            "sha256": "f" * 64,
            "run": run,
            "scores": dict.fromkeys(("set5", "set14", "bsd100"), scores),
        } | ({"attention": dict.fromkeys(conditions, row)} if protocol == "float-lr" else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "published.json").write_bytes((ROOT / "results" / "published.json").read_bytes())
    (tmp_path / "srx.json").write_text("{}")  # another's
    monkeypatch.setattr(render_tables, "RESULTS", tmp_path)
    lines = render_tables.TABLES["enlarging"]().splitlines()
    assert lines[0] == "| PSNR (dB) at x2 / x3 / x4 | Set5 | Set14 | BSD100 |"
    ours = " | ".join(["30.00 / 31.00 / 32.00"] * 3)
    names = ["**sr**, float-lr", "**sr**, 8bit-lr", "**sr-small**, float-lr"]
    assert {line for line in lines if "**" in line} == {f"| {name}, window mode | {ours} |" for name in names}
    assert any(line.startswith("| NLRN, the paper (0.35M) | 38.00 / 34.27 / 31.92") for line in lines)
    attention = render_tables.TABLES["attention-enlarging"]()
    assert attention.count("| as is | 31.50 | 31.50 | 31.50 |") == 2
    assert "| sr-small, Set5 | x2 | x3 | x4 |" in attention


def test_links_lead_somewhere() -> None:
    """Of the pages that are not in the site, which checks its own."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"


def test_the_readme_is_one_screen() -> None:
    """Two images, one block of commands, one table; what else there is to say stands in docs."""
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 56
    assert (text.count("```sh"), text.count("<!-- table:"), text.count("```")) == (1, 1, 2)
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)|<img [^>]*src=\"([^\"]+)\"[^>]* alt=\"[^\"]+\"", text)
    assert [one or other for one, other in images] == ["docs/front.jpg", "docs/peers.png"]
    assert all((ROOT / (one or other)).is_file() for one, other in images)
    for honest in ("**For whom not**", "FFDNet", "DRUNet", "no weights yet"):
        assert honest in text


def test_the_gate_runs_the_first_commands_of_the_readme_as_they_stand() -> None:
    block = (ROOT / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    gate = (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[:2] == gate[-2:] == ["make demo", "make test"]


def test_every_page_is_found_from_the_first() -> None:
    """index.md, whose lists are the site's side bar too, links every other page."""
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text())) == pages - {"index.md"}


def test_speed_stands_beside_the_scores_of_today() -> None:
    """The table and the plot of benchmarks.peers were made with the scores that the other tables show."""
    rows = json.loads((ROOT / "results" / "benchmark-peers.json").read_text())["rows"]
    ours = {model.name for model in shipped_models() if model.task == "denoise" and model.channels == 1}
    assert ours <= {row["name"] for row in rows}
    for row in rows:
        assert {name: row[name] for name in ("set12", "bsd68")} == peers.quality(row["name"])


def test_the_demo_restores_the_photograph(tmp_path: Path) -> None:
    """The real thing on the real weights: at least 8 dB better, and a sheet of the three images."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--output", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = (float(v) for v in re.findall(r"(\d+\.\d+) dB", printed)[:2])
    assert before == pytest.approx(20.19, abs=0.01)
    assert after > before + 8
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.size == (3 * 512 + 16, 24 + 2 * 512 + 8)
