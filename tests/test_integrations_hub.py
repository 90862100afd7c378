"""Folders laid out like repositories of the hub: what is loaded is what was saved, and nothing else; no network."""

from __future__ import annotations

import importlib
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_model

import nlrn
import nlrn.integrations
from nlrn.errors import BackendError, CheckpointError
from nlrn.integrations.hub import WEIGHTS, HubNLRN
from nlrn.models.checkpoint import load_model

ROUNDING = 2e-5  # of the largest value: a sum of 72 products errs by up to 72 eps = 9e-6, twice a state, some cancel


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("changes", [{}, {"in_channels": 3, "sigma_input": False, "window": None, "states": 1}])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = random_model(**changes).eval()
    HubNLRN.of(model).save_pretrained(tmp_path / "repository")
    loaded = HubNLRN.from_pretrained(tmp_path / "repository")
    assert loaded.config == model.config
    assert not loaded.training
    x = torch.rand(2, model.config.in_channels, 9, 11)
    sigma = 0.1 if model.config.sigma_input else None
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(loaded(x, sigma), load_model(tmp_path / "repository" / WEIGHTS)(x, sigma))
        # What is loaded is channels last, the model given is not: other kernels, other orders of the same sums.
        expected = HubNLRN.of(model)(x, sigma)
        torch.testing.assert_close(loaded(x, sigma), expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "repository" / WEIGHTS).read_bytes()
    image = torch.rand(model.config.in_channels, 16, 16)
    assert torch.equal(nlrn.denoise(image, 25, loaded), nlrn.denoise(image, 25, model))


def test_the_parameters_are_shared_with_the_model_given() -> None:
    model = random_model()
    assert {id(p) for p in HubNLRN.of(model).parameters()} == {id(p) for p in model.parameters()}
    assert HubNLRN.of(model).training == model.training


def test_the_card_says_what_it_is_and_its_snippet_runs(tmp_path: Path) -> None:
    model = HubNLRN.of(load_model("denoise-gray-small"))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for text in ("pipeline_tag: image-to-image", "denoising", "86,403 parameters", "15 x 15", "grey"):
        assert text in card
    snippet = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    names = {"image": torch.rand(1, 1, 12, 13)}
    exec(snippet.replace("this repository or folder", str(tmp_path)), names)
    assert torch.equal(names["restored"], model(names["image"], 25 / 255))
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["states"] == 6


def test_what_is_damaged_missing_or_foreign_is_refused(tmp_path: Path) -> None:
    HubNLRN.of(random_model()).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for damaged in (whole[:-4], whole[:40], b"", whole[:8] + b"{" + whole[9:-1], b"\x80\x02}q\x00." * 9):
        (tmp_path / WEIGHTS).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            HubNLRN.from_pretrained(tmp_path)
    foreign = whole.replace(rb"\"channels\": 8", rb"\"channels\": 9")  # a header that its tensors contradict
    assert foreign != whole
    (tmp_path / WEIGHTS).write_bytes(foreign)
    with pytest.raises(CheckpointError, match="block"):
        HubNLRN.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {WEIGHTS}"):
        HubNLRN.from_pretrained(tmp_path)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nlrn.integrations.hub")
    monkeypatch.setattr(nlrn.integrations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'huggingface_hub: pip install "nlrn\[hub\]"'):
        importlib.import_module("nlrn.integrations.hub")
