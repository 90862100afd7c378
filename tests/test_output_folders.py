"""What lies in an output folder under the names of this package's own files: never emptied, never written through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from nlrn.batch.manifest import LOCK, MANIFEST, Manifest
from nlrn.batch.plan import plan
from nlrn.batch.run import Restore, run
from nlrn.errors import ConfigError
from nlrn.io.image import ImageData
from nlrn.system.atomic import open_record
from nlrn.training.logging import LOG, TrainingLog

TEXT = b"an original\nwhich must not change"


def _same() -> Restore:
    def restore(image: ImageData, form: str) -> ImageData:
        return image

    return restore


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    Image.effect_noise((9, 9), 50).save(folder / "a.png")
    Image.effect_noise((9, 9), 50).save(folder / "below" / "b.png")
    return folder


def _symbolic(path: Path, original: Path) -> None:
    path.symlink_to(original)


def _relative(path: Path, original: Path) -> None:
    path.symlink_to(os.path.relpath(original, path.parent))


def _hard(path: Path, original: Path) -> None:
    path.hardlink_to(original)


def _pipe(path: Path, original: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, original: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_symbolic, _relative, _hard, _pipe, _folder])
@pytest.mark.parametrize("name", [LOCK, MANIFEST])
def test_a_lock_or_manifest_that_is_no_file_of_its_own_is_refused(
    images: Path, tmp_path: Path, name: str, make: Callable[[Path, Path], None]
) -> None:
    original, output = tmp_path / "original.txt", tmp_path / "out"
    original.write_bytes(TEXT)
    output.mkdir()
    make(output / name, original)
    with pytest.raises(ConfigError, match=r"link|not a regular file|Is a directory"):
        run(plan(images, output), _same, output, "work")
    assert original.read_bytes() == TEXT
    assert not list(output.glob("*.png"))
    (output / name).rmdir() if (output / name).is_dir() else (output / name).unlink()
    assert run(plan(images, output), _same, output, "work").done == ["a.png"]  # nothing is held after a refusal


def test_a_link_to_nowhere_makes_no_file(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / LOCK).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        run(plan(images, output), _same, output, "work")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", [TEXT, b"\x89PNG\r\n\x1a\n", b"process 7 on host\nand more\n", b"\n", b"x" * 5000])
def test_a_lock_file_of_something_else_keeps_its_content(images: Path, tmp_path: Path, content: bytes) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / LOCK).write_bytes(content)
    with pytest.raises(ConfigError, match="is not a lock file of nlrn"):
        run(plan(images, output), _same, output, "work")
    assert (output / LOCK).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"process 7 on host\n", b"process 7 on a-ho", b"process 1 on \xc3\xa9\n"])
def test_the_lock_file_of_a_killed_run_is_taken_over(images: Path, tmp_path: Path, content: bytes) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / LOCK).write_bytes(content)
    assert run(plan(images, output), _same, output, "work").done == ["a.png"]
    assert (output / LOCK).read_bytes().startswith(f"process {os.getpid()} on ".encode())


@pytest.mark.parametrize("target", ["in/below", "elsewhere", "out/other"])
def test_results_are_not_written_through_a_linked_folder(images: Path, tmp_path: Path, target: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / target).mkdir(exist_ok=True)
    (output / "below").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match="below is a symbolic link"):
        plan(images, output, recursive=True, ending="-x")
    assert sorted(path.name for path in (tmp_path / target).iterdir()) == (["b.png"] if "in" in target else [])
    (output / "below").unlink()
    jobs = plan(images, output, recursive=True, ending="-x")
    (output / "below").symlink_to(tmp_path / target)  # made between the plan and the result
    with pytest.raises(ConfigError, match="below is a symbolic link"):
        run(jobs, _same, output, "work")
    assert not list((tmp_path / target).glob("*-x.png"))


def test_an_output_folder_may_itself_be_named_by_a_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    output = tmp_path / "out"
    output.symlink_to(tmp_path / "disk")
    assert len(run(plan(images, output, recursive=True), _same, output, "work").done) == 2
    assert (tmp_path / "disk" / "below" / "b.png").exists()


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"in":' * 100_000, b"\xff\x00", b"null", b"1e999"])
def test_a_manifest_line_that_cannot_be_read_is_passed_over(images: Path, tmp_path: Path, line: bytes) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / MANIFEST).write_bytes(line + b"\n")
    assert run(plan(images, output), _same, output, "work").done == ["a.png"]
    with Manifest(output, "work") as manifest:
        assert list(manifest.records) == ["a.png"]
    assert (output / MANIFEST).read_bytes().startswith(line + b"\n")


@pytest.mark.parametrize("make", [_symbolic, _hard, _pipe])
def test_the_log_of_a_training_is_a_file_of_its_own(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    original = tmp_path / "original.txt"
    original.write_bytes(TEXT)
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / LOG, original)
    with pytest.raises(ConfigError, match=r"link|not a regular file"), TrainingLog(tmp_path / "run", show=False):
        pass
    assert original.read_bytes() == TEXT


def test_records_are_appended_and_read_back(tmp_path: Path) -> None:
    for number in range(3):
        with open_record(tmp_path / "record") as file:
            file.write(b"%d\n" % number)
            file.seek(0)
            assert file.read() == b"".join(b"%d\n" % n for n in range(number + 1))
