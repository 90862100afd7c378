"""The steps of the Dockerfile, where no container engine runs: in chroots of Debian, then an image through the service.

    sudo python scripts/container_in_chroot.py build/container

Needs root and debootstrap (Debian: apt-get install debootstrap). Every stage is a copy of one base, Debian bookworm
with its Python 3.11, which stands in for python:3.11-slim; COPY obeys .dockerignore as far as this repository uses
it. The network is the machine's own. The last stage's ENTRYPOINT is run as its USER with its ENV, the HEALTHCHECK must
pass, an image must come back, and STOPSIGNAL must end it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "python3 python3-venv ca-certificates"
PIP = ("PIP_CERT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")  # of this machine, for the network


def steps(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest), continued lines joined, comments left out."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", plain).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


class Stage:
    """A root, the folder and the environment that the next step begins with, and what its image says of itself."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, "/"
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.says: dict[str, str] = {}

    def command(self, words: list[str], user: str = "0") -> list[str]:
        """Of a process in the root, in its folder."""
        inside = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        return ["chroot", f"--userspec={user}", str(self.root), "/bin/sh", "-c", inside]

    @contextmanager
    def proc(self) -> Iterator[None]:
        """/proc, as every container has it."""
        subprocess.run(["mount", "--bind", "/proc", str(self.root / "proc")], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", str(self.root / "proc")], check=True)

    def run(self, line: str) -> None:
        network = {name: os.environ[name] for name in PIP if name in os.environ}
        with self.proc():
            subprocess.run(self.command(["/bin/sh", "-c", line]), check=True, env=network | self.environment)

    def copy(self, words: list[str], source: Path) -> None:
        """A folder is copied as its content; a target that ends in / is a folder."""
        *names, to = words
        target = self.root / self.folder.lstrip("/") / to if not to.startswith("/") else self.root / to.lstrip("/")
        found = [path for name in names for path in source.glob(name.lstrip("/"))]
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info") if source == ROOT else None
        for path in found:
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)


def base(folder: Path) -> Path:
    """Debian with Python, made once."""
    root = folder / "base"
    if not (root / "made").exists():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True)
        for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            (root / file.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file.lstrip("/"))
        stage = Stage(root)
        stage.run(f"apt-get update && apt-get install --no-install-recommends -y {BASE}")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
        stage.run("ln -s /usr/bin/python3 /usr/local/bin/python")
        (root / "made").touch()
    return root


def build(folder: Path) -> Stage:
    """Every step of the Dockerfile; the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for word, rest in steps((ROOT / "Dockerfile").read_text()):
        began = time.monotonic()
        print(f"{word} {rest}", flush=True)
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            shutil.rmtree(folder / name, ignore_errors=True)
            subprocess.run(["cp", "-a", str(base(folder)), str(folder / name)], check=True)
            stages[name] = stage = Stage(folder / name)
        elif word == "RUN":
            stage.run(rest)
        elif word == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            words = shlex.split(rest)
            other = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
            stage.copy(words, stages[other].root if other else ROOT)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        else:
            stage.says[word] = rest
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return stage


def serve(stage: Stage) -> None:
    """What the image does when it is run."""
    user, environment = stage.says["USER"], stage.environment | {"OMP_NUM_THREADS": "2"}
    health = stage.command(json.loads(stage.says["HEALTHCHECK"].partition("CMD ")[2]), user)
    service = subprocess.Popen(stage.command(json.loads(stage.says["ENTRYPOINT"]), user), env=environment)
    try:
        until = time.monotonic() + 120
        while subprocess.run(health, check=False, env=environment, capture_output=True).returncode:
            if time.monotonic() > until:
                raise SystemExit("the health check never passed")
            time.sleep(1)
        print("HEALTHCHECK passes", flush=True)
        assert restored(int(stage.says["EXPOSE"])).startswith(b"\x89PNG\r\n\x1a\n")
        print("an image comes back", flush=True)
    finally:
        stop = signal.Signals[stage.says["STOPSIGNAL"]]
        service.send_signal(stop)
        code = service.wait(60)
    print(f"{stop.name} ends it with {code}")
    if code not in (0, -stop):  # uvicorn raises the signal again once all is shut down
        raise SystemExit(code)


def restored(port: int) -> bytes:
    """The example photograph through the service's form."""
    image, mark = (ROOT / "examples" / "camera.png").read_bytes(), "boundary-of-the-form"
    form = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
    body = form + image + f"\r\n--{mark}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/denoise", body, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        content: bytes = answer.read()
        return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the roots are made; some gigabytes")
    folder = parser.parse_args().folder.resolve()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("this needs root, and debootstrap")
    folder.mkdir(parents=True, exist_ok=True)
    stage = build(folder)
    with stage.proc():
        serve(stage)


if __name__ == "__main__":
    main()
