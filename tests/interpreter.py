"""Triton's interpreter, fit to be tested with: kernels then run on CPU tensors. Import before anything of Triton.

Three faults of Triton 3.6's interpreter, none of the compiler, are put right: numpy 2.4 refuses its conversion of
a loop's bounds (triton-lang/triton issue 9171); it multiplies the bit patterns of bfloat16 (issue 11584); and it
cuts float32 off to bfloat16 instead of rounding. Its checks for overflow, whose result it drops, are left out.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where Triton's own library is defined, so before it is


def _to_float32(handle: Any) -> np.ndarray:
    """bfloat16 is kept as uint16, the upper half of a float32."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.array(values, np.float32)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


def repair() -> None:
    """Once a process; without an effect on a GPU."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if DEVICE == "cuda" or hasattr(builder, "repaired"):
        return
    if not isinstance(tl.cdiv, interpreter.InterpretedFunction):
        raise RuntimeError("Triton was imported before TRITON_INTERPRET was set; set it to 1 in the environment")
    builder.repaired = True
    at_work = interpreter.interpreter_builder
    at_work.options = dataclasses.replace(at_work.options, sanitize_overflow=False)
    cast, dot, patch = builder.cast_impl, builder.create_dot, interpreter._patch_lang_tensor

    def cast_rounding(self: Any, source: Any, kind: Any) -> Any:
        pair = (source.dtype.scalar, kind.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_to_bfloat16(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_to_float32(source), tl.float32)
        return cast(self, source, kind)

    def dot_of_values(self: Any, a: Any, b: Any, *more: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_to_float32(x), tl.float32) for x in (a, b))
        return dot(self, a, b, *more)

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    builder.cast_impl, builder.create_dot = cast_rounding, dot_of_values
    interpreter._patch_lang_tensor = patch_with_index
