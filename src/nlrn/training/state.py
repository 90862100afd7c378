"""The state of a training run on disk: safetensors that carry their own digest, newest verified one first.

A run folder holds ``state-<step>.safetensors`` (the last few), ``before-decay.safetensors`` (what a later
slice resumes from) and ``log.jsonl``. No pickle; a file whose digest is wrong is skipped, with a warning, for
the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nlrn.errors import CheckpointError, ConfigError, ModelError
from nlrn.models.checkpoint import model_metadata, read_tensors
from nlrn.system.atomic import locked, publish
from nlrn.training.config import ScheduleConfig, TrainConfig
from nlrn.training.optim import Muon

BEFORE_DECAY = "before-decay.safetensors"
LATEST = "latest.txt"  # the name of the newest rolling state, so that its loss is noticed
KEPT = 2
_PARTS = ("model", "ema", "optim")
_NUMBERS = (int, float)
_META: dict[str, tuple[type, ...]] = {
    "step": (int,), "decay_start": (int,), "decay_steps": (int,), "end": (int,), "world": (int,), "recipe": (str,),
    "first": (int,), "steps": (int,), "decay": _NUMBERS, "seconds": _NUMBERS,
}  # fmt: skip
_YOUNGER = ("first", "steps", "decay", "seconds")  # than some released states


@dataclass(frozen=True)
class FoundState:
    """A training state that was read and verified.

    path: its file. tensors: parameters, averages and moments by name, as `pack` made them. meta: where the run was:
    "step", "decay_start", "decay_steps", "end" and "world" (int), "recipe" (its digest), and in all but the oldest
    files "first", "steps" (int), "decay" and "seconds".
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps made."""
        return int(self.meta["step"])

    @property
    def ended(self) -> bool:
        """Whether the run was at its planned end."""
        return self.step >= int(self.meta["end"])


@contextmanager
def prepared(folder: Path, *, create: bool) -> Iterator[None]:
    """Around a run in this folder, which is made. Raises ConfigError where files cannot be written, or another run is.

    Of two runs in one folder, each would remove the other's newest states.
    """
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"cannot write a run into {folder}: {error.strerror or error}") from error
    with ExitStack() as kept:
        with suppress(OSError):  # a missing folder, from which nothing resumes; Windows, where none can be opened
            handle = os.open(folder, os.O_RDONLY)
            kept.callback(os.close, handle)
            if not locked(handle, otherwise=True):
                raise ConfigError(
                    f"another training is running in {folder}: wait until it ends, or give another folder"
                )
        yield


def pack(model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a step depends on, by name: parameters and statistics, their average, the moments."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            tensors[f"optim.{name}.{key}"] = torch.as_tensor(value)
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def unpack(
    tensors: dict[str, Tensor], model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Restore what ``pack`` returned, bit for bit. Raises CheckpointError if it does not fit."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _PARTS}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in parts:
            raise CheckpointError(f"this training state holds {key!r}, which is no part of one")
        parts[kind][name] = value
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in parts["optim"].items():
        name, _, moment = key.rpartition(".")
        moments.setdefault(name, {})[moment] = value
    _check_fit(parts["ema"], moments, model, optimizer)
    try:
        model.load_state_dict(parts["model"])
        for name, p in model.named_parameters():
            with torch.no_grad():
                ema[name].copy_(parts["ema"][name])
            found = moments.get(name, {})
            optimizer.state[p] = {
                k: v.clone() if k == "step" else torch.empty_like(p).copy_(v) for k, v in found.items()
            }
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"this training state does not fit the recipe's model: {error}") from error


def _check_fit(
    ema: dict[str, Tensor], moments: dict[str, dict[str, Tensor]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raises CheckpointError for an average or moments of other parameters or shapes, or of another optimiser."""
    parameters = dict(model.named_parameters())
    orthogonal = {id(p) for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]}
    muon = isinstance(optimizer, Muon)
    problem = None
    if ema.keys() != parameters.keys() or not (moments.keys() <= parameters.keys()):
        odd = sorted((ema.keys() ^ parameters.keys()) | (moments.keys() - parameters.keys()))
        problem = f"{len(odd)} names differ, such as {odd[0]!r}"
    for name, p in parameters.items() if problem is None else ():
        wanted = {"momentum"} if muon and id(p) in orthogonal else {"step", "exp_avg", "exp_avg_sq"}
        found = moments.get(name, {})
        shapes = {v.shape for k, v in found.items() if k != "step"} | {ema[name].shape}
        if (found and found.keys() != wanted) or shapes != {p.shape} or found.get("step", torch.ones(())).numel() != 1:
            problem = f"what it holds of {name!r} is not what this optimiser keeps"
    if problem is not None:
        raise CheckpointError(f"this training state does not fit the recipe's model: {problem}")


def provenance(config: TrainConfig, step: int, seconds: float, device: torch.device, world: int) -> dict[str, str]:
    """The metadata of a weights file about its origin."""
    return {
        "name": config.name,
        "steps": str(step),
        "training_pixels": str(config.pixels(0, step)),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "hardware_seconds": f"{seconds:.0f}",
        "processes": str(world),
        "recipe": config.header(),
        "torch": torch.__version__,
    }


