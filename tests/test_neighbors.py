"""Planes restored with those before and after: the oracle's network on each group of planes, by every entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import tifffile
import torch
from networks import random_model
from PIL import Image
from test_stacks import stop_at

import nlrn
from nlrn.cli import run
from nlrn.cli.digest import digest
from nlrn.errors import ConfigError, InputError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.ranges import scale_of
from nlrn.inference.beside import Beside
from nlrn.inference.restorer import Restorer, Settings
from nlrn.io.axes import Lines, lines_of
from nlrn.models.checkpoint import save_model
from nlrn.models.nlrn import NLRN

ONE = Settings(precision="fp32", neighbors=1)


def attentive(**changes: object) -> NLRN:
    """A random network whose attention weighs more, so that the planes beside one matter."""
    model = random_model(**changes)
    with torch.no_grad():
        model.block.non_local.g.weight.mul_(8)
    return model


def planes(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth and noisy, on the whole of 0..1, float32."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    return (0.5 + 0.4 * np.sin(x / 5 + y / 7) + 0.1 * random.standard_normal(shape)).astype(np.float32)


def by_definition(model: NLRN, group: np.ndarray, sigma: float | np.ndarray, place: int) -> np.ndarray:
    """The oracle's plane [H, W] or [H, W, C] of a group [P, H, W] or [P, H, W, C]; sigma in 1/255, perhaps a map."""
    params = {name: p.double().numpy() for name, p in model.state_dict().items()}
    x = (group[:, None] if group.ndim == 3 else group.transpose(0, 3, 1, 2)).astype(np.float64)
    level = np.broadcast_to(np.asarray(sigma) / 255, (len(x), 1, *x.shape[2:]))
    out, _ = oracle.nlrn(x, params, states=2, window=5, sigma=level, reach=1)
    return out[place, 0] if group.ndim == 3 else out[place].transpose(1, 2, 0)


def group_of(stack: np.ndarray, index: int) -> tuple[Beside, np.ndarray, int]:
    """A plane's neighbours, the group and its place in it."""
    first = max(0, index - 1)
    group = stack[first : index + 2]
    place = index - first
    return Beside((*group[:place], *group[place + 1 :]), place), group, place


@pytest.mark.parametrize("kind", ["number", "map", "range"])
def test_a_plane_is_the_networks_among_its_neighbours(kind: str) -> None:
    model, stack = attentive(), planes(4, 13, 17)
    restorer = Restorer(model, settings=ONE)
    sigma = np.linspace(5, 50, 13 * 17).reshape(13, 17).astype(np.float32) if kind == "map" else 20.0
    chosen = (0.25, 0.75) if kind == "range" else "type"
    for index in range(4):
        around, group, place = group_of(stack, index)
        got = restorer.denoise(stack[index], sigma, value_range=chosen, beside=around)
        if kind == "range":
            scales = [scale_of(plane, chosen, 20.0) for plane in group]
            unit = np.stack([scales[place].unit(plane) for plane in group])
            expected = by_definition(model, unit, 40.0, place) * 0.5 + 0.25 + scales[place].beyond(stack[index])
        else:
            expected = by_definition(model, group, sigma, place)
        assert np.abs(got - expected).max() < 2e-5
        alone = restorer.denoise(stack[index], sigma, value_range=chosen)
        assert np.abs(got - alone).max() > 1e-3


def test_colour_by_a_model_of_colour_and_by_a_grey_one() -> None:
    stack = np.stack([planes(3, 13, 17, seed=c) for c in range(3)], axis=-1)
    model = attentive(in_channels=3)
    around, group, place = group_of(stack, 1)
    got = Restorer(model, settings=ONE).denoise(stack[1], 20.0, value_range="type", beside=around)
    assert np.abs(got - by_definition(model, group, 20.0, place)).max() < 2e-5
    grey = Restorer(attentive(), settings=ONE)
    got = grey.denoise(stack[1], 20.0, value_range="type", beside=around)
    for c in range(3):
        one = grey.denoise(stack[1, ..., c], 20.0, value_range="type", beside=group_of(stack[..., c], 1)[0])
        np.testing.assert_allclose(got[..., c], one, atol=1e-6)
    same = np.repeat(stack[..., :1], 3, axis=-1)  # grey in three samples
    got = grey.denoise(same[1], 20.0, value_range="type", beside=group_of(same, 1)[0])
    one = grey.denoise(same[1, ..., 0], 20.0, value_range="type", beside=group_of(same[..., 0], 1)[0])
    np.testing.assert_allclose(got, np.repeat(one[..., None], 3, axis=-1), atol=1e-6)


