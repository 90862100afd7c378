"""Folders in object stores: the results of a folder on a disk, each put once, whoever is killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT, digests, fill, give, same
from objectstore import KEYS, Store, emptied, serving
from PIL import Image

from nlrn.batch.manifest import MANIFEST, PROBE, StoreManifest
from nlrn.batch.plan import Encoded, plan
from nlrn.batch.run import Outcome, run
from nlrn.batch.s3 import ObjectPath, place
from nlrn.cli import run as command
from nlrn.errors import ConfigError, InputError, StoreError

ALBUM = ObjectPath("album")


@pytest.fixture(scope="session")  # a process remembers where it is
def server() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def store(server: str) -> Store:
    return emptied(server)


def words_of(source: str | Path, output: str | Path, weights: Path, *more: str) -> list[str]:
    words = ["denoise", str(source), "-o", str(output), "-r", "--sigma", "20", "--model", str(weights)]
    return [*words, "--precision", "fp32", "--memory", "512", *more]


def digests_in(store: Store, under: str) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in store.files(under).items()}


# -- places


def test_places_are_paths_or_folders_of_a_store() -> None:
    assert place("album/x") == Path("album/x")
    found = place("s3://album/in/deep/")
    assert found == ObjectPath("album", "in/deep")
    assert (str(found), found.name, str(place("s3://album"))) == ("s3://album/in/deep", "deep", "s3://album")
    assert str(ObjectPath("album") / "a" / "b.png") == "s3://album/a/b.png"
    odd = ("s3://album//x", "s3://album/../x", "s3://album/./x", "s3://album/x?versionId=3")
    for text in ("s3://", "s3:///x", "s3://Bad Bucket/in", *odd):
        with pytest.raises(ConfigError, match="names no folder of a store"):
            place(text)
    for text in ("gs://album/x", "S3://album/x", "s3:/album/x"):
        with pytest.raises(ConfigError, match=r"of object stores s3://BUCKET/FOLDER is known, not "):
            place(text)
    assert ObjectPath("album", "in").contains(ObjectPath("album", "in/out"))
    assert not ObjectPath("album", "in").contains(ObjectPath("album", "inner"))
    assert not ObjectPath("album", "in").contains(ObjectPath("other", "in"))


def test_what_is_put_is_put_once_and_says_what_it_is(store: Store) -> None:
    target = ALBUM / "out/a.png"
    assert target.metadata() == {}
    first = target.put(b"one", {"nlrn-work": "w"})
    assert first is not None
    assert target.put(b"two", {"nlrn-work": "x"}) is None
    assert target.metadata() == {"nlrn-work": "w"}
    metadata = store.get("out/a.png")
    assert (metadata["Body"].read(), metadata["Metadata"], metadata["ContentType"]) == (
        b"one",
        {"nlrn-work": "w"},
        "image/png",
    )
    assert target.put(b"three", over="0123") is None
    second = target.put(b"three", over=first)
    assert second is not None
    assert target.put(b"four", over=first) is None
    assert store.puts("out") == {"a.png": 2}
    store.client.delete_object(Bucket="album", Key="out/a.png")
    assert target.metadata() == {}
    store.put("out/a.png/below.png", b"")
    assert target.put(b"six", over=second) is None


def test_of_many_that_put_at_a_time_one_succeeds(store: Store) -> None:
    results: list[str | None] = []
    start = threading.Barrier(8)

    def try_it(number: int) -> None:
        start.wait()
        results.append((ALBUM / "out/race.png").put(b"%d" % number))

    threads = [threading.Thread(target=try_it, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found is not None for found in results) == 1
    assert store.puts("out") == {"race.png": 1}


def test_an_object_is_read_as_it_was_listed(store: Store) -> None:
    store.put("in/a.png", b"0123456789")
    store.put("in/empty.png", b"")
    found = {path.name: path for path in (ALBUM / "in").below()}
    assert found["a.png"].size == 10
    assert (found["a.png"].read(100), found["a.png"].read(3), found["empty.png"].read(3)) == (
        b"0123456789",
        b"0123",
        b"",
    )
    store.put("in/a.png", b"0123456789a")
    with pytest.raises(InputError, match="has changed since"):
        found["a.png"].read(100)
    store.client.delete_object(Bucket="album", Key="in/a.png")
    with pytest.raises(InputError, match=r"there is no s3://album/in/a\.png"):
        found["a.png"].read(100)


# -- the plan


def test_the_plan_is_that_of_the_same_folder_on_a_disk(store: Store, tmp_path: Path) -> None:
    fill(tmp_path / "in", 5)
    (tmp_path / "in" / "deep" / "deeper").mkdir()
    for name in ("deep/deeper/x.gif", "notes.txt", ".hidden.png", "X.PNG", "deep-1.png", "d e\u00e9#?%+.png"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / ".git").mkdir()
    (tmp_path / "in" / ".git" / "a.png").touch()
    store.fill(tmp_path / "in", "in")
    store.put("inner/a.png", b"")
    store.put("in/deep/", b"")  # what consoles put for an empty folder
    store.put("in/marker.png/", b"")
    for recursive in (False, True):
        for more in ({}, {"ending": "_clean", "form": ".tif"}):
            here = plan(tmp_path / "in", tmp_path / "out", recursive=recursive, **more)
            there = plan(ALBUM / "in", ALBUM / "out", recursive=recursive, **more)
            assert [job.name for job in there] == [job.name for job in here]
            relative = [job.target.relative_to(tmp_path / "out").as_posix() for job in here]
            assert [job.target.key for job in there] == [f"out/{way}" for way in relative]
            down = plan(ALBUM / "in", tmp_path / "out", recursive=recursive, **more)
            assert [job.target for job in down] == [job.target for job in here]
    assert [job.source.read(9) for job in plan(ALBUM / "in", ALBUM / "out") if job.name.startswith("d e")] == [b""]


def test_what_cannot_be_planned_is_said(store: Store, tmp_path: Path) -> None:
    store.put("in/a.png", b"")
    for output in ("in", "in/out"):
        with pytest.raises(ConfigError, match="lies inside"):
            plan(ALBUM / "in", ALBUM / output)
    with pytest.raises(ConfigError, match="lies inside"):
        plan(ALBUM, ALBUM / "out")
    with pytest.raises(InputError, match="no folder s3://album/none"):
        plan(ALBUM / "none", tmp_path / "out")
    with pytest.raises(InputError, match=r"no folder s3://album/in/a\.png"):
        plan(ALBUM / "in/a.png", tmp_path / "out")
    with pytest.raises(InputError, match="no bucket nowhere"):
        plan(ObjectPath("nowhere", "in"), tmp_path / "out")
    store.put("twice/a.png", b"")
    store.put("twice/A.png", b"")
    assert len(plan(ALBUM / "twice", ALBUM / "out")) == 2  # a store tells them apart
    store.put("twice/a.gif", b"")
    with pytest.raises(ConfigError, match="would both become"):
        plan(ALBUM / "twice", ALBUM / "out", form=".png")
    store.put("out/in/x.png", b"")
    store.put("out/in/in/x.png", b"")
    with pytest.raises(ConfigError, match=r"out/in/x\.png is an input"):
        plan(ALBUM / "out/in", ALBUM / "out", recursive=True)
    (tmp_path / "local").mkdir()
    for name in ("a.png?versionId=1.png", os.fsdecode(b"\xff.png")):
        (tmp_path / "local" / name).touch()
        assert len(plan(tmp_path / "local", tmp_path / "out")) == 1
        with pytest.raises(ConfigError, match="its result cannot lie in a store"):
            plan(tmp_path / "local", ALBUM / "out")
        (tmp_path / "local" / name).unlink()
    for key in ("odd/../../b.png", "odd//b.gif", "odd/./b.png", "odd/b.png?versionId=2/c.png", f"odd/{'b' * 1020}.png"):
        store.put(key, b"")
        with pytest.raises(ConfigError, match="no name of a folder or file"):
            plan(ALBUM / "odd", ALBUM / "out", recursive=True)
        store.client.delete_object(Bucket="album", Key=key)


# -- the work


def test_stacks_are_refused_with_what_to_do_and_stop_no_image(
    store: Store, tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 2)
    pages = [Image.new("L", (18, 16), 50 * i) for i in range(3)]
    for name in ("stack.tif", "moving.gif"):
        pages[0].save(tmp_path / "in" / name, save_all=True, append_images=pages[1:])
    store.fill(tmp_path / "in", "in")
    for source, output in (("s3://album/in", tmp_path / "down"), (tmp_path / "in", "s3://album/up")):
        assert command(words_of(source, output, weights, "--json")) == 1
        outcome = json.loads(capfd.readouterr().out)
        assert (len(outcome["done"]), outcome["failed"].keys()) == (2, {"stack.tif", "moving.gif"})
        for reason in outcome["failed"].values():
            assert "3 frames or pages" in reason
            assert "is restored from a disk to a disk: copy it" in reason


def test_results_are_those_of_a_folder_on_a_disk_wherever_they_come_from_and_go(
    store: Store, tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 12, bad=8)
    store.fill(tmp_path / "in", "in")
    before = digests_in(store, "in")
    assert command([*words_of(tmp_path / "in", tmp_path / "here", weights), "-q"]) == 1
    expected = digests(tmp_path / "here")
    assert len(expected) == 10
    capfd.readouterr()

    def outcome_of(source: str | Path, output: str | Path, *more: str) -> dict[str, Any]:
        assert command(words_of(source, output, weights, "--json", *more)) == 1
        metadata = capfd.readouterr()
        found: dict[str, Any] = json.loads(metadata.out)
        assert found["failed"]["008.png"] == "truncated"
        assert found["failed"].keys() == {"008.png", "deep/000.jpg"}
        return found

    for source, output, jobs in [
        ("s3://album/in", "s3://album/out", "1"),
        ("s3://album/in/", "s3://album/two/workers/", "2"),
        (str(tmp_path / "in"), "s3://album/up", "1"),
        ("s3://album/in", str(tmp_path / "down"), "1"),
    ]:
        assert len(outcome_of(source, output, "-j", jobs)["done"]) == 10
        kept = digests(Path(output)) if output.startswith("/") else digests_in(store, output.strip("/")[11:])
        assert kept == expected
        again = outcome_of(source, output)
        assert (len(again["skipped"]), again["done"]) == (10, [])
    assert store.puts("two") == {f"workers/{name}": 1 for name in (*expected, PROBE)}
    assert digests_in(store, "in") == before
    assert not list((tmp_path / "down").rglob(".nlrn-*.part"))
    metadata = store.get("out/001.png")["Metadata"]
    assert metadata["nlrn-output"] == expected["001.png"]
    assert metadata["nlrn-input"] == before["001.png"]


def test_results_that_are_there_are_refused_left_or_replaced(
    store: Store, tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 4)
    store.fill(tmp_path / "in", "in")
    store.put("out/001.png", b"mine")
    words = words_of("s3://album/in", "s3://album/out", weights)
    assert command(words) == 2
    assert "s3://album/out/001.png exists already: see --skip-existing" in capfd.readouterr().err
    assert store.files("out") == {"001.png": b"mine"}
    assert command([*words, "--skip-existing"]) == 0
    metadata = capfd.readouterr().out
    assert "3 images restored" in metadata
    assert metadata.endswith("1 already done, 0 refused; metadata in s3://album/out says of what\n")
    assert store.files("out")["001.png"] == b"mine"
    assert command([*words, "--overwrite"]) == 0
    assert store.files("out")["001.png"] != b"mine"
    assert store.puts("out")["001.png"] == 2
    before = store.files("out")
    assert command([*words, "--sigma", "30"]) == 2  # other work
    assert "s3://album/out/001.png and 3 more exist already" in capfd.readouterr().err
    store.put("in/001.png", (tmp_path / "in" / "002.png").read_bytes())
    assert command(words) == 1
    assert "001.png: s3://album/in/001.png has changed since its result was made" in capfd.readouterr().err
    assert store.files("out") == before
    assert command([*words, "--overwrite"]) == 0
    assert store.files("out")["001.png"] == before["002.png"]
    assert sum(store.puts("out").values()) - store.puts("out")[PROBE] == 6


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_result_that_appears_meanwhile_is_not_replaced(store: Store, tmp_path: Path, overwrite: bool) -> None:
    """A late zombie of another run, or any client: the store itself refuses to replace what is there or has changed."""
    fill(tmp_path / "in", 5)
    jobs = plan(tmp_path / "in", ALBUM / "out")
    if overwrite:
        for job in jobs[1:]:
            store.put(f"out/{job.name}", b"as it was")

    def beside(count: int) -> None:
        if count == 1:
            store.put(f"out/{jobs[2].name}", b"another's")

    outcome = run(jobs, partial(give, same), ALBUM / "out", "work", tick=beside, overwrite=overwrite)
    reason = "has changed since this run began" if overwrite else "exists already; give another name, or --overwrite"
    assert outcome.failed == {jobs[2].name: f"s3://album/out/{jobs[2].name} {reason}"}
    files = store.files("out")
    assert files[jobs[2].name] == b"another's"
    assert b"as it was" not in files.values()


def test_an_answer_that_is_lost_does_not_make_a_result_somebody_elses(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client tries again by itself, and meets what it has put."""
    fill(tmp_path / "in", 2)
    jobs = plan(tmp_path / "in", ALBUM / "out")
    once = ObjectPath.put
    monkeypatch.setattr(ObjectPath, "put", lambda self, *a, **k: (once(self, *a, **k), once(self, *a, **k))[1])
    assert len(run(jobs, partial(give, same), ALBUM / "out", "work").done) == len(jobs)
    with_more = ObjectPath.metadata
    monkeypatch.setattr(ObjectPath, "metadata", lambda self: with_more(self) | {"of-the-store": "x"})
    fill(tmp_path / "more", 2)
    assert len(run(plan(tmp_path / "more", ALBUM / "2"), partial(give, same), ALBUM / "2", "work").done) == 1


