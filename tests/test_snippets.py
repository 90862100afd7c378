"""Every command and snippet of README and of docs/*.md is run; what is reduced, or only looked at, is listed here."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import samples
import vision  # noqa: F401  # what spandrel imports
from fastapi import UploadFile
from snippets import Rules, blocks, commands, parse, run_page

from nlrn import cli
from nlrn.web.fields import Denoising, Upscaling
from studies import growth

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import measure_engines  # noqa: E402
import measure_images  # noqa: E402
import measure_processes  # noqa: E402
import slice as slice_script  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HOURS, SETS = "takes hours", "the data sets are not in the repository; two images stand in"

REDUCED = {
    "nlrn evaluate --data examples --sigma 25": (
        "nlrn evaluate --data two-images --sigma 25",
        "a sixteenth of the pixels",
    ),
    "nlrn evaluate --data DATA --sigma 15 25 50 --attention": (
        "nlrn evaluate --data two-images --sigma 15 25 50 --attention",
        SETS,
    ),
    "nlrn evaluate --data DATA --sigma 15 25 50 --json results/x.json": (
        "nlrn evaluate --data two-images --sigma 15 25 50 --json x.json",
        SETS,
    ),
    "nlrn evaluate --task sr --model sr-small --scale 2 3 4 --protocol float-lr": (
        "nlrn evaluate --task sr --model sr-small --scale 2 --protocol float-lr --data two-images",
        SETS,
    ),
    "nlrn evaluate --noise camera --set cbsd68 --model denoise-color-small --given-sigma 12 --sigma 3 6 12": (
        "nlrn evaluate --noise camera --data two-images --model denoise-color-small --given-sigma 12 --sigma 12",
        SETS,
    ),
    "nlrn train recipes/denoise-gray-small.toml --minutes 60": (
        "nlrn train toy/tiny.toml --data toy --steps 2",
        HOURS,
    ),
    "nlrn train recipes/denoise-gray-small.toml --data DATA --minutes 60": (
        "nlrn train toy/tiny.toml --data toy --steps 2",
        HOURS,
    ),
    "nlrn train recipes/denoise-gray-small.toml --data DATA --resume --minutes 60": (
        "nlrn train toy/tiny.toml --data toy --resume --steps 4",
        HOURS,
    ),
    "nlrn train own.toml --data my-images --minutes 60": (
        "nlrn train own.toml --data my-images --steps 2",
        HOURS,
    ),
    "nlrn train own.toml --data my-images --minutes 60 --resume": (
        "nlrn train own.toml --data my-images --steps 4 --resume",
        HOURS,
    ),
    "nlrn train own-noise.toml --data my-images --minutes 60": (
        "nlrn train own-noise.toml --data my-images --steps 2",
        HOURS,
    ),
    "python -m studies attention recipes/study.toml -o attention.json -j 2": (
        "python -m studies attention toy/tiny.toml -o attention.json --data toy --steps 2 --seeds 0 --sigma 25",
        HOURS,
    ),
    "nlrn export denoise-gray-small -o small.onnx": (
        "nlrn export tiny.safetensors -o small.onnx",
        "one state of a 3 x 3 window instead of six of 15 x 15",
    ),
    "nlrn explain examples/camera.png --at 205,150 --sigma 25 -o map.png": (
        "nlrn explain image.png --at 25,50 --sigma 25 -o map.png",
        "a sixteenth of the pixels",
    ),
    "nlrn explain examples/camera.png --at 330,240 --sigma 25 -o edge.png": (
        "nlrn explain image.png --at 25,50 --sigma 25 -o edge.png",
        "a sixteenth of the pixels",
    ),
    "nlrn explain examples/camera.png --at 150,115 --sigma 25 -o flat.png": (
        "nlrn explain image.png --at 25,50 --sigma 25 -o flat.png",
        "a sixteenth of the pixels",
    ),
    'python -m benchmarks.operator --only "limit small"': (
        'python -m benchmarks.operator --quick --only "beside small tiled forward 16px"',
        "an hour for every line; tiny images",
    ),
}
SMALLER = {  # numbers of the recipes in docs/own-images.md
    "channels = 64": "channels = 8",
    "embed_channels = 32": "embed_channels = 4",
    "states = 6": "states = 2",
    "window = 15": "window = 5",
    "norm_batches = 200": "norm_batches = 2",
    "validation_size = 128": "validation_size = 32",
}


CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def _make(words: list[str]) -> None:
    assert words[0] in ("make", f"PIP_EXTRA_INDEX_URL={CPU_BUILDS}")
    assert re.search(rf"^{words[-1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words


def _install(words: list[str]) -> None:
    """pip's own parser takes the words; a switch of setup.py before them is one that it reads."""
    if words[0] == f"PIP_EXTRA_INDEX_URL={CPU_BUILDS}":
        words.pop(0)
    elif "=" in words[0]:
        assert f'"{words.pop(0).partition("=")[0]}"' in (ROOT / "setup.py").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of setuptools, where another test has imported distutils
        from pip._internal.commands import create_command

    assert words[:2] == ["pip", "install"]
    _, folders = create_command("install").parse_args(words[2:])
    assert folders == ["."]