def _digest(tensors: dict[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for key in sorted(tensors):
        digest.update(f"{key}{tensors[key].dtype}{tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Publish a state atomically, its digest in the header."""
    text = json.dumps(meta, sort_keys=True)
    publish(path, save(tensors, {"meta": text, "digest": _digest(tensors, text)}), overwrite=True)


def write_compact(source: Path, path: Path) -> int:
    """A copy of a state whose momenta are rounded to bfloat16, to be kept in a repository; returns its step.

    A run that resumes from it does not give the same bits; no result depends on that. Raises CheckpointError.
    """
    found = read_state(source)
    moments = {k for k, v in found.tensors.items() if k.startswith("optim.") and v.is_floating_point() and v.dim() > 0}
    rounded = {k: v.bfloat16() if k in moments else v for k, v in found.tensors.items()}
    write_state(path, rounded, found.meta)
    return found.step


def undecayed(folder: Path) -> Path | None:
    """The newest verified state of a run folder that no decay has touched; None where there is none."""
    for path in rolling(folder):
        try:
            found = read_state(path)
        except CheckpointError as error:
            _warn(str(error))
            continue
        if found.step <= found.meta["decay_start"]:
            return path
    path = folder / BEFORE_DECAY
    return path if os.path.lexists(path) else None


def read_state(path: Path) -> FoundState:
    """The state in a file. Raises CheckpointError when the file is damaged in any bit."""
    header, tensors = read_tensors(path)  # finds a damaged header; the digest finds the rest
    if "meta" not in header or header.get("digest") != _digest(tensors, header["meta"]):
        raise CheckpointError(f"{path.name} is damaged: its contents do not match its digest")
    try:
        meta = json.loads(header["meta"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no training state: {error}") from error
    _check_meta(path, meta)
    return FoundState(path, tensors, meta)


def _check_meta(path: Path, meta: Any) -> None:
    """Raises CheckpointError for a state whose header lacks a valid number of where its run was."""
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path.name} is no training state: its header holds no table")
    for name, kinds in _META.items():
        if name not in meta and name in _YOUNGER:
            continue
        value: Any = meta.get(name)
        if type(value) not in kinds or (type(value) is not str and not 0 <= value < 2**63):
            raise CheckpointError(f"{path.name} is no training state: its {name!r} is {str(value)[:80]}")


def rolling(folder: Path) -> list[Path]:
    """The rolling states of a run folder, newest first."""
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def save_rolling(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write state-<step> and drop all but the last few."""
    path = folder / f"state-{meta['step']:09d}.safetensors"
    write_state(path, tensors, meta)
    publish(folder / LATEST, path.name.encode(), overwrite=True)
    # the states of a decay lie above a later slice, which resumes from before it: they are left behind
    kept = [file for file in rolling(folder) if file.name <= path.name][:KEPT]
    for other in set(rolling(folder)) - set(kept):
        other.unlink(missing_ok=True)


def holds_a_run(folder: Path) -> bool:
    """Whether states were ever written here."""
    return bool(rolling(folder)) or any(os.path.lexists(folder / name) for name in (LATEST, BEFORE_DECAY))


def newest_verified(folder: Path) -> FoundState | None:
    """The newest rolling state that verifies, else the one before the decay; None when there are no files.

    A damaged or missing one is warned about. Raises CheckpointError when there are files and none verifies: a
    run never starts again from scratch unless requested.
    """
    files = rolling(folder)
    latest = folder / LATEST
    if os.path.lexists(latest):
        try:
            name = latest.read_text(errors="replace") if latest.is_file() else ""
        except OSError:
            name = ""
        if not name:
            _warn(f"{LATEST}, which names the newest state of this run, cannot be read")
        elif name not in {file.name for file in files}:
            _warn(f"the newest state of this run, {name[:80]!r}, is missing")
    return first_verified([*files, folder / BEFORE_DECAY])


def to_resume(folder: Path, weights: Path, schedule: ScheduleConfig) -> tuple[FoundState, bool]:
    """The state that a run resumes from, and whether as the beginning of another slice.

    weights: the file that the run writes at its end. Raises CheckpointError where there is no state, or none verifies.
    """
    found = newest_verified(folder)
    if found is None:
        raise CheckpointError(f"there is nothing to resume in {folder}")
    if not rolling(folder):  # only the state before some decay: released to resume from
        return found, True
    more = found.ended and found.meta["end"] < schedule.steps
    if not more or (found.step >= schedule.warmup and not _written_at(weights, found.step)):
        return found, False
    return first_verified([folder / BEFORE_DECAY, *rolling(folder)]) or found, True


def how_ended(end: int, steps: int) -> str:
    """The line about a run that is at its end where `steps` are asked for: more where its weights are missing."""
    how = "its weights are written again; the same command once more resumes" if steps > end else "more steps resume"
    return f"this run ended at step {end}: {how} from before its decay"


def _written_at(weights: Path, step: int) -> bool:
    """Whether these are the weights of a run that ended at `step`."""
    try:
        return model_metadata(weights).get("steps") == str(step)
    except ModelError:
        return False


def first_verified(candidates: Iterable[Path]) -> FoundState | None:
    """The first of these files that verifies, warning about each that does not; None when there are none."""
    files, problems = [path for path in candidates if os.path.lexists(path)], []  # a dangling link is a damaged one
    for path in files:
        try:
            return read_state(path)
        except CheckpointError as error:
            problems.append(str(error))
            _warn(str(error))
    if problems:
        raise CheckpointError(f"no state of this run can be used: {'; '.join(problems)}")
    return None


def warn_of_rounding(path: Path, before: int, now: int) -> None:
    """Another number of processes resumes: batches are defined by their places, so that the order of sums differs."""
    numbers = f"was written by a run of {before} process(es), which {now} resume"
    warnings.warn(f"{path} {numbers}: equal to rounding, not to the byte", RuntimeWarning, stacklevel=3)


def _warn(problem: str) -> None:
    warnings.warn(f"{problem}; trying the one before it", RuntimeWarning, stacklevel=3)