def test_photons_are_transformed_alike() -> None:
    """All planes by the transform and the range of the one that is restored."""
    model, noise = attentive(), PoissonNoise(12.0, 2.0)
    stack = np.stack([noise.add(255 * planes(13, 17) / 2, seed) / 255 for seed in range(3)]).astype(np.float32)
    got = Restorer(model, settings=ONE).denoise(stack[1], noise, beside=group_of(stack, 1)[0])
    stabilized = [noise.stabilized(255 * plane.astype(np.float64)) for plane in stack]
    scale = scale_of(stabilized[1], "image", 255.0)
    unit = np.stack([scale.unit(plane) for plane in stabilized])
    back = scale.back(by_definition(model, unit, 255 / scale.spread, 1), np.dtype(np.float64))
    expected = noise.mean_of(back + scale.beyond(stabilized[1])) / 255
    assert np.abs(got - expected).max() < 1e-4


def test_tiles_and_views() -> None:
    """Tiles with the exact overlap are the whole; views are the mean of the eight turned groups."""
    model, stack = attentive(), planes(3, 40, 52)
    around = group_of(stack, 1)[0]
    whole = Restorer(model, settings=ONE).denoise(stack[1], 20.0, value_range="type", beside=around)
    tiles = Settings(precision="fp32", neighbors=1, tile=64, overlap=28)
    wide, beside = (np.tile(x, (2, 2)) for x in (stack[1], np.stack(around.planes)))
    every = Beside(tuple(beside), 1)
    at_once = Restorer(model, settings=ONE).denoise(wide, 20.0, value_range="type", beside=every)
    got = Restorer(model, settings=tiles).denoise(wide, 20.0, value_range="type", beside=every)
    assert np.abs(got - at_once).max() < 2e-5
    views = []
    for turn in range(8):
        turned = [np.rot90(x[:, ::-1] if turn >= 4 else x, turn % 4).copy() for x in (stack[0], stack[1], stack[2])]
        beside = Beside((turned[0], turned[2]), 1)
        out = Restorer(model, settings=ONE).denoise(turned[1], 20.0, value_range="type", beside=beside)
        out = np.rot90(out, -(turn % 4))
        views.append(out[:, ::-1] if turn >= 4 else out)
    np.testing.assert_allclose(views[0], whole, atol=1e-6)
    tta = Settings(precision="fp32", neighbors=1, tta=True)
    got = Restorer(model, settings=tta).denoise(stack[1], 20.0, value_range="type", beside=around)
    np.testing.assert_allclose(got, np.mean(views, axis=0), atol=1e-5)


def test_the_memory_of_a_group_is_counted() -> None:
    """Three planes, seven correlations: tiles become smaller where one plane alone would fit."""
    model, alone = random_model(), Settings(precision="fp32", memory=48 << 20)
    one, three = Restorer(model, settings=alone), Restorer(model, settings=Settings(**vars(alone) | {"neighbors": 1}))
    assert 3 <= three.memory_per_pixel(256, 256) / one.memory_per_pixel(256, 256) <= 7
    assert one.tile_for(300, 300) is None
    assert three.tile_for(300, 300) == 128


