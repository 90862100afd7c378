"""Which number format a device multiplies quickly."""

from __future__ import annotations

import torch


def hardware_bf16(device: torch.device) -> bool:
    """Does this device multiply bf16 itself (a CPU with AVX512-BF16 or AMX, a GPU from Ampere on)?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