def _environment(words: list[str]) -> None:
    assert f"VENV ?= {words[1].removesuffix('/bin/activate')}\n" in (ROOT / "Makefile").read_text()


def _slice(words: list[str]) -> None:
    assert words[:2] == ["python", "scripts/slice.py"]
    options = slice_script.parser().parse_args(words[2:])
    assert options.next or (ROOT / options.recipe).is_file()


def _growth(words: list[str]) -> None:
    assert words[:3] == ["python", "-m", "studies.growth"]
    options = growth.parser().parse_args(words[3:])
    assert (ROOT / options.recipe).is_file()


def _measures(words: list[str]) -> None:
    assert words[:2] == ["python", "scripts/measure_images.py"]
    measure_images.parser().parse_args(words[2:])


def _curl(words: list[str]) -> None:
    """The route, and the fields with values that it takes; test_web_api.py compares what comes back."""
    route, host = words[-3].rpartition("/v1/")[2], words[-3].partition("/v1/")[0]
    fields = dict(word.split("=", 1) for word, before in zip(words[1:], words, strict=False) if before == "-F")
    assert host == "http://127.0.0.1:8000"
    assert Path(fields.pop("image").removeprefix("@")).is_file()
    form = {"denoise": Denoising, "upscale": Upscaling}[route]
    form(image=UploadFile(io.BytesIO()), **fields)  # type: ignore[arg-type]


def _torchrun(words: list[str]) -> None:
    """torchrun's own parser takes what stands before nlrn, nlrn's what stands behind it."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert (options.module, options.training_script) == (True, "nlrn")
    again = [word.replace("$resume", "--resume") for word in options.training_script_args]
    parse(["nlrn", *again])


def _shell(words: list[str]) -> None:
    assert words[0] == "test" or words[0].startswith("head=")


def _processes(words: list[str]) -> None:
    assert words[:2] == ["python", "scripts/measure_processes.py"]
    measure_processes.parser().parse_args(words[2:])


def _engines(words: list[str]) -> None:
    assert words[:2] == ["python", "scripts/measure_engines.py"]
    measure_engines.parser().parse_args(words[2:])


def _ray(words: list[str]) -> None:
    """Ray's own parser takes it."""
    from ray.scripts.scripts import cli as ray

    assert words[:2] == ["ray", "start"]
    ray.commands["start"].make_context("start", words[2:])


def _docker(words: list[str]) -> None:
    """What stands behind the image's name goes to nlrn serve."""
    assert words[:2] in (["docker", "build"], ["docker", "run"])
    if "--build-arg" in words:
        name, _, value = words[words.index("--build-arg") + 1].partition("=")
        assert f"\nARG {name}\n" in (ROOT / "Dockerfile").read_text()
        assert value == CPU_BUILDS
    if words[1] == "run":
        assert "127.0.0.1:8000:8000" in words
        cli._parser().parse_args(["serve", *words[words.index("nlrn") + 1 :]])


def _extra(words: list[str]) -> None:
    (extra,) = re.findall(r"nlrn\[(\w+)\]", words[-1])
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def _page(words: list[str]) -> None:
    assert words[0] == "NLRN_SCREENSHOTS=/tmp"
    assert (ROOT / words[-1]).is_file()