def test_what_a_store_does_not_take_ends_the_run_after_some(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried for long, and there may be a million."""
    fill(tmp_path / "in", 12)
    jobs = plan(tmp_path / "in", ALBUM / "out")
    put = ObjectPath.put

    def fails(self: ObjectPath, data: bytes, metadata: Any = (), *, over: str = "") -> str | None:
        if self.name in refused:
            raise InputError(f"{self}: slow down")
        return put(self, data, metadata, over=over)

    monkeypatch.setattr(ObjectPath, "put", fails)
    refused = {jobs[1].name, jobs[2].name, jobs[4].name}
    outcome = run(jobs, partial(give, same), ALBUM / "out", "work")
    assert outcome.failed == {name: f"s3://album/out/{name}: slow down" for name in refused}
    refused = {job.name for job in jobs}
    store.client.delete_object(Bucket="album", Key=f"out/{jobs[6].name}")
    with pytest.raises(StoreError, match=r"3 results one after the other were not taken; the last: .*slow down"):
        run(jobs, partial(give, same), ALBUM / "out", "work")


def test_who_made_a_result_is_told_by_the_images_name_too(store: Store, tmp_path: Path) -> None:
    for name in ("a.gif", "a.png"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / name)
    assert run(plan(tmp_path / "a.gif", ALBUM / "out"), partial(give, same), ALBUM / "out", "work").done == ["a.gif"]
    with pytest.raises(ConfigError, match="exists already"):
        run(plan(tmp_path / "a.png", ALBUM / "out"), partial(give, same), ALBUM / "out", "work")


@pytest.mark.parametrize(("page", "many"), [("50", 120), pytest.param("1000", 1100, marks=pytest.mark.slow)])
def test_any_name_and_any_number_of_objects(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, many: int
) -> None:
    """More than a page of a listing, of S3 and of one whose pages are short; names with signs of an address."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", page)
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    for i in range(many):
        store.put(f"in/many/{i}.png", data)
    strange = [
        f"a{mark}b {mark}.png" for mark in ("+", "?", "#", "%20", "\u00e9", "'", '"', "*", "{}", "~", "\t", "&=")
    ]
    for name in strange:
        store.put(f"in/{name}", data)
    jobs = plan(ALBUM / "in", ALBUM / "out", recursive=True)
    assert len(jobs) == many + len(strange)
    assert len(plan(ALBUM / "in", ALBUM / "out")) == len(strange)
    some = [job for job in jobs if job.name in strange]
    for done in (len(strange), 0):
        assert len(run(some, partial(give, same), ALBUM / "out", "work").done) == done
    assert store.files("out").keys() == set(strange)


