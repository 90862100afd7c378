"""The fused kernel of csrc/ on CPU tensors: what a call looks like from Python.

The library is built with the package where there is a C++ compiler, and loaded after torch, so that both share one
OpenMP (on Windows MSVC's own, vcomp140.dll of the redistributable that torch needs too). It holds one kernel for every
instruction set and runs the best that this processor has, or the one that NLRN_INSTRUCTION_SET names.

The correlation is one flat tensor, float32 or float16, as csrc/layout.h lays it out: [B][y][block of x][dy][dx]
[lane], and some spare numbers at both ends. Every entry is defined, 0 outside the image.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrn.errors import BackendError
from nlrn.ops.interface import MASKED, Block, Queries
from nlrn.ops.reference import offsets_inside

WHOLE = 64  # the side up to which an image is its own window; beyond, its correlation lies too wide apart
LIBRARY = Path(__file__).with_name("libnlrn_cpu.dll" if sys.platform == "win32" else "libnlrn_cpu.so")
VARIABLE = "NLRN_INSTRUCTION_SET"
_ELEMENTS = {None: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class _Problem(ctypes.Structure):
    """struct Problem of csrc/problem.h."""

    workspace = "nlrn_workspace_bytes"
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("batch", "height", "width", "embed", "channels", "radius", "threads")),
        *((name, ctypes.c_int32) for name in ("element", "state", "state_gradient")),
        *((name, ctypes.c_int64) for name in ("q_stride", "k_stride", "v_stride")),
    ]


class _WeightsProblem(ctypes.Structure):
    """struct WeightsProblem of csrc/problem.h."""

    workspace = "nlrn_weights_workspace_bytes"
    _fields_ = [(name, ctypes.c_int32) for name in ("batch", "height", "width", "inputs", "outputs", "threads")]


def _load_openmp() -> None:
    """macOS: load torch's libomp globally: the library links none, so that there are never two. Elsewhere nothing."""
    libomp = Path(torch.__file__).with_name("lib") / "libomp.dylib"
    if sys.platform == "darwin" and libomp.exists():
        ctypes.CDLL(str(libomp), ctypes.RTLD_GLOBAL)


def _load(path: Path) -> tuple[ctypes.CDLL | None, dict[str, tuple[int, int]], str]:
    """(library, instruction sets of this processor, the best first: number and lanes; or why there is none)."""
    if not path.exists():
        return None, {}, "the fused CPU kernel was not built: installing nlrn builds it where there is a C++ compiler"
    try:
        _load_openmp()
        library = ctypes.CDLL(str(path))
        library.nlrn_problem_bytes.restype = ctypes.c_int64
        if library.nlrn_problem_bytes() != ctypes.sizeof(_Problem):
            return None, {}, "the fused CPU kernel was built for another version of nlrn: install nlrn again"
        library.nlrn_set_name.restype = ctypes.c_char_p
        library.nlrn_workspace_bytes.restype = ctypes.c_int64
        library.nlrn_weights_workspace_bytes.restype = ctypes.c_int64
        library.nlrn_forward.restype = library.nlrn_backward.restype = library.nlrn_weights.restype = None
        sets, number = {}, 0
        while (name := library.nlrn_set_name(number)) is not None:
            if name:  # empty: not on this processor
                sets[name.decode()] = (number, library.nlrn_set_lanes(number))
            number += 1
    except (OSError, AttributeError) as error:
        return None, {}, f"the fused CPU kernel cannot be loaded: {error}"
    return library, sets, ""


def _misnamed(sets: dict[str, tuple[int, int]]) -> str:
    """What is wrong with the name in NLRN_INSTRUCTION_SET, or ""."""
    name = os.environ.get(VARIABLE, "")
    known = ", ".join(sets)
    return (
        f"{VARIABLE} is {name!r}; this processor has {known}: set one of them, or none"
        if known and name and name not in sets
        else ""
    )


_library, INSTRUCTION_SETS, _problem_found = _load(LIBRARY)
MISNAMED = _misnamed(INSTRUCTION_SETS)
_said = False
_number, _lanes = INSTRUCTION_SETS.get(os.environ.get(VARIABLE, ""), next(iter(INSTRUCTION_SETS.values()), (0, 1)))


def instruction_set() -> str:
    """The set of INSTRUCTION_SETS whose kernel runs, or "none" without a kernel."""
    return next((name for name, (number, _) in INSTRUCTION_SETS.items() if number == _number), "none")


def lanes() -> int:
    """Numbers in a vector of that set."""
    return _lanes


def use_instruction_set(name: str) -> None:
    """Run the kernel of another set of INSTRUCTION_SETS; for tests and measurements. Raises BackendError."""
    global _number, _lanes
    if name not in INSTRUCTION_SETS:
        raise BackendError(f"no instruction set is called {name!r} here; there are {', '.join(INSTRUCTION_SETS)}")
    _number, _lanes = INSTRUCTION_SETS[name]


