"""An exported model, run by ONNX Runtime, is the network itself at every size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import random_model

import nlrn.integrations
from nlrn.cli import run
from nlrn.errors import BackendError, ConfigError, InputError
from nlrn.integrations.onnx import _EXAMPLE, export
from nlrn.integrations.onnx_attention import attention, pieces
from nlrn.models.checkpoint import WEIGHTS, load_model, save_model
from nlrn.models.nlrn import NLRN

TOLERANCE = 1e-4
SHAPES = [(1, 1), (7, 5), (37, 41), (16, 96)]  # below, at and beyond what was traced, and a whole number of blocks


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def held(exported: Any, model: NLRN, shapes: list[tuple[int, int]], batch: int = 1) -> None:
    """ONNX Runtime against torch's definition in float32: a level, where there is one, and a map of levels."""
    random = torch.Generator().manual_seed(0)
    reference = NLRN(model.config, backend="reference").eval()
    reference.load_state_dict(model.state_dict())
    for height, width in shapes:
        x = torch.rand(batch, model.config.in_channels, height, width, generator=random)
        ramp = torch.rand(batch, 1, height, width, generator=random) * 75 / 255
        for sigma in (torch.full_like(ramp, 25 / 255), ramp) if model.config.sigma_input else (None,):
            inputs = {"image": x.numpy()} | ({} if sigma is None else {"sigma": sigma.numpy()})
            with torch.no_grad():
                expected = reference(x, sigma).numpy()
            found = exported.run(None, inputs)[0]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= TOLERANCE


@pytest.fixture(scope="module", params=["two states", pytest.param("shipped", marks=pytest.mark.slow)])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command: the shipped denoiser, or one of its window with two states instead of six."""
    folder = tmp_path_factory.mktemp("onnx")
    if request.param == "two states":
        save_model(folder / "weights.safetensors", random_model(window=15), {"steps": "0"})
    else:
        shutil.copy(WEIGHTS / "denoise-gray-small.safetensors", folder / "weights.safetensors")
    assert run(["export", str(folder / "weights.safetensors"), "-o", str(folder / "small.onnx"), "-q"]) == 0
    return folder / "small.onnx"


def test_a_denoiser_is_itself_at_every_size(small: Path) -> None:
    model = load_model(small.with_name("weights.safetensors"))
    assert _EXAMPLE[1] < 37 < 96
    held(session(small), model, [(7, 5), (37, 41), (24, 96)])
    held(session(small), model, [(9, 33)], batch=3)


def test_the_file_says_what_it_is(small: Path) -> None:
    exported = session(small)
    inputs = {i.name: i.shape for i in exported.get_inputs()}
    assert inputs == {"image": ["batch", 1, "height", "width"], "sigma": ["batch", 1, "height", "width"]}
    assert [(o.name, o.shape[1]) for o in exported.get_outputs()] == [("restored", 1)]
    assert json.loads(exported.get_modelmeta().custom_metadata_map["nlrn"])["window"] == 15
    text = onnx.load(small).SerializeToString()
    assert str(Path(nlrn.__file__).parent).encode() not in text  # no path of the machine that it was made on
    assert small.stat().st_size < 3 << 20


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"window": 21, "states": 2}, marks=pytest.mark.slow),  # keys over three blocks
        pytest.param({"window": 1, "sigma_input": False, "in_channels": 3, "states": 1}, marks=pytest.mark.slow),
        pytest.param({"propagation": False, "task": "sr", "sigma_input": False}, marks=pytest.mark.slow),
    ],
)
def test_other_networks_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = random_model(**changes).eval()
    path = export(model, tmp_path / "a.onnx")
    held(session(path), model, SHAPES)
    assert [pieces(window) for window in (1, 15, 21, 45)] == [1, 2, 3, 4]


def test_logits_far_below_zero_leave_neighbours_their_weights(tmp_path: Path) -> None:
    """At the border, where keys outside the image would have a logit of 0: the maximum is not theirs."""
    model = random_model(states=1).eval()
    with torch.no_grad():
        model.block.non_local.theta.bias.fill_(6)
        model.block.non_local.phi.bias.fill_(-6)
    held(session(export(model, tmp_path / "a.onnx")), model, SHAPES)


def test_what_has_no_window_or_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes in ({"window": None}, {"distance": "gaussian", "propagation": False}):
        with pytest.raises(ConfigError, match="window"):
            export(random_model(**changes).eval(), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="eval mode"):
        export(random_model().train(), tmp_path / "a.onnx")
    there, weights = tmp_path / "there.onnx", tmp_path / "w.safetensors"
    there.write_text("mine")
    save_model(weights, random_model())
    with pytest.raises(InputError, match="exists already"):
        export(random_model().eval(), there)
    for words, code in (
        (["export", str(weights), "-o", str(there)], 1),
        (["export", str(weights), "-o", str(tmp_path / "a.pt")], 1),
        (["export", "denoise-grey", "-o", str(tmp_path / "a.onnx")], 3),
        (["export", str(weights)], 2),
    ):
        assert run(words) == code
        assert capsys.readouterr().out == ""
    monkeypatch.setattr(nlrn.integrations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'pip install "nlrn\[onnx\]"'):
        export(random_model().eval(), tmp_path / "a.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.onnx", "w.safetensors"]
    assert there.read_text() == "mine"


def test_the_operator_of_the_file_does_not_run_in_torch() -> None:
    with pytest.raises(BackendError, match="neighborhood_attention"):
        attention(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), 3, [])