def test_what_is_for_folders_and_a_store_that_does_not_answer_are_said_at_once(
    store: Store, tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 2)
    store.fill(tmp_path / "in", "in")

    def says(words: list[str], code: int, text: str) -> None:
        assert command(words) == code
        metadata = capfd.readouterr().err
        assert metadata.startswith("nlrn")
        assert metadata.count("\n") == 1
        assert text in metadata, metadata
        assert "Traceback" not in metadata

    says(words_of("s3://album/in/001.png", tmp_path / "x", weights), 1, "there is no folder s3://album/in/001.png")
    says(words_of(tmp_path / "in" / "001.png", "s3://album/x.png", weights)[:4], 2, "takes the results of a folder")
    says(words_of("s3://album/in", "s3://album/out/x.png", weights), 2, "is the name of an image")
    says(words_of("s3://album/in", "s3://nowhere/out", weights), 1, "there is no bucket nowhere")
    says(words_of("gs://album/in", tmp_path / "x", weights), 2, "is known, not gs://")
    words = [sys.executable, "-m", "nlrn", *words_of(tmp_path / "in", "s3://album/out", weights)]
    elsewhere = {**os.environ, "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    found = subprocess.run(words, env=elsewhere, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "value", "code", "said"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", 1, "Could not connect"),
        *(
            pytest.param(name, value, 2, f"AWS_ENDPOINT_URL or FSSPEC_S3 is invalid{more}", marks=pytest.mark.slow)
            for name, value, more in (
                ("AWS_ENDPOINT_URL", "garbage", ": Invalid endpoint: garbage"),
                ("FSSPEC_S3", '{"ano": true}', ": AioSession"),
                ("FSSPEC_S3", '{"key": "a", "username": "b"}', ""),
            )
        ),
    ],
)
def test_a_store_that_cannot_be_asked_is_one_line(
    server: str, tmp_path: Path, weights: Path, name: str, value: str, code: int, said: str
) -> None:
    words = [sys.executable, "-m", "nlrn", *words_of("s3://album/in", tmp_path / "x", weights)]
    elsewhere = {**os.environ, "AWS_MAX_ATTEMPTS": "1", name: value}
    found = subprocess.run(words, env=elsewhere, capture_output=True, text=True, timeout=120, check=False)
    assert found.stderr.startswith(f"nlrn: s3://album/in: {said}"), found.stderr
    assert (found.returncode, found.stderr.count("\n")) == (code, 1)