def say_if_missing() -> None:
    """Warn once in a process, by the logger "nlrn", that the kernel is missing, and why."""
    global _said
    if _problem_found and not _said:
        logging.getLogger("nlrn").warning("%s. The torch operator runs, which is slower", _problem_found)
    _said = True


def leave_warning_to_parent() -> None:
    """For a worker process: `say_if_missing` warns no more, since the process that started this one does."""
    global _said
    _said = True


def warn_for_workers() -> Callable[[], None]:
    """Warn here, unless a GPU does the work. Every worker calls what is returned first, so that none repeats it."""
    if not torch.cuda.is_available():
        say_if_missing()
    return leave_warning_to_parent


def unsupported(q: Tensor, window: int | None) -> str | None:
    """Why queries like q [B, H, W, Cm] cannot be handled here, or None."""
    if q.device.type != "cpu":
        return f"these tensors are on {q.device}, not on the CPU"
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    if window is None and max(q.shape[1:3]) > WHOLE:
        return f"it needs a window for images of more than {WHOLE} x {WHOLE} pixels"
    return _problem_found or None


def _effective(at: Queries) -> int:
    """The window, but no wider than any pixel can see."""
    whole = 2 * max(at.height, at.width) - 1
    return whole if at.window is None else min(at.window, whole)


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    state: torch.dtype | None,
    state_gradient: torch.dtype = torch.float32,
) -> tuple[_Problem, list[Tensor]]:
    """The problem, and q, k and v as the kernel takes them."""
    batch, height, width, embed = q.shape
    (q, q_stride), (k, k_stride), (v, v_stride) = (_pixels(x) for x in (q, k, v))
    radius, threads = _effective(Queries.of(q, window)) // 2, torch.get_num_threads()
    elements = (_ELEMENTS[q.dtype], _ELEMENTS[state], _ELEMENTS[state_gradient])
    strides = (q_stride, k_stride, v_stride)
    return _Problem(batch, height, width, embed, v.shape[-1], radius, threads, *elements, *strides), [q, k, v]


def _pixels(x: Tensor) -> tuple[Tensor, int]:
    """x [B, H, W, C] and the numbers from one pixel to the next: a slice of channels is used without a copy."""
    _, height, width, channels = x.shape
    if not x.is_contiguous():
        apart = x.stride(2)
        fits = x.stride(3) == 1 and x.stride(1) == width * apart and x.stride(0) == height * width * apart
        if fits and apart >= channels:
            return x, apart
        x = x.contiguous()
    return x, channels  # strides of sides of length 1 have no meaning


