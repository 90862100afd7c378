"""The machine: devices, and the number formats they multiply."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from nlrn.errors import BackendError


def memory() -> dict[str, int] | None:
    """MiB "total" and "available" to this process, by Linux's /proc and its control group; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) >> 10 for line in lines}
    found = {"total": sizes["MemTotal"], "available": sizes["MemAvailable"]}
    group = _group_memory()
    return {name: min(size, group[name]) for name, size in found.items()} if group else found


_GROUP_FILES = {  # version: limit, used, and what the pages of files begin with in memory.stat
    2: ("memory.max", "memory.current", ""),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def _group_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> dict[str, int]:
    """The same by the limits of this process's control group and those above it, a container's for example; {} without.

    Pages of files count as available, as in MemAvailable.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return {}
    found: list[dict[str, int]] = []
    for _, controllers, place in lines:
        if controllers in ("", "memory"):
            root = groups / controllers
            leaf = root / place.lstrip("/")
            folders = [leaf, *(above for above in leaf.parents if above == root or root in above.parents)]
            found += [sizes for folder in folders if (sizes := _limits_of(folder, 1 if controllers else 2))]
    return {name: min(sizes[name] for sizes in found) for name in ("total", "available")} if found else {}


def _limits_of(folder: Path, version: int) -> dict[str, int]:
    limit, used, prefix = _GROUP_FILES[version]
    try:
        total, taken = int((folder / limit).read_text()), int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # ValueError: "max", no limit
        return {}
    cached = sum(int(stat.get(f"{prefix}{pages}_file", 0)) for pages in ("inactive", "active"))
    return {"total": total >> 20, "available": min(total, max(0, total - taken + cached)) >> 20}


def hardware_bf16(device: torch.device) -> bool:
    """Does this device multiply bf16 itself (a CPU with AVX512-BF16 or AMX, a GPU from Ampere on)?

    A CPU held to less by NLRN_INSTRUCTION_SET or ATEN_CPU_CAPABILITY does not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if os.environ.get("NLRN_INSTRUCTION_SET", "") not in ("", "avx512bf16"):
            return False
        if "AVX512" not in torch.backends.cpu.get_cpu_capability():
            return False
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def usable_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU. Raises BackendError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: the module of another vendor
        reason = str(error).splitlines()[0]
        raise BackendError(f"the device {name!r} cannot be used here: {reason}") from error
    return device