def test_an_array_is_restored_group_by_group(weights: Path) -> None:
    """Ends of the stack, any order of the axes, channels apart; T and Z: neighbours along the innermost."""
    model = nlrn.load_model(weights)
    stack = planes(4, 24, 30)
    options = {"sigma": 20.0, "value_range": "type", "neighbors": 1}
    got = nlrn.denoise(stack, model=model, axes="ZYX", **options)
    for index in range(4):
        expected = by_definition(model, *group_of(stack, index)[1:2], 20.0, group_of(stack, index)[2])
        assert np.abs(got[index] - expected).max() < (2e-2 if Restorer(model).bf16 else 2e-5)
    turned = nlrn.denoise(stack.transpose(1, 2, 0), model=model, axes="YXZ", **options)
    np.testing.assert_array_equal(turned, got.transpose(1, 2, 0))
    many = np.stack([stack, stack[::-1].copy()], axis=1)
    found = nlrn.denoise(many, model=model, axes="ZCYX", **options)
    np.testing.assert_array_equal(found[:, 0], got)
    np.testing.assert_array_equal(found[:, 1], nlrn.denoise(many[:, 1].copy(), model=model, axes="ZYX", **options))
    backwards = np.abs(found[::-1, 1] - got).max()  # the same planes, whose sums are added up in the other order
    assert backwards < (2e-2 if Restorer(model).bf16 else 2e-5)
    times = nlrn.denoise(many.swapaxes(0, 1).copy(), model=model, axes="TZYX", **options)
    np.testing.assert_array_equal(times[0], got)  # the last of one time is not beside the first of the next
    tensor = nlrn.denoise(torch.from_numpy(stack), model=model, axes="ZYX", **options)
    np.testing.assert_array_equal(tensor.numpy(), got)
    alone = nlrn.denoise(stack[:1], model=model, axes="ZYX", sigma=20.0, value_range="type")
    np.testing.assert_array_equal(alone, nlrn.denoise(stack, 20.0, model, axes="ZYX", value_range="type")[:1])
    assert np.abs(alone - got[:1]).max() > 1e-4  # of the random weights; rounding makes 1e-6 in float32


