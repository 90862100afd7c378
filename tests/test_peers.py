"""python -m benchmarks.peers: the architectures are the published ones, and the command writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import peers
from nlrn.cli import execute

PUBLISHED = json.loads((peers.RESULTS / "published.json").read_text())["denoise_grey"]["methods"]


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_the_published_number_of_parameters_and_keeps_the_size(name: str) -> None:
    count = peers.parameters(name)
    assert count == pytest.approx(PUBLISHED[name]["params"], rel=0.012)
    for precision in ("fp32", "bf16"):
        image = np.random.default_rng(0).random((24, 16), dtype=np.float32)
        result = peers.of_peer(peers.PEERS[name], precision)(image)
        assert result.shape == image.shape
        assert np.isfinite(result).all()


def test_a_peer_sees_as_far_as_its_layers_reach() -> None:
    """17 convolutions 3 x 3 reach 17 pixels; 15 of them at half size 30 of the whole."""
    for kind, reach in ((peers.DnCNN, 17), (peers.FFDNet, 30)):
        torch.manual_seed(0)
        x = torch.rand(1, 1, 96, 96).requires_grad_()
        kind()(x, 25.0)[0, 0, 48, 48].backward()  # type: ignore[operator]
        assert x.grad is not None
        rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
        assert int((rows - 48).abs().max()) in (reach, reach + 1)


def test_the_command_writes_numbers_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--side", "16", "--rounds", "1", "--json", str(tmp_path / "p.json"), "--plot", str(tmp_path / "p.png")]
    assert execute(peers.parser(), words) == 0
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    found = {row["name"]: row for row in rows if row["precision"] == "fp32"}
    assert {"denoise-gray-small", *peers.PEERS} <= set(found)
    for name, row in found.items():
        assert row["seconds"] > 0
        if name in PUBLISHED:
            assert (row["set12"], row["bsd68"]) == (PUBLISHED[name]["set12"][1], PUBLISHED[name]["bsd68"][1])
    assert found["denoise-gray-small"]["times"] == 1
    with Image.open(tmp_path / "p.png") as plot:
        assert plot.size[0] > 300
    assert "DnCNN-S" in capsys.readouterr().out
    assert execute(peers.parser(), ["--side", "12"]) == 2
