"""Benchmarks: who is compared computes the same, what counts as work is what is worked, and nothing is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import measure, operator, report, suite
from benchmarks import model as whole
from benchmarks.command import parser
from benchmarks.contestants import CONTESTANTS, call_of, why_not
from nlrn.cli import execute
from nlrn.models.nlrn import NLRN, PRESETS
from nlrn.ops import reference
from nlrn.ops.flops import clipped_pairs

CPU = torch.device("cpu")
OPERATOR = list(operator.cells("cpu", 2, quick=True))
NETWORK = list(whole.cells("cpu", 2, quick=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own, at its import
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n == "flex" else [])  # a C++ compiler runs for it
        for n in CONTESTANTS
        if n not in ("gpu", "natten")
    ],
)
@pytest.mark.parametrize(("size", "window"), [((9, 20), 5), ((4, 7), 9)])
def test_every_contestant_computes_the_definition(name: str, size: tuple[int, int], window: int) -> None:
    chance = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, *size, n, generator=chance) for n in (16, 16, 32))
    expected, _ = reference.attend(*(x.double() for x in (q, k, v)), window, None, False)
    found = call_of(CONTESTANTS[name], window)(q, k, v)
    assert found.shape == v.shape
    assert float((found.double() - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize(("height", "width", "window"), [(5, 9, 3), (1, 7, 5), (6, 6, 13), (4, 3, None)])
def test_pairs_are_those_inside_the_image(height: int, width: int, window: int | None) -> None:
    if window is None:
        assert clipped_pairs(height, width, None) == (height * width) ** 2
        return
    assert clipped_pairs(height, width, window) == int(reference.valid_offsets(height, width, window, CPU).sum())


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_work_of_the_network_is_that_of_its_convolutions_and_its_attention(preset: str) -> None:
    cell = next(c for c in NETWORK if c["preset"] == preset and c["section"] == "images")
    config, counted = whole.config_of(cell), 0.0

    def count(module: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal counted
        kernel = module.kernel_size[0] * module.kernel_size[1]
        counted += 2 * kernel * module.in_channels * module.out_channels * out.shape[-1] * out.shape[-2]

    model = NLRN(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.rand(1, 1, 8, 11), 0.1)
    attention = config.states * 2 * (config.channels + config.embed_channels)
    attention *= clipped_pairs(8, 11, config.window)
    embeddings = config.states * 2 * 8 * 11 * config.channels * (config.channels + 2 * config.embed_channels)
    assert whole.flop(config, 8, 11) == counted + attention + embeddings
    cm, c = config.embed_channels, config.channels
    backward = config.states * 4 * (cm + c) * clipped_pairs(8, 11, config.window)  # two products, twice
    expected = 3 * (counted + embeddings) + attention + backward
    assert whole.flop(config, 8, 11, training=True) == expected


def test_a_call_is_timed_against_the_matrix_products_around_it() -> None:
    """With a clock that only these calls move: the machine slows down by half on the way, the fraction does not."""
    limit, now, pace = measure.Limit(torch.float32, CPU), 0.0, 1.0

    def product() -> None:
        nonlocal now
        now += pace * 0.001 * limit.products

    def call() -> None:
        nonlocal now, pace
        now += pace * 0.004
        pace += 0.125

    limit.clock, limit.multiply = lambda: now, product  # type: ignore[method-assign]
    found = limit.compare(call, 2 * limit.flop, 1)
    assert limit.flop == 2 * 1024**3
    assert found["useful_gflop"] * 1e9 == 2 * limit.flop
    # the second call took 4.5 ms, so five calls are one measurement, at a pace of 1.25, 1.375 ... 1.75
    assert found["seconds"] == pytest.approx(0.004 * 1.5)
    assert found["limit_gflops"] * 1e9 == pytest.approx(limit.flop / (0.001 * (1.25 + 1.875) / 2))
    assert found["fraction"] == pytest.approx(0.5 * 1.5625 / 1.5)
    assert limit.compare(call, 1.0, 3, warm=False)["repeats"] == 3


def test_what_cannot_run_says_why() -> None:
    cell = {"size": 1024, "window": 45, "embed": 64, "channels": 128, "dtype": "bf16", "work": "forward"}
    q = torch.empty(1, 8, 8, 64, dtype=torch.bfloat16)
    for name, change, available, reason in [
        ("unfold", {}, 16 << 30, "needs 1,519 GiB, and 16 are free"),
        ("dense", {}, 16 << 30, "needs 3,072 GiB"),
        ("flex", {"work": "backward"}, 1 << 60, "no backward pass on CPUs"),
        ("natten", {}, 1 << 60, "no CPU kernel"),
        ("gpu", {}, 1 << 60, "Triton|CUDA"),
    ]:
        found = why_not(CONTESTANTS[name], cell | change, q, available)
        assert found is not None
        assert found.startswith(reason) or any(part in found for part in reason.split("|"))
    assert why_not(CONTESTANTS["cpu"], cell, q, 0) is None


@pytest.mark.parametrize(
    ("change", "limit", "reason"),
    [
        ({"dtype": "fp8"}, 100, "KeyError: 'fp8'"),
        ({}, 0.2, "took more than 0.2 s"),
    ],
)
def test_a_measurement_that_fails_is_a_row_that_says_so(change: dict[str, str], limit: float, reason: str) -> None:
    cell = OPERATOR[0] | change
    assert measure.in_own_process(cell, limit) == cell | {"reason": reason}


@pytest.mark.parametrize("cell", [c for c in OPERATOR if c["section"] == "limit" and c["shape"] == "small"])
@pytest.mark.parametrize("side", [128, pytest.param(measure.GEMM["cpu"], marks=pytest.mark.slow)])
def test_every_pass_of_the_kernel_is_measured(
    cell: dict[str, object], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside small products: without AVX-512 one of 1024 x 1024 in bf16 takes seconds, and many are taken."""
    monkeypatch.setitem(measure.GEMM, "cpu", side)
    before, set_before = torch.get_num_threads(), operator.cpu.instruction_set()
    torch.set_num_threads(1)
    try:
        found = operator.measured(cell)
    finally:
        torch.set_num_threads(before)
        operator.cpu.use_instruction_set(set_before)
    assert found["seconds"] > 0
    assert found["fraction"] > 0
    products = {  # of a pair: those of Cm channels, those of C
        "forward": (1, 1),  # q.k, p v
        "forward carried": (1, 1),
        "backward": (3, 2),  # q.k, dS k, dS q; dout.v, p dout
        "backward carried": (2, 2),
    }[str(cell["work"])]
    pairs = int(reference.valid_offsets(24, 24, 7, CPU).sum())
    assert found["useful_gflop"] * 1e9 == 2 * (32 * products[0] + 64 * products[1]) * pairs
    assert 0 <= found["peak_mib"] < 16  # maps, gradients and two correlations of 24 x 24 pixels: 4 MiB