def test_a_store_that_replaces_what_it_should_not_is_found_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some that call themselves compatible pass over a condition that they do not know."""
    fill(tmp_path / "in", 3)
    jobs, put = plan(tmp_path / "in", ALBUM / "out"), ObjectPath.put

    def passes_over(condition: str) -> Callable[..., str | None]:
        def puts(self: ObjectPath, data: bytes, metadata: Any = (), *, over: str = "") -> str | None:
            if condition == ("If-Match" if over else "If-None-Match"):
                store.put(self.key, data)
                return "its etag"
            return put(self, data, metadata, over=over)

        return puts

    for condition in ("If-None-Match", "If-Match"):
        monkeypatch.setattr(ObjectPath, "put", passes_over(condition))
        with pytest.raises(
            ConfigError, match=rf"the store of s3://album/out replaces existing objects .* \({condition}\)"
        ):
            run(jobs, partial(give, same), ALBUM / "out", "work")
        assert store.files("out") == {}


# -- several runs, and kills


def test_two_runs_at_once_put_each_result_once_and_both_end_well(store: Store, tmp_path: Path) -> None:
    """One may compute what the other has done; nothing is put twice or lost."""
    fill(tmp_path / "in", 24, bad=10)
    jobs = plan(tmp_path / "in", ALBUM / "out", recursive=True)
    assert len(jobs) == 24
    meet = threading.Barrier(2)

    def one(_: int) -> Outcome:
        met: list[int] = []
        return run(
            jobs, partial(give, same), ALBUM / "out", "work", tick=lambda count: met or met.append(meet.wait())
        )  # both have begun before either continues

    with ThreadPoolExecutor(2) as both:
        outcomes = list(both.map(one, range(2)))
    for outcome in outcomes:
        assert set(outcome.failed) == {"deep/000.jpg", "010.jpg", "020.jpg"}
        every = set(outcome.done) | set(outcome.failed) | set(outcome.skipped)  # the other may be a result ahead
        assert every == {job.name for job in jobs}
    puts = store.puts("out")
    assert set(puts.values()) == {1}
    assert len(puts) == 21 + 1  # and the probe


@pytest.mark.slow
def test_two_commands_at_once_put_each_result_once_and_both_end_well(
    store: Store, tmp_path: Path, weights: Path, count: Callable[[int], int]
) -> None:
    fill(tmp_path / "in", 40, bad=10)
    store.fill(tmp_path / "in", "in")
    assert command([*words_of(tmp_path / "in", tmp_path / "whole", weights), "-q"]) == 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    for round_ in range(count(6)):
        words = words_of("s3://album/in", f"s3://album/out-{round_}", weights, "--json")
        call = [sys.executable, "-m", "nlrn", *words]
        runs = [
            subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(2)
        ]
        outcomes = [json.loads(process.communicate(timeout=300)[0]) for process in runs]
        for outcome in outcomes:
            assert set(outcome["failed"]) == {"deep/000.jpg", "010.jpg", "020.jpg", "deep/030.jpg"}
            assert len(outcome["done"]) + len(outcome["skipped"]) == 36
        puts = store.puts(f"out-{round_}")
        assert set(puts.values()) == {1}
        del puts[PROBE]
        assert len(puts) == 36
        assert digests_in(store, f"out-{round_}") == digests(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_run_has_put_meanwhile_counts_where_it_is_the_same_work_on_the_same_image(
    store: Store, tmp_path: Path, overwrite: bool
) -> None:
    """Other options, or another image of that name, do not: then the result is refused, and what lies there stays."""
    fill(tmp_path / "in", 8)
    jobs = plan(tmp_path / "in", ALBUM / "out")
    if overwrite:
        for job in jobs:
            store.put(f"out/{job.name}", b"as it was")
    others = {"work": jobs[2], "elsewhere": jobs[3]}

    def beside(count: int) -> None:
        if count == 1:
            for work, job in others.items():
                with StoreManifest(ALBUM / "out", work, [job]) as other:
                    data = Path(str(job.source)).read_bytes()
                    other.publish(job, Encoded(hashlib.sha256(data).hexdigest(), b"theirs"), overwrite=overwrite)
            with StoreManifest(ALBUM / "out", "work", [jobs[4]]) as other:
                other.publish(jobs[4], Encoded("of another image", b"theirs"), overwrite=overwrite)

    outcome = run(jobs, partial(give, same), ALBUM / "out", "work", tick=beside, overwrite=overwrite)
    assert set(outcome.failed) == {jobs[3].name, jobs[4].name}
    assert len(outcome.done) == len(jobs) - 2
    files = store.files("out")
    assert {name for name in files if files[name] == b"theirs"} == {job.name for job in jobs[2:5]}
    assert set(store.puts("out").values()) == {2 if overwrite else 1, 1}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_runs_end_as_an_uninterrupted_one_and_nothing_is_put_twice(
    store: Store, tmp_path: Path, weights: Path, count: Callable[[int], int], workers: str
) -> None:
    """300 images of a store, a tenth of them bad, SIGKILL at random times, repeated to the end."""
    number, kills = count(300), 0
    fill(tmp_path / "in", number, bad=10)
    store.fill(tmp_path / "in", "in")
    chance = random.Random(int(workers))
    assert command([*words_of(tmp_path / "in", tmp_path / "whole", weights), "-q"]) == 1

    def start() -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        words = words_of("s3://album/in", "s3://album/out", weights, "-q", "-j", workers)
        arguments = [sys.executable, "-m", "nlrn", *words]
        return subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)

    for _ in range(count(10)):
        had, process = len(store.puts("out")), start()
        enough = had + 1 + chance.randrange(max(1, number // 20))
        while len(store.puts("out")) <= enough and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None:  # else it was faster
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    assert start().wait(300) == 1
    puts = store.puts("out")
    del puts[PROBE]
    assert set(puts.values()) == {1}
    assert digests_in(store, "out") == digests(tmp_path / "whole")
    assert len(puts) == number * 9 // 10


@pytest.mark.slow
def test_ray_works_in_a_store(store: Store, tmp_path: Path, weights: Path) -> None:
    """Its workers read objects, the command puts results; what is there is the local engine's."""
    fill(tmp_path / "in", 6)
    store.fill(tmp_path / "in", "in")
    assert command([*words_of(tmp_path / "in", tmp_path / "here", weights), "-q"]) == 0
    words = words_of("s3://album/in", "s3://album/out", weights, "-j", "2", "--engine", "ray", "--json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0"}
    call = [sys.executable, "-m", "nlrn", *words]
    for done in (6, 0):
        found = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300, check=True)
        assert len(json.loads(found.stdout)["done"]) == done
    puts = store.puts("out")
    del puts[PROBE]
    assert set(puts.values()) == {1}
    assert digests_in(store, "out") == digests(tmp_path / "here")


