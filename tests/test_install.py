"""What is installed: from an sdist without a compiler, and what its wheel is called; the version in one place."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nlrn
from nlrn.ops import cpu

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, made from a copy of what the repository holds."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    made = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=copy, capture_output=True)
    (path,) = folder.glob("nlrn-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees the sdist as it was installed with no compiler on the PATH."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "bin").mkdir()
    plain = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "NLRN_BUILD_KERNEL")}
    plain["PATH"] = str(folder / "bin")
    command = [*PIP, "install", "--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True, env=plain, cwd=folder)
    return plain | {"PYTHONPATH": str(folder / "site")}


def command(bare: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "nlrn", *words]
    return subprocess.run(line, check=False, capture_output=True, text=True, env=bare, cwd=cwd)


SAID = "nlrn: the fused CPU kernel was not built"


def test_an_sdist_without_a_compiler_installs_and_runs_the_tiled_operator(bare: dict[str, str], tmp_path: Path) -> None:
    done = command(bare, tmp_path, "doctor")
    assert (done.returncode, "backend in use: tiled" in done.stdout) == (3, True), done.stdout + done.stderr
    assert str(Path(bare["PYTHONPATH"])) in command(bare, tmp_path, "models", "--json").stdout


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_that_is_said_once_for_a_folder(bare: dict[str, str], tmp_path: Path, jobs: str) -> None:
    (tmp_path / "in").mkdir()
    chance = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(chance.integers(0, 255, (24, 32), np.uint8)).save(tmp_path / "in" / f"{name}.png")
    done = command(bare, tmp_path, "denoise", "in", "-o", "out", "--sigma", "25", "-j", jobs)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count(SAID) == 1
    with Image.open(tmp_path / "in" / "a.png") as noisy, Image.open(tmp_path / "out" / "a.png") as found:
        difference = np.abs(nlrn.denoise(np.asarray(noisy), sigma=25).astype(int) - np.asarray(found).astype(int))
    assert difference.max() <= 1  # the kernel's own rounding


def test_what_is_installed_holds_weights_digests_types_and_the_page(bare: dict[str, str]) -> None:
    """With the kernel too: test_weights.py, which builds it."""
    package = Path(bare["PYTHONPATH"]) / "nlrn"
    found = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    here = ROOT / "src" / "nlrn"
    for folder in ("models/weights", "web/page"):
        assert {f.relative_to(here).as_posix() for f in (here / folder).rglob("*") if f.is_file()} <= found
    assert {"py.typed", "ops/tiled.py", "functional/correlated.json"} <= found


def test_where_the_kernel_is_nothing_is_said(tmp_path: Path) -> None:
    assert cpu.LIBRARY.exists()
    Image.new("L", (24, 24), 128).save(tmp_path / "a.png")
    done = command(dict(os.environ), tmp_path, "denoise", "a.png", "-o", "b.png", "--sigma", "25")
    assert (done.returncode, SAID in done.stdout + done.stderr) == (0, False)


def test_a_kernel_that_is_required_and_cannot_be_built_is_an_error(source: Path, bare: dict[str, str]) -> None:
    folder = source.parent / "required"
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    env = {name: value for name, value in bare.items() if name != "PYTHONPATH"} | {"NLRN_BUILD_KERNEL": "required"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode != 0
    assert not list(folder.glob("*.whl"))


def test_the_sdist_holds_the_kernel_and_nothing_that_was_built(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernel = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "nlrn" / "ops" / "csrc").iterdir()}
    assert kernel <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_version_stands_in_one_place_and_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "nlrn._version.__version__"}
    found = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found[0] == nlrn.__version__