def test_lines_of_planes() -> None:
    """By the coordinates of each plane, counted one by one."""
    for letters, sizes in [("TZC", (2, 3, 2)), ("CZ", (2, 4)), ("ZT", (3, 1)), ("C", (3,)), ("", ()), ("Q", (5,))]:
        lines = Lines(lines_of(letters, sizes))
        inner = [i for i in range(len(sizes)) if letters[i] != "C" and sizes[i] > 1]
        every = list(np.ndindex(*sizes))
        assert lines.any == bool(inner)
        for number, place in enumerate(every):
            for reach in (1, 2):
                near = [
                    (other[inner[-1]] - place[inner[-1]], m)
                    for m, other in enumerate(every)
                    if inner
                    and all(a == b for i, (a, b) in enumerate(zip(other, place, strict=True)) if i != inner[-1])
                ]
                before = [m for step, m in sorted(near) if -reach <= step < 0]
                after = [m for step, m in sorted(near) if 0 < step <= reach]
                assert lines.beside(number, reach) == (before, after)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def stack_file(tmp_path: Path) -> Path:
    array = np.rint(planes(3, 2, 24, 30).clip(0, 1) * 60000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    return tmp_path / "stack.tif"


def test_the_command_is_the_call(
    tmp_path: Path, weights: Path, stack_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["denoise", str(stack_file), "--model", str(weights)]
    assert run([*command, "-o", str(tmp_path / "out.tif"), "--neighbors", "1"]) == 0
    assert "each plane is restored with 1 before and after it" in capsys.readouterr().out
    got = tifffile.imread(tmp_path / "out.tif")
    expected = nlrn.denoise(tifffile.imread(stack_file), model=weights, axes="ZCYX", neighbors=1)
    np.testing.assert_array_equal(got, expected)
    for name, options in (("plain", []), ("none", ["--neighbors", "0"])):
        assert run([*command, "-o", str(tmp_path / f"{name}.tif"), *options]) == 0
    assert (tmp_path / "plain.tif").read_bytes() == (tmp_path / "none.tif").read_bytes()
    assert (tmp_path / "plain.tif").read_bytes() != (tmp_path / "out.tif").read_bytes()


def test_it_resumes_as_itself_only(
    tmp_path: Path, weights: Path, stack_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.tif", tmp_path / "out.tif"
    command = ["denoise", str(stack_file), "--model", str(weights), "--sigma", "20"]
    assert run([*command, "-o", str(whole), "--neighbors", "1"]) == 0
    for options, resumed in ((["--neighbors", "1"], True), ([], False)):
        with monkeypatch.context() as patched:
            stop_at(patched, 3)
            assert run([*command, "-o", str(out), *options]) == 130
        capsys.readouterr()
        assert run([*command, "-o", str(out), "--neighbors", "1"]) == 0
        assert ("resumed: 3 of 6 planes were done" in capsys.readouterr().out) == resumed
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()


def test_planes_with_alpha(tmp_path: Path, weights: Path) -> None:
    """What is hidden in a neighbour does not matter, and alpha stays."""
    values = np.rint(planes(3, 24, 30).clip(0, 1) * 255).astype(np.uint8)
    alpha = np.full_like(values, 255)
    alpha[:, 5:9, 5:9] = 0
    found = []
    for name, hidden in (("a", 0), ("b", 255)):
        stack = np.stack([np.where(alpha == 0, hidden, values), alpha], axis=-1)
        path, out = tmp_path / f"{name}.tif", tmp_path / f"{name}-out.tif"
        tifffile.imwrite(path, stack, photometric="minisblack", extrasamples=["unassalpha"], metadata={"axes": "ZYXS"})
        command = ["denoise", str(path), "-o", str(out), "--model", str(weights), "--sigma", "20", "--range", "type"]
        assert run([*command, "-q", "--neighbors", "1"]) == 0
        found.append(tifffile.imread(out))
    np.testing.assert_array_equal(found[0][..., 1], alpha)
    np.testing.assert_array_equal(found[0][alpha > 0], found[1][alpha > 0])


def test_what_has_no_neighbours_is_refused(
    tmp_path: Path, weights: Path, stack_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "channels.tif", np.zeros((3, 24, 30), np.uint8), imagej=True, metadata={"axes": "CYX"})
    out, model = str(tmp_path / "out.tif"), ["--model", str(weights)]
    for words, expected in (
        ([str(tmp_path / "a.png"), "--neighbors", "1"], "no stack: --neighbors is for one"),
        ([str(tmp_path), "--neighbors", "1"], "no stack: --neighbors is for one"),
        ([str(stack_file), "--neighbors", "1", "--sigma", "per-plane"], "one sigma"),
        ([str(stack_file), "--neighbors", "1", "--mode", "patch"], "window mode"),
        ([str(tmp_path / "channels.tif"), "--neighbors", "1"], "no plane of this stack has another"),
        ([str(stack_file), "--neighbors", "3"], "invalid choice"),
    ):
        assert run(["denoise", *words, "-o", out, *model]) != 0
        assert expected in capsys.readouterr().err, words
    assert not list(tmp_path.glob("out*"))

    stack = planes(3, 24, 30)
    for arguments, error in (
        ({}, "of a stack: give its axes"),
        ({"axes": "CYX"}, "no plane of this stack"),
        ({"axes": "ZYX", "sigma": "per-plane"}, "one sigma"),
        ({"axes": "ZYX", "neighbors": 3}, "0 to 2"),
    ):
        image = stack if "axes" in arguments else stack[0]
        with pytest.raises(ConfigError, match=error):
            nlrn.denoise(image, model=weights, **{"neighbors": 1, **arguments})  # type: ignore[arg-type]
    restorer = Restorer(weights, settings=ONE)
    with pytest.raises(ConfigError, match="2 planes beside an image, and neighbors is 0"):
        Restorer(weights).denoise(stack[1], 20.0, beside=group_of(stack, 1)[0])
    with pytest.raises(ConfigError, match="neighbors is 1"):
        restorer.denoise(stack[2], 20.0, beside=Beside(tuple(stack[:2]), 2))
    with pytest.raises(InputError, match="beside one of"):
        restorer.denoise(stack[1], 20.0, beside=Beside((stack[0, 1:],), 1))
    with pytest.raises(ConfigError, match="white noise and photons"):
        Restorer(random_model(noise="camera"), settings=ONE).denoise(stack[1], 20.0)
    with pytest.raises(ConfigError, match="not for the distance gaussian"):
        Restorer(random_model(distance="gaussian", propagation=False), settings=ONE).denoise(stack[1], 20.0)


def test_colour_with_the_noise_of_cameras_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photo.safetensors"
    save_model(path, random_model(in_channels=3, noise="camera"), {"steps": "0"})
    stack = np.rint(np.stack([planes(3, 24, 30, seed=c) for c in range(3)], axis=-1).clip(0, 1) * 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="rgb")
    command = ["denoise", str(tmp_path / "stack.tif"), "-o", str(tmp_path / "out.tif"), "--model", str(path)]
    for sigma in ([], ["--sigma", "9"]):
        assert run([*command, "--neighbors", "1", *sigma]) == 2
        assert "leave them out, or give noise gaussian" in capsys.readouterr().err


def test_folders_and_stacks_that_are_done_stay_done() -> None:
    """The digest without neighbours is that of before the option."""
    from nlrn.cli import _parser

    words = ["denoise", "in.tif", "-o", "out.tif"]
    plain, with_one = (_parser().parse_args([*words, *more]) for more in ([], ["--neighbors", "1"]))
    before = digest(plain)
    assert digest(with_one) != before
    del plain.neighbors
    assert digest(plain) == before
