"""The command line without a name for the result, with JSON, and in shells that complete it."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from networks import random_model
from PIL import Image

from nlrn import cli
from nlrn.cli import run
from nlrn.cli.shared import complain, print_table
from nlrn.models.checkpoint import save_model

NAMES = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]
GROUPS = {
    "denoise": ("noise", "result", "model and machine", "memory", "where IN is a folder"),
    "train": ("run", "data", "budget"),
    "evaluate": ("scores", "result", "model and machine"),
    "convert": ("network", "result"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 40), 60).save("photo.jpg")
    return tmp_path


def test_a_file_alone_is_denoised_beside_itself_and_never_replaces(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("photo.jpg").read_bytes()
    assert run(["photo.jpg"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote photo-restored.jpg; photo.jpg is unchanged"
    assert run(["denoise", "photo.jpg", "-o", "named.jpg", "-q"]) == 0
    assert Path("photo-restored.jpg").read_bytes() == Path("named.jpg").read_bytes()
    made = Path("photo-restored.jpg").read_bytes()
    assert run(["photo.jpg", "--sigma", "50"]) == 1  # options go behind it
    assert "photo-restored.jpg exists already" in capsys.readouterr().err
    assert Path("photo-restored.jpg").read_bytes() == made
    assert Path("photo.jpg").read_bytes() == before
    assert run(["photo.jpg", "--sigma", "50", "--overwrite", "-q"]) == 0
    assert Path("photo-restored.jpg").read_bytes() != made
    assert capsys.readouterr().out == ""


def test_a_folder_alone_gets_one_beside_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "photos").mkdir()
    shutil.move("photo.jpg", "photos")
    assert run(["photos/", "-q"]) == 0
    assert (here / "photos-restored" / "photo.jpg").is_file()
    monkeypatch.chdir(here / "photos")
    assert run(["."]) == 0  # the same folder: nothing is done twice
    assert sorted(path.name for path in here.iterdir()) == ["photos", "photos-restored"]


def test_names_of_other_kinds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open("photo.jpg").save("moving.gif")
    assert run(["moving.gif", "-q"]) == 0
    assert Path("moving-restored.png").is_file()  # a GIF is not written
    assert run(["upscale", "photo.jpg"]) == 0
    assert "wrote photo-enlarged.jpg, 120 x 80; photo.jpg is unchanged" in capsys.readouterr().out
    frames = [Image.effect_noise((60, 40), n) for n in (40, 60)]
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    assert run(["film.gif", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "film-restored.tif"
    assert Path("film-restored.tif").is_file()
    Path("models").write_bytes(Path("photo.jpg").read_bytes())
    assert run(["models"]) == 0  # a command comes before a file
    assert "denoise-gray-small" in capsys.readouterr().out
    Path("-x.jpg").write_bytes(Path("photo.jpg").read_bytes())
    assert run(["-x.jpg", "-q"]) == 0
    assert Path("-x-restored.jpg").is_file()
    assert run(["denoise", "/"]) == 2
    assert "-o/--output, for no folder lies beside /" in capsys.readouterr().err
    for words in (["denoise", "s3://bucket/folder"], ["s3://bucket/folder"]):
        assert run(words) == 2
        assert "-o/--output" in capsys.readouterr().err


def test_options_may_stand_before_a_file_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["denoise", "photo.jpg", "-o", "named.jpg", "-q", "--sigma", "10"]) == 0
    expected = Path("named.jpg").read_bytes()
    Path("-dash.jpg").write_bytes(Path("photo.jpg").read_bytes())
    capsys.readouterr()
    for words in (["--sigma", "10", "photo.jpg"], ["-q", "--sigma=10", "--", "-dash.jpg"]):
        assert run(words) == 0
        out = Path(f"{Path(words[-1]).stem}-restored.jpg")
        assert out.read_bytes() == expected
        out.unlink()
    assert "wrote photo-restored.jpg; photo.jpg is unchanged" in capsys.readouterr().out
    assert run(["--", "-dash.jpg", "--sigma", "10"]) == 2  # behind -- nothing is an option
    capsys.readouterr()
    assert run(["-q", "--", "photo.jpg"]) == 0
    assert run(["--sigma", "99", "photo.jpg"]) == 2
    assert "nlrn denoise: argument --sigma: 99 is outside" in capsys.readouterr().err
    for words, code, says in (
        (["--sigma", "10", "photo.jpeg"], 1, "there is no file or folder photo.jpeg"),
        (["train.png"], 1, "there is no file or folder train.png"),  # a file's name, like a command's as it is
        (["--sigma", "10"], 2, "nlrn denoise: the following arguments are required: IN"),
        (["--verison"], 2, "nlrn: unrecognized arguments: --verison"),
        (["-q", "models"], 2, "nlrn: unrecognized arguments: -q"),
        (["a" * 300], 3, "File name too long"),
    ):
        assert run(words) == code
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["denois", "photo.jpg"], "there is no command denois; did you mean denoise?"),
        (["upscal"], "there is no command upscal; did you mean upscale?"),
        (["model"], "there is no command model; did you mean models?"),
        (["blur", "photo.jpg"], "invalid choice: 'blur'"),
    ],
)
def test_a_misspelt_command_names_the_near_one(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(words) == 2
    assert says in capsys.readouterr().err
    assert not Path("photo-restored.jpg").exists()


def test_every_command_shows_groups_and_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        assert run([name, "--help"]) == 0
        text = capsys.readouterr().out
        examples = text.partition("\nexamples:\n")[2].splitlines()
        assert examples, name
        for line in examples:
            words = line.split("  ")[1].partition(" >")[0].split()
            assert words[0] == "nlrn"
            cli._parser().parse_args(words[1:])
    for name, expected in GROUPS.items():
        assert run([name, "--help"]) == 0
        text = capsys.readouterr().out
        titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert {f"{title}:" for title in expected} <= set(titles), name
        plain = text.partition("options:\n")[2].partition("\n\n")[0]
        assert plain.count("  -") <= 2 + plain.count(", --")  # help and quiet, no more without a group
    assert run(["denoise", "--help"]) == 0
    text = capsys.readouterr().out
    cluster = text.partition("a folder on a Ray cluster")[2].partition("\n\n")[0]
    assert all(option in cluster for option in ("--engine", "--address", "--worker-cpus"))


def printed_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_is_all_that_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path("tiny.safetensors"), random_model(states=1, window=3), {"steps": "0"})
    one = printed_json(["photo.jpg", "--json"], capsys)
    assert (one["output"], one["width"], one["height"]) == ("photo-restored.jpg", 60, 40)
    assert one["noise"]
    assert one["said"][0].startswith("estimated noise")
    assert printed_json(["upscale", "photo.jpg", "-o", "x.png", "--json"], capsys)["width"] == 120
    words = ["explain", "photo.jpg", "--at", "9,9", "-o", "map.png", "--model", "tiny.safetensors", "--json"]
    assert len(printed_json(words, capsys)["rows"]) == 2
    Path("set").mkdir()
    Image.effect_noise((40, 40), 60).save("set/a.png")
    words = ["evaluate", "--data", "set", "--sigma", "25", "--model", "tiny.safetensors", "--json"]
    assert set(printed_json(words, capsys)["scores"]) == {"set"}
    checkpoint = Path(__file__).parent / "authors" / "first.ckpt"
    words = ["convert", str(checkpoint), "-o", "a.safetensors", "--propagation", "--json"]
    assert printed_json(words, capsys)["config"]["propagation"] is True


@pytest.mark.slow
def test_json_of_an_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(Path("tiny.safetensors"), random_model(states=1, window=3), {"steps": "0"})
    found = printed_json(["export", "tiny.safetensors", "-o", "tiny.onnx", "--json"], capsys)
    assert found == {"output": "tiny.onnx", "bytes": Path("tiny.onnx").stat().st_size}


def test_tables_are_drawn_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_table("title", ["a", "b"], [["1.25", "2"], ["3", "4"]])
    assert capsys.readouterr().out == "title\na     b\n1.25  2\n3     4\n"
    complain("wrong")
    assert capsys.readouterr().err == "nlrn: wrong\n"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_table("title", ["a", "b"], [["1.25", "2"]])
    assert "┃" in screen.getvalue()
    complain("wrong")
    assert "\x1b[1;31mnlrn:\x1b[0m wrong" in screen.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    complain("again")
    assert screen.getvalue().endswith("nlrn: again\n")


@pytest.fixture
def program(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command, on the path of programs."""
    (here / "bin").mkdir()
    path = here / "bin" / "nlrn"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nlrn "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nlrn den", {"denoise"}),
        ("nlrn mo", {"models"}),
        ("nlrn ", set(NAMES)),
        ("nlrn denoise photo.jpg --noi", {"--noise"}),
        ("nlrn denoise --noise ", {"auto", "gaussian", "poisson", "photo"}),
        ("nlrn convert --trained-on ", {"1", "255"}),
        ("nlrn upscale --sca", {"--scale"}),
        ("nlrn denoise pho", {"photo.jpg"}),
        ("nlrn denoise photo.jpg -o b", {"bin/"}),
        ("nlrn pho", set()),  # where there is no command, bash completes names of files by itself
        ("nlrn completion ", {"bash", "zsh", "fish"}),
        ("nlrn --ver", {"--version"}),
    ],
)
def test_bash_completes(program: Path, capsys: pytest.CaptureFixture[str], line: str, expected: set[str]) -> None:
    assert run(["completion", "bash"]) == 0
    script = capsys.readouterr().out + (
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9\n"
        '_python_argcomplete nlrn; printf "%s\\n" "${COMPREPLY[@]}"; complete -p nlrn\n'
    )
    done = subprocess.run(["bash", "-u"], input=script, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    *found, last = done.stdout.split("\n")[:-1]
    assert {word.rstrip(" ") for word in found if word} == expected
    assert last.endswith("-F _python_argcomplete nlrn")
    assert "-o default" in last


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_asks_for_every_command_and_option(
    program: Path, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert run(["completion", shell]) == 0
    text = capsys.readouterr().out
    registered = {"bash": "-F _python_argcomplete", "zsh": "compdef _python_argcomplete", "fish": "complete --command"}
    assert f"{registered[shell]} nlrn" in text
    assert "_ARGCOMPLETE_SHELL" in text
    for line, expected in (("nlrn ", NAMES), ("nlrn denoise photo.jpg --sigma-m", ["--sigma-map"])):
        asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": shell}
        asked |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_DFS": "\t", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
        answer = {"_ARGCOMPLETE_STDOUT_FILENAME": str(program.with_name("answer"))}  # in place of the script's pipe
        done = subprocess.run(["nlrn"], env=os.environ | asked | answer, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
        found = program.with_name("answer").read_text().split("\n")
        assert [re.split("[\t:]", word)[0] for word in found] == expected
        assert all(len(word) > len(name) + 1 for word, name in zip(found, expected, strict=True))  # what it is, too


def test_tab_does_not_wait_for_torch_and_no_other_start_for_argcomplete(program: Path) -> None:
    line = {"COMP_LINE": "nlrn denoise --sig", "COMP_POINT": "18"}
    for more, absent in ((line | {"_ARGCOMPLETE": "1"}, ("torch", "numpy")), ({}, ("argcomplete",))):
        command = [sys.executable, "-X", "importtime", "-m", "nlrn", "--version"]
        answer = {"_ARGCOMPLETE_STDOUT_FILENAME": os.devnull}
        done = subprocess.run(command, env=os.environ | answer | more, capture_output=True, text=True, check=True)
        imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
        assert "nlrn.cli.completion" in imported
        assert not imported.intersection(absent)


def test_without_the_extra_completion_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['argcomplete'] = None; from nlrn.cli import run; sys.exit(run(sys.argv[1:]))"
    for words, more in (["completion", "bash"], {}), ([], {"_ARGCOMPLETE": "1"}):
        command, env = [sys.executable, "-c", hidden, *words], os.environ | more
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert done.stderr == 'nlrn: this needs argcomplete: pip install "nlrn[completion]"\n'
        assert done.stdout == ""
