"""Inference needs neither torch's compiler nor a temporary folder; a training keeps the compiler's files to itself."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from networks import random_model
from PIL import Image
from webserver import service

from nlrn.models.checkpoint import save_model
from nlrn.ops import neighborhood_attention

# A Python that has no temporary folder, as where none of them can be written, and refuses torch's compiler.
_WITHOUT = """
import sys, tempfile
def none():
    raise FileNotFoundError(2, "No usable temporary directory found")
tempfile._get_default_tempdir = none
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch._dynamo", "torch._inductor"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
_CALLS = {
    "denoise a grey array": "nlrn.denoise(grey, 25)",
    "denoise colour with an estimated level": "nlrn.denoise(np.stack([grey] * 3, -1) * [1, 0.8, 0.5], 'auto')",
    "denoise by the authors' patches": "nlrn.denoise(grey, 25, mode='patch')",
    "upscale": "nlrn.upscale(grey, 2)",
    "a map of correlations": "correlation_maps(nlrn.load('denoise-gray-small'), grey.astype(np.float32), (3, 4), 25.0)",
    "gradients": "NLRNDenoiser()(torch.rand(1, 1, 12, 12, requires_grad=True), 0.1).sum().backward()",
    "bf16": "nlrn.load('denoise-gray-small', precision='bf16').denoise(grey, 25)",
}


def test_inference_uses_neither_the_compiler_nor_a_temporary_folder() -> None:
    """All calls in one process; the last is named when one fails."""
    calls = "".join(f"print({name!r}, flush=True)\n{call}\n" for name, call in _CALLS.items())
    code = (
        _WITHOUT
        + "import numpy as np, torch, nlrn\nfrom nlrn.evaluation.explain import correlation_maps\n"
        + "from nlrn.integrations.deepinv import NLRNDenoiser\n"
        + "grey = np.random.default_rng(0).normal(0.5, 0.1, (24, 24))\n"
        + calls
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == list(_CALLS)


def _taken(folder: Path, how: str) -> dict[str, str]:
    """An environment whose temporary folder another user has prepared."""
    name = folder / f"torchinductor_{getpass.getuser()}"
    if how == "file":
        name.touch()
    elif how == "dangling link":
        name.symlink_to(folder / "nowhere" / "at all")
    else:
        (folder / "theirs").mkdir(mode=0o500)
        name.symlink_to(folder / "theirs")
    return {**os.environ, "TMPDIR": str(folder)}


@pytest.mark.parametrize(
    "how", ["link to a folder", *(pytest.param(how, marks=pytest.mark.slow) for how in ("file", "dangling link"))]
)
def test_who_takes_the_compilers_folder_stops_nobody(tmp_path: Path, how: str) -> None:
    """The commands that restore, and a training, whose optimiser imports the compiler."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "data" / "a").mkdir(parents=True)
    environment = _taken(tmp_path / "tmp", how) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    Image.effect_noise((32, 32), 60).save(tmp_path / "data" / "a" / "p.png")
    (tmp_path / "r.toml").write_text(
        "[model]\nchannels=8\nembed_channels=4\nstates=1\nwindow=3\n[noise]\nlow=25.0\nhigh=25.0\n[data]\nfolders=['a']\n"
        "validation='a'\nvalidation_size=8\nvalidation_images=1\n[schedule]\nsteps=2\nwarmup=1\n"
        "[[stages]]\nstart=0\npatch=8\nbatch=2\n"
    )
    image = str(tmp_path / "data" / "a" / "p.png")
    for words in (
        ["upscale", image, "-o", "r.png", "-q"],
        ["train", "r.toml", "--data", "data", "-o", "run", "-q"],
    ):
        command = [sys.executable, "-m", "nlrn", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "cache" / "nlrn" / "torchinductor").stat().st_mode & 0o777 == 0o700


def test_the_service_answers_without_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_WITHOUT)
    save_model(tmp_path / "toy.safetensors", random_model(), {"steps": "0"})
    Image.effect_noise((32, 32), 60).save(tmp_path / "p.png")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{before}")
    with service(tmp_path) as running, running.client() as client:
        for kind, fields in (("denoise", {"sigma": "25"}), ("upscale", {"scale": "2"}), ("preview", {})):
            files = {"image": (tmp_path / "p.png").read_bytes()}
            answer: httpx.Response = client.post(f"/v1/{kind}", files=files, data=fields)
            assert answer.status_code == 200, answer.text


def test_overwriting_a_correlation_that_a_gradient_needs_is_refused() -> None:
    """The operator that works in place counts as a change of its tensor."""
    torch.manual_seed(0)
    q, k, v = (torch.rand(1, 9, 9, 4, requires_grad=True) for _ in range(3))
    found = neighborhood_attention(q, k, v, window=5, return_correlation=True, backend="cpu")
    assert isinstance(found, tuple)
    out, correlation = found
    before = correlation.detach().clone()
    for given in (correlation, correlation.detach()):  # one that needs a gradient is never overwritten
        assert torch.equal(correlation, before)
        with torch.no_grad():
            neighborhood_attention(
                q, k, v, window=5, correlation=given, return_correlation=True, overwrite=True, backend="cpu"
            )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.sum() + correlation.sum()).backward()


def test_the_imitated_lack_of_a_folder_is_one() -> None:
    """The check of the checks: what is refused above is refused."""
    for code, error in (
        ("import tempfile; tempfile.gettempdir()", "No usable temporary directory found"),
        ("import torch._dynamo", "ImportError: torch._dynamo"),
    ):
        done = subprocess.run([sys.executable, "-c", _WITHOUT + code], capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        assert error in done.stderr