@pytest.mark.parametrize("cell", [c for c in OPERATOR if c["section"] == "weights"], ids=suite.described)
def test_the_gradient_of_kernels_is_measured(cell: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.GEMM, "cpu", 128)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = operator.measured(cell)
    finally:
        torch.set_num_threads(before)
    assert found["useful_gflop"] * 1e9 == 2 * 9 * 64 * 64 * 2 * 16 * 16
    assert found["fraction"] > 0
    title, header, ((*place, time, fraction),) = report.weights_table([cell | found])
    assert title == "The gradient of 3 x 3 weights (1 thread)"
    assert place == ["64 channels, 2 of 16 x 16", cell["dtype"], cell["contestant"]]
    assert time
    assert fraction == f"{found['fraction']:.2f}"
    assert len(header) == 5


def test_without_bf16_nothing_is_measured_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (operator, whole):
        monkeypatch.setattr(module, "hardware_bf16", lambda device: False)
        assert {c["dtype"] for c in module.cells("cpu", 2, quick=True)} == {"fp32"}
        monkeypatch.setattr(module, "hardware_bf16", lambda device: True)
        assert {c["dtype"] for c in module.cells("cpu", 2, quick=True)} == {"fp32", "bf16"}


TRAINING = [c for c in NETWORK if c["section"] == "training" and c["preset"] == "small"]