def _run(name: str, problem: _Problem | _WeightsProblem, tensors: Sequence[Tensor | None], *kind: int) -> None:
    """Call a function of the library. kind: what else the size of its workspace depends on."""
    if _library is None:
        raise BackendError(_problem_found)
    size = getattr(_library, problem.workspace)(_number, ctypes.byref(problem), *kind)
    memory = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
    start = ctypes.c_void_p((memory.data_ptr() + 63) // 64 * 64)
    assert all(x is None or x.is_contiguous() for x in tensors[3:])  # the kernel receives no strides of these
    arrays = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
    getattr(_library, name)(_number, ctypes.byref(problem), ctypes.byref(arrays), start)
    del memory


def weight_gradient(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a 3 x 3 convolution's kernel [out, in, 3, 3], in channels_last, and of its bias [out].

    x [B, in, H, W], float32: the input, padded by 1. gradient [B, out, H, W]: that of the output.
    """
    x, gradient = (t.permute(0, 2, 3, 1).contiguous() for t in (x, gradient))
    batch, height, width, inputs = x.shape
    outputs = gradient.shape[-1]
    problem = _WeightsProblem(batch, height, width, inputs, outputs, torch.get_num_threads())
    weight, bias = x.new_empty(outputs, 3, 3, inputs), x.new_empty(outputs)
    _run("nlrn_weights", problem, (x, gradient, weight, bias))
    return weight.permute(0, 3, 1, 2), bias


def state_elements(at: Queries) -> int:
    """Numbers of a correlation (Plan::logits of csrc/layout.h, and spare ones)."""
    return at.batch * at.height * -(-at.width // _lanes) * _effective(at) ** 2 * _lanes + 2 * _lanes


def _check_states(at: Queries, *states: Tensor | None) -> None:
    """Raises BackendError for one of another size, as an exported program has it on a processor of other vectors."""
    for state in states:
        if state is not None and state.numel() != (expected := state_elements(at)):
            raise BackendError(
                f"the carried correlation has {state.numel()} entries, and this processor's kernel {expected}: export"
                " the program on a processor of the same instruction set, or with another backend"
            )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    before: Tensor | None,
    after: Tensor | None,
    norms: Tensor | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """One pass of attention: out [B, H, W, C] of v's dtype, softmax_j(q_i.k_j + before) v_j over the window.

    before: the correlation carried so far, or None. after: where to put the new one, or None; may be `before`. For the
    backward pass, in float32: norms [2, B, H, W], where to put a maximum M of the logits and the sum of exp(logit - M),
    and exact [B, H, W, C], where to put out before it is rounded.
    """
    _check_states(Queries.of(q, window), before, after)
    if before is not None and after is not None and before.dtype != after.dtype:
        raise BackendError(f"a correlation of {before.dtype} cannot be carried on as {after.dtype}")
    state = before if before is not None else after
    problem, qkv = _problem(q, k, v, window, None if state is None else state.dtype)
    out = v.new_empty(v.shape)
    _run("nlrn_forward", problem, [*qkv, before, after, norms, out, exact], 0)
    return out


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    exact: Tensor,
    out_gradient: Tensor,
    norms: Tensor,
    window: int | None,
    after: Tensor | None,
    after_gradient: Tensor | None,
    grad_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v in their dtype, and of `before`, when a correlation `after` was kept.

    grad_dtype: of the correlation's gradient, float32 or bfloat16; after_gradient comes in it. Never float16: with
    a mean loss nearly all of its entries would be rounded to 0.
    """
    if grad_dtype not in (torch.float32, torch.bfloat16):
        raise BackendError(f"the gradient of a correlation is kept in float32 or bfloat16, not in {grad_dtype}")
    _check_states(Queries.of(q, window), after, None if after is None else after_gradient)
    problem, qkv = _problem(q, k, v, window, None if after is None else after.dtype, grad_dtype)
    out_gradient = out_gradient.contiguous()
    before_gradient = None if after is None else torch.empty(after.shape, dtype=grad_dtype, device=after.device)
    if after_gradient is not None:
        after_gradient = after_gradient.to(grad_dtype).contiguous()
    gradients = [x.new_empty(x.shape) for x in (q, k, v)]
    tensors = [*qkv, exact, out_gradient, norms, after, after_gradient, before_gradient, *gradients]
    _run("nlrn_backward", problem, tensors, 1)
    return gradients[0], gradients[1], gradients[2], before_gradient


def _blocks(correlation: Tensor, at: Queries) -> Tensor:
    """A view [B, H, blocks, q, q, lanes] of the effective window."""
    effective = _effective(at)
    return correlation[_lanes:-_lanes].view(at.batch, at.height, -1, effective, effective, _lanes)


def to_dense(correlation: Tensor, at: Queries) -> Tensor:
    """[B, H, W, q, q], 0 outside the image; for window=None [B, H, W, H, W]."""
    batch, height, width, window = at
    state = _blocks(correlation, at).permute(0, 1, 2, 5, 3, 4)
    effective = state.shape[-1]
    inner = state.reshape(batch, height, -1, effective, effective)[:, :, :width]
    if window is None:  # the pixel (y', x') lies at the offset (y' - y, x' - x)
        y, x = (torch.arange(n, device=correlation.device) for n in (height, width))
        dy, dx = (place - place[:, None] + effective // 2 for place in (y, x))
        return inner[:, y[:, None, None, None], x[:, None, None], dy[:, None, :, None], dx[:, None, :]]
    return F.pad(inner, [(window - effective) // 2] * 4)


def of_pixel(correlation: Tensor, at: Queries, pixel: tuple[int, int, int]) -> Tensor:
    """The correlations of one query (b, y, x): [q, q], or [H, W] for window=None."""
    b, y, x = pixel
    inner = _blocks(correlation, at)[b, y, x // _lanes, :, :, x % _lanes]
    r = inner.shape[0] // 2
    if at.window is None:
        return inner[r - y : r - y + at.height, r - x : r - x + at.width]
    return F.pad(inner, [(at.window - inner.shape[0]) // 2] * 4)


def rows(correlation: Tensor, at: Queries) -> Iterator[tuple[Block, Tensor]]:
    """Row by row of the images: ((batch, rows, columns), logits [1, W, keys], MASKED outside the image)."""
    batch, height, width, _ = at
    state = _blocks(correlation, at)
    effective = state.shape[-2]
    row_inside, column_inside = (offsets_inside(n, effective, correlation.device) for n in (height, width))
    for b in range(batch):
        for y in range(height):
            row = state[b, y].permute(0, 3, 1, 2).reshape(-1, effective, effective)[:width]
            inside = row_inside[y, :, None] & column_inside[:, None, :]
            logits = row.float().masked_fill(~inside, MASKED).reshape(1, width, -1)
            yield (slice(b, b + 1), slice(y, y + 1), slice(0, width)), logits
