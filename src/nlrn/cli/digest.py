"""The digest of a command that restores images: what decides its results, by which a folder knows what is done."""

from __future__ import annotations

import argparse
import hashlib
import json

from nlrn import __version__
from nlrn.cli.shared import model_name

# Of restoring a folder: options, and what they are where they are not given
CLUSTER_OPTIONS = {"address": None, "worker_cpus": 1, "worker_gpus": 0.0}
FOLDER_OPTIONS = {
    "recursive": False, "suffix": "", "format": None, "skip_existing": False, "jobs": None, "json": False,
    "engine": "local", **CLUSTER_OPTIONS,
}  # fmt: skip
# What decides nothing about a result; the model receives by the digests of its weights.
_FREE = {
    *FOLDER_OPTIONS,
    "max_pixels",
    "max_planes",
    "max_bytes",
    "input",
    "output",
    "overwrite",
    "quiet",
    "run",
    "command",
    "model",
    "derived",
    "words",
}
# Options that came later, at what they did before: a folder that was done without them is done.
_YOUNGER = {
    "range": "auto", "axes": None, "gain_adu": None, "read_noise_adu": None, "black_level_adu": None,
    "quality": None, "compression": None, "neighbors": 0, "preview": None,
}  # fmt: skip


def digest(options: argparse.Namespace) -> str:
    """Of what decides the results: the options, the weights, the version."""
    from nlrn.models.checkpoint import released, resolve_model, sha256, ships_photo_model

    left_out = _FREE | {name for name, usual in _YOUNGER.items() if getattr(options, name, usual) == usual}
    chosen = {name: str(value) for name, value in vars(options).items() if name not in left_out}
    if (levels := getattr(options, "sigma_map", None)) is not None and levels.is_file():
        chosen["sigma_map"] = sha256(levels)  # what it holds, as of the weights
    kinds = [(1, False), (3, False)] + [(3, True)] * (ships_photo_model() and options.command == "denoise")
    models = {sha256(resolve_model(model_name(options, *kind))) for kind in kinds}
    if getattr(options, "denoise_first", False) is not False:  # of upscale, which removes noise by what is shipped
        models |= set(released().values())
    text = json.dumps([__version__, chosen, sorted(models)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