def test_manifests_of_a_disk_know_objects_by_their_etags(store: Store, tmp_path: Path) -> None:
    fill(tmp_path / "in", 3)
    store.fill(tmp_path / "in", "in")

    def again() -> Any:
        return run(plan(ALBUM / "in", tmp_path / "out"), partial(give, same), tmp_path / "out", "work")

    assert len(again().done) == 2
    records = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()]
    listed = {path.name: path.etag for path in (ALBUM / "in").below()}
    assert {record["in"]: record["etag"] for record in records} == {n: listed[n] for n in ("001.png", "002.png")}
    assert len(again().skipped) == 2
    store.put("in/001.png", (tmp_path / "in" / "002.png").read_bytes())
    assert again().failed == {
        "001.png": "s3://album/in/001.png has changed since its result was made, or the result has: see --overwrite"
    }


SILENT = """
import sys, threading, time
from nlrn.batch import s3 as objects
from nlrn.errors import InputError
objects.LIMIT = 1.0
for ask in (lambda p: p.put(b"1"), lambda p: p.metadata(), lambda p: p.is_dir()):
    try:
        ask(objects.ObjectPath("album", "x"))
    except InputError as error:
        print(error)
"""


def test_a_store_that_takes_a_question_and_is_silent_is_an_error_in_time() -> None:
    """Neither a read timeout nor a retry ends a put whose body is not read."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, **KEYS, "AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT / "src")}
        call = [sys.executable, "-c", SILENT]
        found = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "s3://album/x: the store does not answer in time\n" * 3, found.stderr