@pytest.mark.parametrize(
    "cell",
    [c for c in NETWORK if c["section"] in ("images", "backends") and c["preset"] == "small"]
    + TRAINING[:1]
    + [pytest.param(c, marks=pytest.mark.slow) for c in TRAINING[1:]],
    ids=suite.described,
)
def test_the_network_is_measured(cell: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure.GEMM, "cpu", 128)
    found = whole.measured(cell)
    assert found["seconds"] > 0
    assert found["fraction"] > 0
    if cell["section"] == "training":
        assert 0.01 < found["attention"] < 0.99


@pytest.mark.parametrize(
    "names", [("cpu", "natten"), pytest.param(tuple(n for n in CONTESTANTS if n != "gpu"), marks=pytest.mark.slow)]
)
def test_the_command_writes_numbers_tables_and_a_plot(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each contestant in a process of its own: without --slow this package's and one that cannot run."""
    for name in set(CONTESTANTS) - set(names):
        monkeypatch.delitem(CONTESTANTS, name)
    numbers, drawing = tmp_path / "o.json", tmp_path / "o.png"
    command = [
        "--device",
        "cpu",
        "--quick",
        "--only",
        "beside small forward 16px",
        "--seconds",
        "100",
    ]
    assert execute(parser("operator"), [*command, "--json", str(numbers), "--plot", str(drawing)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(numbers.read_text())
    assert {r["contestant"] for r in result["rows"]} == set(names)
    assert all(("seconds" in r) != ("reason" in r) for r in result["rows"])
    assert all("seconds" in r for r in result["rows"] if r["contestant"] != "natten")
    (title, header, lines), *others = report.tables(result)
    assert not others
    assert header[3:] == ["16 x 16"]
    assert title in printed
    assert any(line[2] == "NATTEN" and "no CPU kernel" in line[3] for line in lines)
    with Image.open(drawing) as image:
        assert image.size[0] > 800


def test_cells_are_picked_by_the_words_of_their_line() -> None:
    assert suite.described(OPERATOR[0]).startswith("limit base cpu ")
    kind = {"dtype": "bf16", "instruction_set": None}
    assert suite.described(OPERATOR[0] | kind) == "limit base cpu forward bf16 24px window=7"
    assert execute(parser("operator"), ["--device", "cpu", "--only", "nothing like it"]) == 2
    assert execute(parser("operator"), ["--device", "cpu", "--json", "nowhere/o.json"]) == 1
    assert execute(parser("operator"), ["--device", "tpu"]) == 3


def test_a_drawing_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o.png").write_bytes(b"there")
    assert execute(parser("operator"), ["--plot", str(tmp_path / "o.png")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "o.png").read_bytes() == b"there"


HELP = """
import runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert end.code == 0
"""


def test_the_commands_run_from_the_checkout() -> None:
    root = Path(__file__).parents[1]
    modules = ["benchmarks.operator", "benchmarks.model", "benchmarks.peers", "studies"]
    command = [sys.executable, "-W", "error", "-c", HELP, *modules]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for module in modules:
        assert f"usage: python -m {module} " in done.stdout


def test_times_have_units() -> None:
    times = (1600, 123.4, 12.345, 0.9996, 0.012345, 0.000012345)
    assert [report.seconds(x) for x in times] == ["1,600 s", "123 s", "12.3 s", "1.00 s", "12.3 ms", "12.3 us"]


def test_rows_of_different_sizes_and_rows_without_numbers_make_tables() -> None:
    rows = [
        OPERATOR[0] | {"section": "beside", "size": 16, "reason": "is not installed"},
        OPERATOR[0] | {"section": "beside", "size": 24, "shape": "small", "reason": "failed"},
        OPERATOR[0] | {"section": "growth", "along": "window", "reason": "took too long"},
    ]
    (_, header, beside), (_, _, growth) = report.tables({"benchmark": "operator", "rows": rows})
    assert [line[3:] for line in beside] == [["is not installed", ""], ["", "failed"]]
    assert len(header) == 5
    assert "took too long" in growth[0]


def test_memory_counts_from_the_last_reset() -> None:
    """Within 8 MiB of a block of 64 MiB, though twice as much was held and freed before."""
    torch.ones(32 << 20)
    idle = measure.reset_peak(CPU)
    torch.ones(16 << 20)
    assert measure.peak_bytes(CPU) - idle == pytest.approx(64 << 20, abs=8 << 20)
