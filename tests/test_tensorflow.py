"""The authors' weights: what TensorFlow wrote is read, and the network computes what their code computed.

`tests/authors` was made by running the authors' two published networks (their code with 8 and 4 channels and 3 states
instead of 128, 64 and 12) in TensorFlow 2.20 on random variables: the checkpoints of `tf.train.Saver`, the input and
the two outputs. NLRN has no propagation; NLRN_v0 has it, lies in a scope "model", takes pictures in 0..255 and gives
minus the noise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nlrn.cli import run
from nlrn.errors import CheckpointError
from nlrn.integrations.tensorflow import convert, read_checkpoint
from nlrn.models.checkpoint import load_model, model_metadata

AUTHORS = Path(__file__).parent / "authors"


@pytest.fixture(scope="module")
def outputs() -> dict[str, np.ndarray]:
    with np.load(AUTHORS / "outputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["later", "first"])
def test_the_network_computes_what_the_authors_code_computed(name: str, outputs: dict[str, np.ndarray]) -> None:
    model = convert(read_checkpoint(AUTHORS / f"{name}.ckpt"), propagation=name == "first")
    assert (model.config.states, model.config.channels, model.config.embed_channels) == (3, 8, 4)
    x = torch.from_numpy(outputs["x"]).permute(0, 3, 1, 2)
    expected = torch.from_numpy(outputs[name]).permute(0, 3, 1, 2)
    if name == "first":
        expected = x + expected / 255
    with torch.inference_mode():
        found = model(x)
        other = model.reconfigured(propagation=name != "first")(x)
    scale = (expected - x).abs().max()
    assert float((found - expected).abs().max() / scale) < 2e-5
    assert float((other - expected).abs().max() / scale) > 2e-4  # the propagation makes a difference


def test_every_float_variable_is_read_and_the_rest_is_passed_over() -> None:
    found = read_checkpoint(AUTHORS / "later.ckpt")
    assert len(found) == 58  # 11 batch norms of 4, 7 convolutions of 2; not the step
    assert "global_step" not in found
    assert found["rnn/RB1_a/kernel"].shape == (3, 3, 8, 8)
    assert found["rnn/batch_normalization_8/moving_variance"].min() > 0


@pytest.mark.parametrize("end", ["", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_named_by_prefix_or_file(end: str) -> None:
    assert len(read_checkpoint(AUTHORS / f"later.ckpt{end}")) == 58


def test_a_saved_model_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "variables"
    folder.mkdir(parents=True)
    for end in (".index", ".data-00000-of-00001"):
        shutil.copy(AUTHORS / f"later.ckpt{end}", folder / f"variables{end}")
    assert len(read_checkpoint(tmp_path / "saved")) == 58
    assert len(read_checkpoint(folder)) == 58


def test_a_damaged_checkpoint_is_one_clear_error_or_other_numbers(tmp_path: Path) -> None:
    """Cut and flipped anywhere in its index: CheckpointError, or a read of what still makes sense; nothing else."""
    index = (AUTHORS / "later.ckpt.index").read_bytes()
    shutil.copy(AUTHORS / "later.ckpt.data-00000-of-00001", tmp_path / "bad.ckpt.data-00000-of-00001")
    refused = 0
    for place in range(0, len(index), 3):
        for damaged in (index[:place], index[:place] + bytes([index[place] ^ 0x55]) + index[place + 1 :]):
            (tmp_path / "bad.ckpt.index").write_bytes(damaged)
            try:
                convert(read_checkpoint(tmp_path / "bad.ckpt"), propagation=True)
            except CheckpointError:
                refused += 1
    assert refused > len(index) / 3  # every cut one at least


def test_what_does_not_fit_is_refused_by_name() -> None:
    found = read_checkpoint(AUTHORS / "later.ckpt")
    for change, words in (
        ({"conv_end/bias": None}, "conv_end/bias is missing"),
        ({"rnn/batch_normalization_8/gamma": None}, "three batch norms"),
        ({"conv1/kernel": None}, "not the variables"),
        ({"rnn/RB1_b/kernel": np.zeros((3, 3, 8, 7), np.float32)}, "does not fit"),
        ({"rnn/RB1_b/bias": np.full(8, np.nan, np.float32)}, "not finite"),
    ):
        changed = {k: v for k, v in {**found, **change}.items() if v is not None}
        with pytest.raises(CheckpointError, match=words):
            convert(changed, propagation=False)


def test_the_command_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "authors.safetensors"
    command = ["convert", str(AUTHORS / "first.ckpt"), "-o", str(out), "--propagation"]
    assert run(command) == 0
    assert "3 states, 8 channels, with propagation" in capsys.readouterr().out
    assert load_model(out).config.window is None
    assert model_metadata(out)["name"] == "authors"
    new, copied = tmp_path / "new.safetensors", tmp_path / "copied.ckpt"
    for file in AUTHORS.glob("first.ckpt.*"):
        shutil.copy(file, tmp_path / file.name.replace("first", "copied"))
    for arguments, code, words in (
        (command, 1, "exists already"),
        (["convert", str(tmp_path / "none.ckpt"), "-o", str(new), "--propagation"], 3, "cannot read"),
        (["convert", str(AUTHORS / "first.ckpt"), "-o", str(new)], 2, "--propagation"),
        (["convert", str(AUTHORS / "first.ckpt"), "-o", str(new), "--propagation", "--window", "4"], 2, "window"),
        (["convert", str(copied), "-o", f"{copied}.index", "--propagation", "--overwrite"], 1, "is an input"),
    ):
        assert run(arguments) == code
        assert words in capsys.readouterr().err
    assert not new.exists()
    assert read_checkpoint(copied).keys() == read_checkpoint(AUTHORS / "first.ckpt").keys()
