"""The authors' weights: what TensorFlow wrote is read, and the network computes what their code computed.

`tests/authors` was made by running the authors' two published networks (their code with 8 and 4 channels and 3 states
instead of 128, 64 and 12) in TensorFlow 2.20 on random variables: the checkpoints of `tf.train.Saver`, the input and
the two outputs. NLRN has no propagation; NLRN_v0 has it, lies in a scope "model", takes images in 0..255 and gives
minus the noise.
"""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nlrn.cli import run
from nlrn.errors import CheckpointError, ConfigError
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


# -- what was made to fill a memory, and where people point --------------------------------------------------------


def _number(value: int) -> bytes:
    """A base-128 number of a protocol buffer."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _tensor_entry(offset: int, shape: tuple[int, ...]) -> bytes:
    """A BundleEntryProto of float32."""
    dims = b"".join(b"\x12" + _number(len(d)) + d for d in (b"\x08" + _number(n) for n in shape))
    size = 4 * int(np.prod(shape))
    return b"\x08\x01" + b"\x12" + _number(len(dims)) + dims + b"\x20" + _number(offset) + b"\x28" + _number(size)


def _table_block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """A block of (shared, rest of the key, value) with its trailer."""
    body = b"".join(_number(s) + _number(len(k)) + _number(len(v)) + k + v for s, k, v in entries)
    return body + bytes(4) + (1).to_bytes(4, "little") + bytes(5)


def _write(folder: Path, entries: list[tuple[int, bytes, bytes]], data: int, *, handles: int = 1) -> Path:
    block = _table_block(entries)
    handle = _number(0) + _number(len(block) - 5)
    index = _table_block([(0, b"k%06d" % i, handle) for i in range(handles)])
    footer = _number(0) + _number(0) + _number(len(block)) + _number(len(index) - 5)
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    (folder / "made.index").write_bytes(block + index + footer.ljust(40, b"\0") + magic)
    (folder / "made.data-00000-of-00001").write_bytes(bytes(data))
    return folder / "made"


def test_the_maker_of_checkpoints_makes_one(tmp_path: Path) -> None:
    entries = [(0, b"a/one", _tensor_entry(0, (3, 4))), (2, b"two", _tensor_entry(48, (5,)))]
    found = read_checkpoint(_write(tmp_path, entries, 68))
    assert {name: value.shape for name, value in found.items()} == {"a/one": (3, 4), "a/two": (5,)}


@pytest.mark.parametrize("kind", ["aliased", "half aliased", "growing keys", "many names", "one block often", "dims"])
def test_a_checkpoint_takes_no_more_memory_than_its_file(tmp_path: Path, kind: str) -> None:
    million = 1 << 20
    handles = 1
    if kind == "aliased":
        entries = [(0, b"v%04d" % i, _tensor_entry(0, (million,))) for i in range(900)]
    elif kind == "half aliased":
        entries = [(0, b"v%04d" % i, _tensor_entry(2 * million * i, (million,))) for i in range(2)]
    elif kind == "growing keys":
        entries = [(60 * i, b"x" * 60, _tensor_entry(0, (1,))) for i in range(3000)]
    elif kind == "many names":
        entries = [(0, b"v%06d" % i, _tensor_entry(4 * i, (1,))) for i in range(200_000)]
    elif kind == "one block often":
        entries, handles = (
            [(0, b"v%04d" % i, b"\x08\x03" + b"\x32" + _number(900) + bytes(900)) for i in range(50)],
            5000,
        )
    else:
        entries = [(0, b"v", _tensor_entry(0, (1,) * 5000))]
    prefix = _write(tmp_path, entries, 6 * million, handles=handles)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(CheckpointError, match=r"names?|variable|block|place|does not lie"):
            read_checkpoint(prefix)
        assert tracemalloc.get_traced_memory()[1] < 64 * million
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 20


def test_a_pipe_or_a_huge_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.index")
    (tmp_path / "p.data-00000-of-00001").touch()
    with pytest.raises(CheckpointError, match="regular file"):
        read_checkpoint(tmp_path / "p")
    prefix = _write(tmp_path, [(0, b"v", _tensor_entry(0, (1,)))], 4)
    os.truncate(f"{prefix}.data-00000-of-00001", 1 << 40)
    with pytest.raises(CheckpointError, match="more than any model's"):
        read_checkpoint(prefix)


def _copied(folder: Path, prefix: str) -> None:
    for end in (".index", ".data-00000-of-00001"):
        target = folder / f"{prefix}{end}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(AUTHORS / f"later.ckpt{end}", target)


@pytest.mark.parametrize(
    ("files", "passed"),
    [
        (["model.ckpt-500000"], "."),
        (["model.ckpt-1", "model.ckpt-500000"], "."),
        (["model.ckpt-1", "model.ckpt-500000"], "checkpoint"),
        (["variables/variables"], "saved_model.pb"),
        (["variables/variables"], "variables"),
        (["1534443228/variables/variables"], "."),
        (["1534443228/variables/variables"], "1534443228/saved_model.pb"),
    ],
)
def test_people_may_point_at_what_they_have(tmp_path: Path, files: list[str], passed: str) -> None:
    for name in files:
        _copied(tmp_path, name)
        if "variables" in name:
            ((tmp_path / name).parents[1] / "saved_model.pb").touch()
    if len(files) > 1:
        text = 'model_checkpoint_path: "/home/them/train/model.ckpt-500000"\nall_model_checkpoint_paths: "x"\n'
        (tmp_path / "checkpoint").write_text(text)
    assert len(read_checkpoint(tmp_path / passed)) == 58


@pytest.mark.parametrize(
    ("files", "passed", "words"),
    [
        ([], ".", "pass the prefix"),
        (["a", "b"], ".", "holds 2 checkpoints; pass one"),
        (["1/variables/variables", "2/variables/variables"], ".", "holds 2 checkpoints; pass one"),
        (["a"], "checkpoint", "names no checkpoint"),
        (["a"], "w.safetensors", "nothing to convert"),
        ([], "none", "cannot read"),
    ],
)
def test_where_there_is_nothing_or_too_much_the_message_says_what_to_pass(
    tmp_path: Path, files: list[str], passed: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        _copied(tmp_path, name)
        if "variables" in name:
            ((tmp_path / name).parents[1] / "saved_model.pb").touch()
    if passed == "checkpoint":
        (tmp_path / "checkpoint").write_bytes(b"\0\xff: 3")
    code = run(["convert", str(tmp_path / passed), "-o", str(tmp_path / "out.safetensors"), "--no-propagation"])
    assert code == 3
    assert words in capsys.readouterr().err


def test_a_super_resolver_is_one_and_enlarges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = tmp_path / "sr.safetensors", tmp_path / "small.png"
    command = ["convert", str(AUTHORS / "later.ckpt"), "-o", str(out), "--no-propagation", "--task", "sr"]
    assert run([*command, "--window", "5"]) == 0
    said = capsys.readouterr().out
    assert "upscale" in said
    assert "noise" not in said
    assert load_model(out).config.task == "sr"
    Image.effect_noise((20, 14), 60).save(small)
    assert run(["upscale", str(small), "-o", str(tmp_path / "l.png"), "--model", str(out), "--tile", "32"]) == 0
    with Image.open(tmp_path / "l.png") as large:
        assert large.size == (40, 28)
    capsys.readouterr()
    denoiser = ["--model", "denoise-gray-small", "--tile", "32", "-o", str(tmp_path / "m.png")]
    assert run(["upscale", str(small), *denoiser]) == 2
    found = capsys.readouterr()
    assert "tiles" not in found.out  # no plan for what is refused
    assert "not for sr" in found.err
    assert run(["convert", *command[1:4], "--propagation", "--task", "denoise", "--overwrite"]) == 0
    assert run(["evaluate", "--task", "sr", "--model", str(out), "--data", str(tmp_path)]) == 2
    assert "--task denoise" in capsys.readouterr().err


def test_the_scale_that_a_network_was_trained_on_is_told_or_said(outputs: dict[str, np.ndarray]) -> None:
    """Variables of the first code under other scales: what does not fit 0..255 is reported, and 0..1 is offered."""
    found = read_checkpoint(AUTHORS / "first.ckpt")
    x = torch.from_numpy(outputs["x"]).permute(0, 3, 1, 2)
    name = "model/batch_normalization/moving_variance"
    for variance in (64.0, 1.0, 0.05):
        changed = {**found, name: np.full_like(found[name], variance)}
        with pytest.raises(CheckpointError, match=r"0\.\.255.*--trained-on 1"):
            convert(changed, propagation=True)
        model = convert(changed, propagation=True, trained_on=1)
        assert float(model.head_norm.running_var) == pytest.approx(variance)
        assert bool(model(x).isfinite().all())
    as_usual, shown = convert(found, propagation=True), convert(found, propagation=True, trained_on=255)
    assert all(torch.equal(a, b) for a, b in zip(as_usual.parameters(), shown.parameters(), strict=True))
    later = read_checkpoint(AUTHORS / "later.ckpt")
    with pytest.raises(CheckpointError, match="as given"):
        convert(later, propagation=False, trained_on=255)
    with pytest.raises(ConfigError, match="trained_on"):
        convert(later, propagation=False, trained_on=2)
