"""Every error this package raises on purpose, as one tree.

NLRNError
├── ConfigError        (ValueError)    a setting, recipe key or argument that is invalid
├── InputError         (ValueError)    an image, array or file that is refused; the message gives what was expected
│   └── NotFiniteError                 a model's result for it is not finite: the model ran away
├── ModelError         (ValueError)
│   ├── ModelNotFoundError             no weights of that name; lists the names that exist
│   └── CheckpointError                a weights or training file that is damaged or does not fit
├── BackendError       (RuntimeError)  a compute backend asked for by name cannot run; the message gives the reason
│   └── StoreError                     an object store or a disk accepts no results
├── MemoryBudgetError  (MemoryError)   the work does not fit the memory it was given
└── TrainingError      (RuntimeError)  training cannot continue (a loss that is not finite)
    ├── UnfinishedError                it ended within its warm-up; its state is kept
    └── ElsewhereError                 another process of the training failed; its message names the error
"""

from __future__ import annotations

from numbers import Real
from typing import Any


class NLRNError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(NLRNError, ValueError):
    """A setting, recipe key or argument that is invalid."""


class InputError(NLRNError, ValueError):
    """An image, array or file that is refused.

    limit: "pixels", "frames" or "result" where it exceeds that limit, else None.
    """

    def __init__(self, message: object = "", *, limit: str | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class NotFiniteError(InputError):
    """The result of a model for an image is not finite."""


class ModelError(NLRNError, ValueError):
    """Weights that cannot be used."""


class ModelNotFoundError(ModelError):
    """No weights of the name asked for."""


class CheckpointError(ModelError):
    """A weights or training file that is damaged or does not fit."""


class BackendError(NLRNError, RuntimeError):
    """A compute backend was asked for by name and cannot run."""


class StoreError(BackendError):
    """An object store accepts no results any more, or the manifest cannot be written."""


class MemoryBudgetError(NLRNError, MemoryError):
    """The work does not fit the memory it was given."""


class TrainingError(NLRNError, RuntimeError):
    """Training cannot continue."""


class UnfinishedError(TrainingError):
    """Training ended within its warm-up; the state is kept, no weights are written."""


class ElsewhereError(TrainingError):
    """Another process of this training failed; the message of that process names the error."""


def number(value: object, what: str, error: type[NLRNError] = InputError) -> Any:
    """The value. Raises `error` where it is no real number, as "1", None and True are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise error(f"{what} must be a number, not {value!r}"[:200])
    return value
