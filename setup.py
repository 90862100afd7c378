"""Builds the fused CPU kernel, where there is a C++ compiler with OpenMP; everything else is in pyproject.toml.

The result is a plain shared library that nlrn.ops.cpu loads, one kernel for each instruction set. Where it cannot be
built, nlrn is installed without it and runs on the blocked torch operator, several times slower.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, LinkError, PlatformError

SOURCES = Path("src/nlrn/ops/csrc")
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-g0",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
SETS = {"portable": []}  # source file: flags
if platform.machine().lower() in ("x86_64", "amd64"):
    SETS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}


class BuildKernel(build_ext):
    """One object a set, each with its own flags, linked into libnlrn_cpu.so beside nlrn/ops/cpu.py."""

    def build_extension(self, ext: Extension) -> None:
        try:
            objects = []
            for name, flags in {**SETS, "dispatch": []}.items():
                source = str(SOURCES / f"{name}.cpp")
                objects += self.compiler.compile(
                    [source], output_dir=self.build_temp, extra_postargs=[*FLAGS, *flags], depends=ext.depends
                )
            target = self.get_ext_fullpath(ext.name)
            self.compiler.link_shared_object(objects, target, extra_postargs=["-fopenmp"], target_lang="c++")
        except (CCompilerError, CompileError, LinkError, PlatformError, OSError) as error:
            print(
                f"nlrn: the fused CPU kernel is not built ({error}); the slower torch operator will run",
                file=sys.stderr,
            )

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


setup(
    ext_modules=[
        Extension(
            "nlrn.ops.libnlrn_cpu",
            sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel},
)
