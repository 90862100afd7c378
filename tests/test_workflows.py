"""GitHub's workflows: by the schema that GitHub's editors use, and what they must say of this repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import nlrn

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yml")}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"].values()]


def problems(*files: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, files)], check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""


def test_they_fit_the_schema(tmp_path: Path) -> None:
    files = sorted(FOLDER.glob("*.yml"))
    assert [file.stem for file in files] == ["docs", "release", "tests", "wheels"]
    assert problems(*files) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((FOLDER / "tests.yml").read_text().replace("runs-on:", "run-on:"))
    assert "run-on" in problems(wrong)


def test_every_python_that_is_promised_is_tried_on_every_system() -> None:
    matrix = WORKFLOWS["tests"]["jobs"]["matrix"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == [f"3.{minor}" for minor in range(11, 15)]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    builds = PROJECT["tool"]["cibuildwheel"]["build"]
    assert builds == [f"cp{version.replace('.', '')}-*" for version in matrix["python"]]
    gate = WORKFLOWS["tests"]["jobs"]["gate"]["steps"]
    assert [step for step in matrix["exclude"] if step["python"] == gate[1]["with"]["python-version"]]
    assert any(step.get("run") == "bash .ci/run" for step in gate)


def test_wheels_are_built_for_the_platforms_of_pyproject() -> None:
    built = {
        (job["system"].partition("-")[0], job["archs"])
        for job in WORKFLOWS["wheels"]["jobs"]["wheel"]["strategy"]["matrix"]["include"]
    }
    names = {"linux": "ubuntu", "macos": "macos", "windows": "windows"}
    wanted = {
        (system, arch) for name, system in names.items() for arch in PROJECT["tool"]["cibuildwheel"][name]["archs"]
    }
    assert built == wanted
    for name in names:  # no platform's environment loses what makes a missing kernel an error
        table = PROJECT["tool"]["cibuildwheel"][name].get("environment", PROJECT["tool"]["cibuildwheel"]["environment"])
        assert table["NLRN_BUILD_KERNEL"] == "required"


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_no_job_runs_for_ever_or_may_write_more_than_it_needs(name: str, job: dict[str, Any]) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert "uses" in job or job["timeout-minutes"] <= 120
    writes = {scope for scope, right in job.get("permissions", {}).items() if right == "write"}
    assert writes <= {"release": {"id-token", "contents"}, "docs": {"id-token", "pages"}}.get(name, set())
    for step in job.get("steps", []):
        assert not step.get("uses") or re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v1)", step["uses"]), step


def test_a_release_is_the_version_and_by_no_token() -> None:
    (step,) = [step for step in WORKFLOWS["release"]["jobs"]["version"]["steps"] if "run" in step]
    for tag, code in ((f"v{nlrn.__version__}", True), ("v0.0.0", False), (nlrn.__version__, False)):
        check = f"set -e\n{step['run'].replace('## $found', '## $found.*')}"  # "(unreleased)" stands there until then
        done = subprocess.run(
            ["bash", "-c", check], check=False, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag}
        )
        assert (done.returncode == 0) == code, tag
    pypi = WORKFLOWS["release"]["jobs"]["pypi"]
    assert (pypi["environment"], pypi["permissions"]) == ("pypi", {"id-token": "write"})
    assert "secrets" not in (FOLDER / "release.yml").read_text()


def test_the_citation_fits_its_schema_and_names_the_paper() -> None:
    file = ROOT / "CITATION.cff"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = yaml.safe_load(file.read_text())
    assert [author["name"] for author in found["authors"]] == ["the nlrn contributors"]
    names = [f"{author['given-names']} {author['family-names']}" for author in found["preferred-citation"]["authors"]]
    assert names == ["Ding Liu", "Bihan Wen", "Yuchen Fan", "Chen Change Loy", "Thomas S. Huang"]


def test_a_commit_is_checked_as_make_check_does() -> None:
    """pre-commit runs the commands of the gate that take a commit's files, by the tools of the environment."""
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    assert entries["ruff"].startswith("python -m ruff check")
    assert entries["ruff-format"].startswith("python -m ruff format")
    gate = (ROOT / "Makefile").read_text()
    assert entries["codespell"].partition("codespell_lib ")[2] in gate.partition("/codespell ")[2]
