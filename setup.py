"""Builds the fused CPU kernel, where there is a C++ compiler for it; everything else is in pyproject.toml.

The result is a plain shared library that nlrn.ops.cpu loads, one kernel for each instruction set. It knows nothing of
Python, so that one wheel serves every version of it on a platform. Where the kernel cannot be built, nlrn is installed
without it and runs on the blocked torch operator, which is slower; NLRN_BUILD_KERNEL=required makes that an error.

Linux: GCC or Clang, four sets on x86-64, one elsewhere. macOS: Clang, one set, OpenMP where Homebrew's libomp has its
header. Windows: MSVC for x64, one set. Only Linux has been tried (docs/install.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, LinkError, PlatformError
from setuptools.modified import newer_group

SOURCES = Path("src/nlrn/ops/csrc")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_SETS = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
GNU = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-g0", "-Wno-maybe-uninitialized", "-Wno-psabi"]
CLANG = ["-Wno-unknown-warning-option", "-Wno-pass-failed"]  # loops that cannot be unrolled are reported otherwise
MSVC = ["/O2", "/std:c++17", "/fp:precise", "/openmp"]  # no /arch: what every x64 processor has
LIBOMP = ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp")


def baseline(platform: str) -> list[str]:
    """The least processor that a wheel of this platform (sysconfig's name for it) must run on, after any CFLAGS."""
    if platform.startswith("linux"):
        return {"x86_64": ["-march=x86-64"], "aarch64": ["-march=armv8-a"]}.get(platform.rpartition("-")[2], [])
    return []


def openmp(platform: str) -> list[str]:
    """Flags of the compiler. On macOS the library itself is torch's: nlrn.ops.cpu loads it first, so none is linked."""
    if not platform.startswith("macosx"):
        return ["-fopenmp"]
    prefix = next((path for path in (os.environ.get("LIBOMP_PREFIX"), *LIBOMP) if path and Path(path).is_dir()), None)
    return ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"] if prefix else []


def plan(platform: str, compiler: str) -> tuple[dict[str, list[str]], list[str]]:
    """(source files and the flags of each, flags of the linker) for sysconfig's platform, setuptools' compiler type."""
    if compiler == "msvc":
        if platform != "win-amd64":
            raise PlatformError(f"there is no kernel for {platform}")
        return {"portable": MSVC, "dispatch": MSVC}, []
    flags = [*GNU, *CLANG, *openmp(platform), *baseline(platform)]
    if platform == "linux-x86_64":
        sets = {name: [*flags, *more] for name, more in X86_SETS.items()}
        return {"portable": flags, **sets, "dispatch": [*flags, "-DNLRN_X86_SETS"]}, ["-fopenmp"]
    return {"portable": flags, "dispatch": flags}, ["-fopenmp"] if platform.startswith("linux") else []


class BuildKernel(build_ext):
    """One object a set, each with its own flags, linked into one library beside nlrn/ops/cpu.py."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        built = Path("src", *ext.name.split(".")[:-1], target.name)
        if self.editable_mode and not self.force and not newer_group([*ext.sources, *ext.depends], str(built)):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(target))  # from where it is put back
            return
        try:
            sources, link = plan(self.plat_name, self.compiler.compiler_type)
            objects = []
            for name, flags in sources.items():
                source = str(SOURCES / f"{name}.cpp")
                objects += self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)
            self.compiler.link_shared_object(objects, str(target), extra_postargs=link, target_lang="c++")
        except (CCompilerError, CompileError, LinkError, PlatformError, OSError) as error:
            if os.environ.get("NLRN_BUILD_KERNEL") == "required":
                raise
            print(
                f"nlrn: the fused CPU kernel is not built ({error}); the slower torch operator will run",
                file=sys.stderr,
            )

    def get_ext_filename(self, fullname: str) -> str:
        """What nlrn.ops.cpu.LIBRARY is called."""
        suffix = ".dll" if self.plat_name.startswith("win") else ".so"
        return str(Path(*fullname.split(".")).with_suffix(suffix))


class AnyPython(bdist_wheel):
    """A wheel for a platform and every Python 3: the library is not one of Python's extension modules."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":  # tests read the flags
    setup(
        ext_modules=[
            Extension(
                "nlrn.ops.libnlrn_cpu",
                sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
                depends=[*(str(path) for path in sorted(SOURCES.glob("*.h"))), "setup.py"],
                optional=os.environ.get("NLRN_BUILD_KERNEL") != "required",
            )
        ],
        cmdclass={"build_ext": BuildKernel, "bdist_wheel": AnyPython},
    )
