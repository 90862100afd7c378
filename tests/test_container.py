"""The Dockerfile, read: by hadolint where it is installed, and line by line for what must hold here.

Its steps are run by scripts/container_in_chroot.py, as root, in minutes.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nlrn import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
OWN = '$(find wheels -name "*.whl")'
KNOWN = {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}


def lines(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest), continued lines joined, comments left out."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", plain)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stages(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction, rest in lines(text):
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, rest))
    return found


def problems(text: str) -> list[str]:
    """What a linter would say, of what matters here."""
    found = [f"{word} is not known" for word, _ in lines(text) if word not in KNOWN]
    for word, rest in lines(text):
        if word == "FROM" and (":" not in rest or rest.split()[0].endswith(":latest")):
            found.append(f"{rest} is not pinned")
        if word == "COPY" and "--from" not in rest:
            *sources, _ = shlex.split(rest)
            named = [source for source in sources if "[" not in source]  # a pattern need not be there
            found += [f"there is no {source}" for source in named if not (ROOT / source).exists()]
        if word == "RUN" and "apt-get install" in rest:
            tidy = (
                "apt-get update" in rest and "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists" in rest
            )
            found += [] if tidy else [f"not tidy: {rest}"]
        if (
            word == "RUN"
            and "pip install" in rest
            and not ("--no-cache-dir" in rest and "-c wheels/constraints.txt" in rest)
        ):
            found.append(f"pip without constraints, or with a cache: {rest}")
        if word in ("ENTRYPOINT", "CMD") and not rest.startswith("["):
            found.append("a shell would keep SIGTERM to itself")
    last = dict(stages(text)[-1])
    user = last.get("USER", "root")
    if user.split(":")[0] in ("root", "0"):
        found.append("runs as root")
    if "/healthz" not in last.get("HEALTHCHECK", ""):
        found.append("no health check")
    if not any(OWN in rest for word, rest in lines(text) if word == "RUN"):
        found.append("wheels of the builder's own are not taken")
    return found


def test_the_file_says_what_it_must() -> None:
    assert problems(TEXT) == []


HADOLINT = Path(sys.executable).with_name("hadolint")


if sys.platform == "linux" and platform.machine() == "x86_64":  # elsewhere it is not in the dev set

    @pytest.mark.parametrize(
        ("text", "rules"), [(TEXT, []), (TEXT.replace("--no-install-recommends ", ""), ["DL3015"] * 2)]
    )
    def test_hadolint_finds_nothing(text: str, rules: list[str]) -> None:
        command = [str(HADOLINT), "--format", "json", "-"]
        done = subprocess.run(command, check=False, input=text, capture_output=True, text=True)
        assert [problem["code"] for problem in json.loads(done.stdout)] == rules, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("USER 10001\n", "", "runs as root"),
        ("USER 10001\n", "USER root\n", "runs as root"),
        ("/healthz", "/", "no health check"),
        (f" {OWN}", "", "wheels of the builder's own"),
        ("python:3.11-slim AS", "python AS", "python AS build is not pinned"),
        ("COPY src src", "COPY source src", "there is no source"),
        ("-c wheels/constraints.txt ", "", "pip without constraints"),
        ('ENTRYPOINT ["nlrn", "serve"', 'ENTRYPOINT nlrn serve ["', "a shell would keep"),
        ("WORKDIR", "ADD", "ADD is not known"),
    ],
)
def test_what_must_not_be_is_found(was: str, becomes: str, said: str) -> None:
    assert was in TEXT
    assert any(problem.startswith(said) for problem in problems(TEXT.replace(was, becomes, 1)))


def test_what_lies_in_the_folder_of_wheels_is_installed_and_it_may_be_empty(tmp_path: Path) -> None:
    (install,) = [rest for word, rest in lines(TEXT) if word == "RUN" and "pip install" in rest]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "constraints.txt").touch()
    words = f"printf '%s\\n' {install}"
    usual = ["/opt/nlrn/bin/pip", "install", "--no-cache-dir", "-c", "wheels/constraints.txt", ".[web]"]
    assert subprocess.check_output(["sh", "-c", words], cwd=tmp_path, text=True).splitlines() == usual
    (tmp_path / "wheels" / "torch-1-py3-none-any.whl").touch()
    found = subprocess.check_output(["sh", "-c", words], cwd=tmp_path, text=True).splitlines()
    assert found == [*usual[:-1], "wheels/torch-1-py3-none-any.whl", ".[web]"]


def test_its_command_is_one_of_ours_and_its_port_the_one_that_is_watched() -> None:
    last = dict(stages(TEXT)[-1])
    options = cli._parser().parse_args(json.loads(last["ENTRYPOINT"])[1:])
    assert (options.host, options.port) == ("0.0.0.0", int(last["EXPOSE"]))
    assert f"http://127.0.0.1:{options.port}/healthz" in last["HEALTHCHECK"]
    watch = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    compile(watch[-1], "<health check>", "exec")


def test_what_is_copied_is_let_through_and_built_files_are_not() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert "**/*.so" in ignored
    copied = [
        name for word, rest in lines(TEXT) if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    ]
    copied = [name.replace("[s]", "s") for name in copied]  # a pattern, so that it need not be there
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
