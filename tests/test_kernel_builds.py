"""The kernel as other compilers and processors build it: by kernel_laws.cpp, a program that needs no Python.

What needs a tool that is not here (Clang, a cross compiler and an emulator) is not collected; `make kernel-aarch64`
fails without its tools.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "nlrn" / "ops" / "csrc"
ARM = "/usr/aarch64-linux-gnu"  # Debian: g++-aarch64-linux-gnu and qemu-user


def _setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nlrn_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = _setup()


@dataclass(frozen=True)
class Build:
    """A compiler, the flags of setup.py for a platform with some more or less, and what runs the result."""

    compiler: str
    platform: str
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()

    def is_here(self) -> bool:
        found = all(map(shutil.which, (self.compiler, *self.runner[:1])))
        return found and (bool(self.runner) or self.platform == sysconfig.get_platform())

    def run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Compile the portable set with the laws, and run them."""
        flags = [flag for flag in SETUP.plan(self.platform, "unix")[0]["portable"] if flag not in self.less]
        program, sources = folder / "laws", [SOURCES / "portable.cpp", SOURCES / "dispatch.cpp"]
        sources.append(ROOT / "tests" / "kernel_laws.cpp")
        command = [self.compiler, *flags, *self.more, "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", *map(str, sources)]
        subprocess.run([*command, "-o", str(program)], check=True)
        return subprocess.run([*self.runner, str(program)], check=False, capture_output=True, text=True)


SSE2, CLANG = Build("g++", "linux-x86_64", ("-DNLRN_SSE2_LANES",)), Build("clang++", "linux-x86_64", less=("-fopenmp",))
AARCH64 = Build("aarch64-linux-gnu-g++", "linux-aarch64", runner=("qemu-aarch64", "-L", ARM))
BUILDS = {  # what stands in for what
    "sse2-lanes-as-for-msvc": SSE2,
    "clang-without-openmp-as-on-macos": CLANG,
    "aarch64-under-qemu": AARCH64,
}


HERE = [name for name, build in BUILDS.items() if build.is_here()]

if HERE:

    @pytest.mark.slow
    @pytest.mark.parametrize("name", HERE)
    def test_the_laws_hold(name: str, tmp_path: Path) -> None:
        done = BUILDS[name].run(tmp_path)
        assert done.returncode == 0, done.stdout
        passed, failed = map(int, re.findall(r"^(\d+) passed, (\d+) failed$", done.stdout, re.MULTILINE)[0])
        assert (passed > 300, failed) == (True, 0)


@pytest.mark.slow
def test_a_kernel_that_is_wrong_fails(tmp_path: Path) -> None:
    """Under -ffast-math a compiler may take the rounding of exp2_of for nothing, and NaN for a number."""
    done = Build("g++", sysconfig.get_platform(), ("-ffast-math",)).run(tmp_path)
    assert done.returncode == 1
    assert "FAILED: one query of NaN" in done.stdout
    assert "FAILED: out" in done.stdout


if shutil.which("clang++"):

    @pytest.mark.slow
    @pytest.mark.parametrize("source", ["portable", "dispatch"])
    def test_clang_compiles_it_for_the_target_of_msvc(source: str, tmp_path: Path) -> None:
        """No more than that it is C++ there, with MSVC's names in it: nothing links or runs it here."""
        (tmp_path / "string.h").write_text(
            '#include <stddef.h>\nextern "C" void *memcpy(void *, const void *, size_t);\n'
            'extern "C" void *memset(void *, int, size_t);\n'
        )
        target = ["--target=x86_64-pc-windows-msvc", "-fms-compatibility-version=19.40", "-ffreestanding"]
        command = ["clang++", *target, "-isystem", str(tmp_path), "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        made = tmp_path / "made.obj"
        subprocess.run([*command, "-c", str(SOURCES / f"{source}.cpp"), "-o", str(made)], check=True)
        assert {"portable": b"kernel_portable", "dispatch": b"/EXPORT:nlrn_forward"}[source] in made.read_bytes()


# ------------------------------------------------------------------------------------------------ flags
PLATFORMS = ["linux-x86_64", "linux-aarch64", "macosx-11.0-arm64", "macosx-11.0-universal2"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_only_sets_that_are_asked_for_at_run_time_go_beyond_the_baseline(platform: str) -> None:
    sources, _ = SETUP.plan(platform, "unix")
    for name in ("portable", "dispatch"):
        extensions = [flag for flag in sources[name] if flag.startswith("-m")]
        assert extensions == {"linux-x86_64": ["-march=x86-64"], "linux-aarch64": ["-march=armv8-a"]}.get(platform, [])
    assert set(sources) - {"portable", "dispatch"} == (set(SETUP.X86_SETS) if platform == "linux-x86_64" else set())
    assert ("-DNLRN_X86_SETS" in sources["dispatch"]) == (platform == "linux-x86_64")
    assert all((SOURCES / f"{name}.cpp").is_file() for name in sources)


def test_macos_takes_the_header_of_openmp_and_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBOMP_PREFIX", str(tmp_path))
    sources, link = SETUP.plan("macosx-11.0-arm64", "unix")
    assert sources["portable"][-3:] == ["-Xpreprocessor", "-fopenmp", f"-I{tmp_path}/include"]
    assert link == []
    monkeypatch.setattr(SETUP, "LIBOMP", ())
    monkeypatch.delenv("LIBOMP_PREFIX")
    assert not any("openmp" in flag for flag in SETUP.plan("macosx-11.0-arm64", "unix")[0]["portable"])


def test_msvc_gets_words_of_its_own_and_only_for_x64() -> None:
    sources, link = SETUP.plan("win-amd64", "msvc")
    assert set(sources) == {"portable", "dispatch"}
    assert all(flag.startswith("/") for flag in sources["portable"] + link)
    assert not any(flag.startswith("/arch") for flag in sources["portable"])
    with pytest.raises(PlatformError, match="no kernel for win-arm64"):
        SETUP.plan("win-arm64", "msvc")
