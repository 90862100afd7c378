"""Where else an NLRN fits in: the model hub, ONNX, deepinv, spandrel. Each module is imported by its name alone.

Each stands on a library of its own, an optional extra of this package; without it the module's calls raise
BackendError with the name of the extra.
"""

from __future__ import annotations

import importlib.util

from nlrn.errors import BackendError


def require(extra: str, *libraries: str) -> None:
    """Raises BackendError, naming the extra to install, unless all the libraries (names of modules) are there."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f'this needs {" and ".join(missing)}: pip install "nlrn[{extra}]"')
