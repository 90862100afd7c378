"""Laws of a training in several processes: it is the training of one, it resumes, and it ends when one of them does."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import launches
import pytest
import torch
from launches import CASES, STEPS, Ended, Launcher, case, course, numbers
from safetensors.torch import load_file
from torch import Tensor
from toy import CPU, make, sha256_of_tensors

from nlrn.errors import CheckpointError, ConfigError
from nlrn.models.checkpoint import model_metadata
from nlrn.models.nlrn import NLRN
from nlrn.training import state
from nlrn.training.distributed import Processes
from nlrn.training.trainer import Trainer

SECONDS = 120  # in which a run must have ended once a process has: torchrun gives the others 30


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launches")) as found:
        yield found


def well(ended: Ended) -> None:
    assert ended.code == 0, ended.output


def ended_badly(ended: Ended, folder: Path, *said: str) -> None:
    """Not 0, soon, with the words, and a state that can be gone on from."""
    assert ended.code != 0
    assert ended.seconds < SECONDS
    for words in said:
        assert words in ended.output
    found = state.newest_verified(folder)
    assert found is not None
    assert all(bool(value.isfinite().all()) for value in found.tensors.values())
    assert not (folder / "tiny.safetensors").exists()


# -- the training of one process -----------------------------------------------------------------------------


@pytest.mark.once
def test_processes_agree_sum_and_follow(launch: Launcher) -> None:
    well(launch(3, launches.talk))


@pytest.mark.parametrize("world", [2, 4])
def test_a_batch_norm_over_all_processes_is_that_of_the_whole_batch(
    launch: Launcher, world: int, count: Callable[[int], int]
) -> None:
    """Output, gradients and running statistics, in float64 to 1e-11."""
    for seed in range(count(10)):
        well(launch(world, launches.norms, seed))


def alone(recipe: Path, name: str, dtype: str) -> dict[str, Tensor]:
    with numbers(dtype):
        return course(Trainer(case(recipe, name), recipe.parent / "none", recipe.parent, Processes(CPU)))


def distances(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference of the losses and gradient norms, relative, and of all that is left, absolute."""
    assert found.keys() == expected.keys()
    curves = [float((found[k] / expected[k] - 1).abs().max()) for k in ("losses", "norms")]
    rest = [k for k in found if k not in ("losses", "norms") and "num_batches" not in k]
    return max(curves), max(float((found[k] - expected[k]).abs().max()) for k in rest)


@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, list(CASES)), (4, ["accumulated"]), pytest.param(4, list(CASES), marks=pytest.mark.slow)],
)
def test_several_processes_train_as_one_does(
    launch: Launcher, recipe: Path, tmp_path: Path, world: int, cases: list[str]
) -> None:
    """Uneven shares, batch norms of the batch and frozen, all optimisers, both tasks, accumulated: in float64.

    Rounding alone: up to 2e-15 in the losses; a bias before a batch norm has no gradient but rounding, of which Adam
    makes some 1e-10.
    """
    well(launch(world, launches.courses, recipe, tmp_path, "float64", cases))
    for name in cases:
        curves, rest = distances(load_file(tmp_path / f"{name}.safetensors"), alone(recipe, name, "float64"))
        assert curves < 1e-12, name
        assert rest < 1e-8, name


@pytest.mark.parametrize("what", ["gradients", "statistics"])
def test_a_reduction_that_is_left_out_would_be_seen(launch: Launcher, recipe: Path, tmp_path: Path, what: str) -> None:
    """By more than 10,000 times what is allowed above."""
    well(launch(2, launches.courses, recipe, tmp_path, "float64", ["muon"], broken=what))
    curves, rest = distances(load_file(tmp_path / "muon.safetensors"), alone(recipe, "muon", "float64"))
    assert curves > 1e-3
    assert rest > 1e-4


def restored(config_of: Path, name: str, found: dict[str, Tensor]) -> Tensor:
    """What the model that was shipped makes of the next batch."""
    subject = Trainer(case(config_of, name), config_of.parent / "none", config_of.parent, Processes(CPU))
    model = NLRN(subject.config.model).eval()
    tensors = {k.removeprefix("shipped."): v for k, v in found.items() if k.startswith("shipped.")}
    model.load_state_dict(tensors, strict=False)
    noisy, _, sigma = subject.batches(launches.STEPS)
    with torch.no_grad():
        return model(noisy, sigma)