RAY = "wants a cluster; the line before is run here, test_cluster.py does the rest"
TORCHRUN = "takes hours; test_distributed.py runs the command"
SLURM = "wants Slurm: on paper, but for what the parsers of torchrun and nlrn say"
STUDY = "ten trainings and more, each a process of its own: test_study.py trains, the line above shows the command"
BENCHMARK = "hours: test_benchmark.py measures and plots, docs/performance.md's third line is run"
CONTAINER = "wants docker; test_container.py lints the Dockerfile, scripts/container_in_chroot.py runs its steps"
SERVES = "does not end by itself; test_web_api.py and its neighbours ask a real one"
STORE = "wants an object store; test_stores.py runs the command on one"
LOOKED_AT = {
    "pip install 'nlrn[s3]'": (_extra, "installs"),
    "nlrn denoise s3://images/album -o s3://images/clean -r": (parse, STORE),
    "nlrn denoise s3://images/album -o clean -r -j 2": (parse, STORE),
    "nlrn upscale album -o s3://images/large --scale 2": (parse, STORE),
    "make demo": (_make, "installs; test_pages.py runs the demo"),
    f"PIP_EXTRA_INDEX_URL={CPU_BUILDS} make demo": (_make, "installs"),
    "make kernel-aarch64": (_make, "wants a cross compiler and an emulator: test_kernel_builds.py, where they are"),
    "pip install .": (_install, "installs; test_install.py does it"),
    f"PIP_EXTRA_INDEX_URL={CPU_BUILDS} pip install .": (_install, "installs"),
    "NLRN_BUILD_KERNEL=required pip install .": (_install, "installs; test_install.py does it"),
    f"docker build --build-arg PIP_EXTRA_INDEX_URL={CPU_BUILDS} -t nlrn .": (_docker, CONTAINER),
    "make test": (_make, "is this"),
    ". .venv/bin/activate": (_environment, "for a shell; the Makefile must make that folder"),
    "pip install 'nlrn[web]'": (_extra, "installs"),
    "nlrn serve": (parse, SERVES),
    "nlrn serve --model your-sr.safetensors --port 8080": (parse, SERVES),
    "nlrn serve --allow-host images.example.org": (parse, SERVES),
    "curl -F image=@noisy.png -F sigma=25 http://127.0.0.1:8000/v1/denoise -o clean.png": (_curl, SERVES),
    "curl -F image=@scan.tif -F depth=16 -F format=png http://127.0.0.1:8000/v1/denoise -o scan.png": (_curl, SERVES),
    "curl -F image=@image.png -F scale=3 http://127.0.0.1:8000/v1/upscale -o large.png": (_curl, SERVES),
    "docker build -t nlrn .": (_docker, CONTAINER),
    "docker run --rm --init --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 nlrn": (_docker, CONTAINER),
    "docker run --rm --init -p 127.0.0.1:8000:8000 -v ./weights:/weights:ro nlrn"
    " --model /weights/your-sr.safetensors": (_docker, CONTAINER),
    "NLRN_SCREENSHOTS=/tmp python -m pytest tests/test_web_page.py": (_page, "wants a Chromium"),
    "python -m studies window recipes/study.toml -o window.json": (parse, STUDY),
    "python -m studies choices recipes/study.toml --steps 2000 -o choices.json -j 2": (parse, STUDY),
    "python -m studies window recipes/study.toml --steps 1000 -o window.json --plot window.png -j 2": (parse, STUDY),
    "python -m benchmarks.operator": (parse, BENCHMARK),
    "python -m benchmarks.operator --json operator.json --plot operator.png": (parse, BENCHMARK),
    "python -m benchmarks.model --json model.json --plot model.png": (parse, BENCHMARK),
    'python -m benchmarks.model --only "images small window bf16 256px"': (parse, BENCHMARK),
    "python -m benchmarks.operator --only limit": (parse, BENCHMARK),
    "python -m benchmarks.operator --only weights": (parse, BENCHMARK),
    'python -m benchmarks.model --only "small window 256px"': (parse, BENCHMARK),
    "python -m benchmarks.model --only training": (parse, BENCHMARK),
    "torchrun --nproc-per-node 4 -m nlrn train recipes/denoise-gray.toml": (_torchrun, "four devices"),
    "torchrun --nproc-per-node 2 -m nlrn train recipes/denoise-gray-small.toml --data DATA -o runs/two": (
        _torchrun,
        TORCHRUN,
    ),
    "torchrun --nproc-per-node 2 -m nlrn train recipes/denoise-gray-small.toml --data DATA -o runs/two --resume": (
        _torchrun,
        TORCHRUN,
    ),
    "nlrn denoise /shared/album -o /shared/clean -r --engine ray --address 10.0.0.1:6379": (parse, RAY),
    "ray start --head --port 6379": (_ray, RAY),
    "ray start --address 10.0.0.1:6379": (_ray, RAY),
    'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': (_shell, SLURM),
    "test -e /shared/runs/gray/latest.txt && resume=--resume": (_shell, SLURM),
    "srun torchrun --nnodes 2 --nproc-per-node 4 --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d"
    " --rdzv-endpoint $head:29500 -m nlrn train recipes/denoise-gray.toml --data /shared/data"
    " -o /shared/runs/gray --minutes 460 $resume": (_torchrun, SLURM),
    "python scripts/measure_processes.py --data DATA": (_processes, "ten minutes"),
    "python scripts/measure_engines.py --data DATA": (_engines, "twenty minutes"),
    "python scripts/slice.py --next --minutes 150 --data DATA": (_slice, "takes hours"),
    "python scripts/slice.py recipes/denoise-gray-small.toml --minutes 60 --data DATA --release": (
        _slice,
        "an hour; test_slice.py makes slices",
    ),
    "python scripts/slice.py recipes/denoise-gray.toml --minutes 60 --processes 4 --release": (_slice, "four devices"),
    "python scripts/slice.py recipes/denoise-gray.toml --minutes 30 --data DATA --release": (
        _slice,
        "half an hour; test_slice.py makes slices",
    ),
}
LOOKED_AT |= {
    f"python -m studies.growth {words} --data DATA": (
        _growth,
        "hours; test_study_growth.py makes a small one",
    )
    for words in ("--minutes 60 --look 15 -o results/study-growth.json --limit 30",)
}
MEASURED = "minutes to half an hour: its figures stand in the page"
LOOKED_AT |= {
    f"python scripts/measure_images.py {words}": (_measures, MEASURED)
    for words in ("price --data DATA", "enlarge --model base", "large --model base")
}
RULES = Rules(REDUCED, LOOKED_AT, SMALLER)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    samples.make(folder)
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem == "cluster"))  # Ray is started for it
        for page in PAGES
        if blocks(page.read_text())
    ],
)
def test_what_a_page_shows_is_so(page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_page(page.read_text(), RULES)


def test_every_rule_is_of_a_line_that_stands_somewhere() -> None:
    sh = [text for page in PAGES for language, text in blocks(page.read_text()) if language == "sh"]
    lines = {line for text in sh for line, _ in commands(text)}
    assert REDUCED.keys() | LOOKED_AT.keys() <= lines
    assert not REDUCED.keys() & LOOKED_AT.keys()


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```sh\nnlrn train recipes/sr.toml\n```\n", "no rule for nlrn train"),
        ("```sh\nrm -r photos\n```\n", "no rule for rm"),
        ("```\nanything\n```\n", "no rule for a block of ''"),
        ("```console\n$ nlrn models\n```\n", "no rule for a block of 'console'"),
        ("```text\nwrote x.png\n```\n", "nothing before"),
        ("```sh\nnlrn --version\n```\n\n```text\nnlrn 0.0.1\n```\n", "nlrn 0.0.1"),
        ("```sh\nnlrn denoise missing.png -o x.png\n```\n", "exit code 1: nlrn: there is no file or folder"),
        ("```sh\nnlrn --version  # exit code 2\n```\n", "exit code 0"),
        ("- a list\n  ```sh\n  nlrn models\n  ```\n", "a fence that is not"),
        ("```sh\nnlrn models\n", "a fence that is not"),
        ("```python\nassert 1 == 2\n```\n", "assert 1 == 2|^$"),
    ],
)
def test_a_page_that_is_wrong_or_has_no_rule_fails(
    page: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=complaint):
        run_page(page, RULES)
