"""The machine: devices, and the number formats they multiply."""

from __future__ import annotations

from pathlib import Path

import torch

from nlrn.errors import BackendError


def memory() -> dict[str, int] | None:
    """ "total" and "available" MiB of this machine, by Linux's /proc; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) >> 10 for line in lines}
    return {"total": sizes["MemTotal"], "available": sizes["MemAvailable"]}


def hardware_bf16(device: torch.device) -> bool:
    """Does this device multiply bf16 itself (a CPU with AVX512-BF16 or AMX, a GPU from Ampere on)?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def usable_device(name: str) -> torch.device:
    """The device of that name, "auto" being the best there is. Raises BackendError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: the module of another vendor
        reason = str(error).splitlines()[0]
        raise BackendError(f"the device {name!r} cannot be used here: {reason}") from error
    return device