@pytest.mark.parametrize("cases", [["muon"], pytest.param(list(CASES), marks=pytest.mark.slow)])
def test_in_float32_losses_and_results_agree_to_rounding(
    launch: Launcher, recipe: Path, tmp_path: Path, cases: list[str]
) -> None:
    """Losses to 1e-4, gradient norms to 2e-3, what the shipped models restore to 5e-3.

    Rounding alone makes 6e-7. But an activation that lies within rounding of zero falls on either side of its ReLU, and
    its share of the gradient with it: against float64 from the same start, one process in float32 differs by 1.6e-4 in
    a gradient norm, 4e-6 in the losses after it and 5e-4 in what is restored (case "muon"), on one instruction set at
    this step, on another at that. The sharp bounds are those in float64, above. Biases that have no gradient but
    rounding walk at random, up to the learning rate a step, and the statistics behind them follow: no result depends
    on them.
    """
    well(launch(2, launches.courses, recipe, tmp_path, "float32", cases))
    for name in cases:
        found, expected = load_file(tmp_path / f"{name}.safetensors"), alone(recipe, name, "float32")
        _check_float32(found, expected, name)
        assert float((restored(recipe, name, found) - restored(recipe, name, expected)).abs().max()) < 5e-3, name


@pytest.mark.slow
def test_compiled_states_in_several_processes_agree_to_rounding(launch: Launcher, recipe: Path, tmp_path: Path) -> None:
    well(launch(2, launches.compiled, recipe, tmp_path))
    _check_float32(load_file(tmp_path / "muon.safetensors"), alone(recipe, "muon", "float32"), "compiled")


