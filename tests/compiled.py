"""Compiles the passes of the GPU kernel for real GPUs, which needs none; prints a line for each. See test_gpu.py."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrn.ops import triton as launcher
from nlrn.ops import triton_kernels

POINTERS = {"bf16": "*bf16", "fp32": "*fp32"}
STATES = {"before", "after", "grad_after", "grad_before"}


def compiled(kind: str, dtype: str, channels: tuple[int, int], carry: bool, capability: int) -> Any:
    """A pass for queries and values of so many channels, with or without float32 correlations,
    in the blocks of ops/triton.py."""
    program = getattr(triton_kernels, f"{kind}_pass")
    blocks = launcher._blocks(kind, *channels, 2 if dtype == "bf16" else 4)
    fixed = {"embedded": channels[0], "channels": channels[1], "narrow": True, "clear": False}
    fixed |= {f"{name}_padded": launcher._padded(fixed[name]) for name in ("embedded", "channels")}
    fixed["precision"] = "tf32" if dtype == "bf16" else "ieee"
    fixed |= {"tall": blocks.tall, "wide": blocks.wide, "streamed": blocks.streamed}
    signature: dict[str, Any] = {}
    for parameter in program.params:
        name = parameter.name
        if name in fixed or (name in STATES and not carry):
            signature[name] = "constexpr"
        elif name.endswith("strides"):
            signature[name] = ("i32", "i32", "i32")
        elif name in ("height", "width", "window"):
            signature[name] = "i32"
        elif name in STATES | {"most", "whole", "exact", "delta"} or (name, kind) == ("out", "query"):
            signature[name] = "*fp32"
        else:
            signature[name] = POINTERS[dtype]
    constants = {(i,): fixed.get(name) for i, name in enumerate(signature) if signature[name] == "constexpr"}
    source = ASTSource(fn=program, signature=signature, constexprs=constants)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


if __name__ == "__main__":
    for kind in ("forward", "query", "key"):
        for carry in (True, False):
            for dtype, capability in (("bf16", 90), ("fp32", 80)):
                made = compiled(kind, dtype, (64, 128), carry, capability)
                print(kind, dtype, carry, capability, made.metadata.shared, "cubin" in made.asm)
