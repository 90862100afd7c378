"""An NLRN in other programs: the model hub, ONNX, deepinv, spandrel. Import each module by its name.

Each requires another library, an optional extra of this package; without it the module's calls raise
BackendError with the name of the extra.
"""

from __future__ import annotations

import importlib.util

from nlrn.errors import BackendError


def require(extra: str, *libraries: str) -> None:
    """Raises BackendError, naming the extra to install, unless all the libraries (names of modules) are installed."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f'this needs {" and ".join(missing)}: pip install "nlrn[{extra}]"')