def _check_float32(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    for what, bound in (("losses", 1e-4), ("norms", 2e-3)):
        assert float((found[what] / expected[what] - 1).abs().max()) < bound, (name, what)


def test_more_processes_than_a_part_has_patches_are_refused(recipe: Path, tmp_path: Path) -> None:
    config = case(recipe, "accumulated")  # parts of 4 and 5
    with pytest.raises(ConfigError, match="5 processes cannot share a batch, or a part of one, of 4"):
        Trainer(config, tmp_path, recipe.parent, Processes(CPU, 0, 5))
    Trainer(config, tmp_path, recipe.parent, Processes(CPU, 0, 4))


# -- a resumed run is the same run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(launch: Launcher, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes that nothing interrupted, of which rank 0 alone wrote."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    well(launch(2, launches.run, recipe, folder))
    return folder


def test_a_run_whose_processes_are_killed_and_resumed_ends_with_the_same_bytes(
    launch: Launcher, whole_run: Path, recipe: Path, tmp_path: Path, count: Callable[[int], int]
) -> None:
    """SIGKILL at random steps: to one process, which ends all within seconds, or to the agent and all."""
    folder, kills, chance = tmp_path / "run", max(2, count(8)), random.Random(4)
    for number, step in enumerate(sorted(chance.sample(range(1, 50), kills))):
        whom = ("1", "all", "0", "all")[number % 4]
        ended = launch(2, launches.run, recipe, folder, resume=number > 0, kill=(whom, folder, step))
        ended_badly(ended, folder)
        if whom != "all":
            assert "another process of this run is gone; the last state is kept" in ended.output
    well(launch(2, launches.run, recipe, folder, resume=True))
    assert sha256_of_tensors(folder / "tiny.safetensors") == sha256_of_tensors(whole_run / "tiny.safetensors")
    states = [state.read_state(state.rolling(path)[0]).tensors for path in (folder, whole_run)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    assert {file.name for file in folder.iterdir()} == {file.name for file in whole_run.iterdir()}


def test_another_number_of_processes_resumes_the_same_run_but_for_rounding(
    launch: Launcher, recipe: Path, tmp_path: Path
) -> None:
    """One process makes three steps, two the other three: in float64, where rounding hides nothing."""
    with numbers("float64"):
        first = Trainer(case(recipe, "muon"), tmp_path, recipe.parent, Processes(CPU))
        course(first, STEPS // 2)
        first.save()
    expected = alone(recipe, "muon", "float64")
    for name in ("losses", "norms"):
        expected[name] = expected[name][STEPS // 2 :]
    ended = launch(2, launches.resumed, recipe, tmp_path, "float64")
    well(ended)
    assert ended.output.count("a run of 1 process(es), which 2 resume: equal to rounding") == 1
    curves, rest = distances(load_file(tmp_path / "resumed.safetensors"), expected)
    assert curves < 1e-12
    assert rest < 1e-8


@pytest.mark.once
def test_the_command_resumes_by_another_number_of_processes_and_says_so(
    launch: Launcher, recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ("train", recipe, "--data", recipe.parent, "-o", folder, "-q")
    ended_badly(launch(2, launches.run, recipe, folder, kill=("all", folder, 20)), folder)
    ended = launch(3, launches.command, *words, "--resume")
    well(ended)
    assert ended.output.count("a run of 2 process(es), which 3 resume") == 1, ended.output
    assert model_metadata(folder / "tiny.safetensors")["steps"] == "60"


# -- one process fails -----------------------------------------------------------------------------------------


@pytest.mark.once
def test_data_that_one_process_alone_cannot_read_end_all_before_anything_is_written(
    launch: Launcher, recipe: Path, tmp_path: Path
) -> None:
    data = tmp_path / "damaged"
    shutil.copytree(recipe.parent / "held", data / "held")
    shutil.copytree(recipe.parent / "images", data / "images")
    (data / "images" / "1.png").write_bytes(b"not an image")
    words = ("train", recipe, "--data", recipe.parent, "-o", tmp_path / "run", "-q")
    ended = launch(2, launches.command, *words, rank_1={str(recipe.parent): str(data)})
    assert ended.code != 0
    assert ended.seconds < SECONDS
    said = [line for line in ended.output.splitlines() if line.startswith("nlrn: ")]
    assert said == [line for line in said if f"cannot read the image {data / 'images' / '1.png'}" in line]
    assert len(said) == 1, ended.output
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.once
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_one_process_in_the_middle_ends_all_and_keeps_the_state(
    launch: Launcher, recipe: Path, tmp_path: Path, rank: int
) -> None:
    ended = launch(2, launches.failing, recipe, tmp_path / "run", 5, rank)
    ended_badly(ended, tmp_path / "run", f"nlrn: the disk of process {rank} is gone")
    found = state.newest_verified(tmp_path / "run")
    assert found is not None
    assert found.step in (4, 5)


def test_processes_that_find_different_states_do_not_go_on(recipe: Path, tmp_path: Path) -> None:
    """As two machines do that share no folder: what rank 0 says is another step than this one's."""

    class Second(Processes):
        def agree(self, value: int) -> int:
            return value + 1

    subject = Trainer(case(recipe, "muon"), tmp_path, recipe.parent, Second(CPU))
    with pytest.raises(CheckpointError, match="is it one folder"):
        subject.align()


# -- the command torchrun --------------------------------------------------------------------------------------


def torchrun(*agent: str, recipe: Path, folder: Path) -> subprocess.Popen[str]:
    words = ["train", recipe, "--data", recipe.parent, "-o", folder]
    command = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "nlrn", *map(str, words)]
    source = Path(__file__).resolve().parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("way", ["one agent", "two agents"])
def test_torchrun_itself_makes_the_same_run(whole_run: Path, recipe: Path, tmp_path: Path, way: str) -> None:
    """The command as documentation shows it; `launch` starts the same agent from a Python that runs already.

    And as two machines do it: two agents, a process each, that find each other at an address.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    joint = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7", "--rdzv-backend", "c10d")
    ways = {
        "one agent": [("--standalone", "--nproc-per-node", "2")],
        "two agents": [(*joint, "--rdzv-endpoint", address)] * 2,
    }
    expected = sha256_of_tensors(whole_run / "tiny.safetensors")
    agents = [torchrun(*agent, recipe=recipe, folder=tmp_path / "run") for agent in ways[way]]
    said = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * len(agents), said
    assert "".join(said).count("wrote ") == 1
    assert sha256_of_tensors(tmp_path / "run" / "tiny.safetensors") == expected
