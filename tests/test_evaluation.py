"""Scores against scikit-image, and the attention study against the definitions of its words."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from networks import FP32, random_model
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nlrn.cli import run
from nlrn.errors import ConfigError, InputError
from nlrn.evaluation.protocols import (
    VARIANTS,
    attention_study,
    denoising,
    evaluate,
    find_sets,
    photographs,
    provenance,
    super_resolution,
)
from nlrn.functional.camera import add_camera_noise, at_level, draw_camera, noisy_at
from nlrn.functional.degradations import resize_bicubic, resize_bicubic8
from nlrn.functional.metrics import quantize8, studio_luma
from nlrn.functional.noise import estimate_sigma
from nlrn.inference.restorer import Restorer
from nlrn.io.datasets import scoring_set
from nlrn.models.checkpoint import save_model
from nlrn.system.atomic import publish_json


def images(*shapes: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    random = np.random.RandomState(0)
    return [(f"p{i}", random.randint(0, 256, shape).astype(np.uint8)) for i, shape in enumerate(shapes)]


def test_scores_follow_the_protocol() -> None:
    restorer, made = Restorer(random_model(), settings=FP32), images((20, 24), (16, 31))
    scores = evaluate(restorer, {"made": made}, denoising([15.0, 50.0]))
    expected = []
    for _, image in made:
        clean = image / 255
        np.random.seed(0)
        noisy = clean + np.random.normal(0, 50 / 255, clean.shape)
        output = np.rint(np.clip(restorer.denoise(noisy, 50), 0, 1) * 255) / 255
        similarity = structural_similarity(
            clean, output, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        )
        expected.append((peak_signal_noise_ratio(clean, output, data_range=1), similarity))
    assert list(scores["made"]) == ["15", "50"]
    assert scores["made"]["50"]["psnr"] == pytest.approx(np.mean([p for p, _ in expected]), abs=1e-6)
    assert scores["made"]["50"]["ssim"] == pytest.approx(np.mean([s for _, s in expected]), abs=1e-4)
    assert scores["made"]["50"]["images"]["p1"][0] == pytest.approx(expected[1][0], abs=1e-6)
    assert scores["made"]["15"]["psnr"] != scores["made"]["50"]["psnr"]


def test_an_estimated_level_is_what_the_model_is_told() -> None:
    restorer, made = Restorer(random_model(), settings=FP32), images((40, 44))
    scores = evaluate(restorer, {"made": made}, denoising([25.0], auto=True))["made"]["25"]
    noisy = made[0][1] / 255 + np.random.RandomState(0).normal(0, 25 / 255, (40, 44))
    level = estimate_sigma(noisy)
    assert abs(level - 25) > 5  # the image itself is noise
    output = np.rint(np.clip(restorer.denoise(noisy, min(level, 75.0)), 0, 1) * 255) / 255
    expected = peak_signal_noise_ratio(made[0][1] / 255, output, data_range=1)
    known = evaluate(restorer, {"made": made}, denoising([25.0]))["made"]["25"]["psnr"]
    assert scores["images"]["p0"][::2] == pytest.approx([expected, min(level, 75.0)], abs=1e-6)
    assert scores["images"]["p0"][3] == known
    assert abs(known - scores["psnr"]) > 1e-3


@pytest.mark.parametrize("given", [9.0, "auto"])
def test_camera_noise_is_scored_by_its_protocol(given: float | str) -> None:
    """Camera and noise from the CRC-32 of the 8-bit values, the output rounded, the input scored as it is."""
    restorer, made = Restorer(random_model(in_channels=3), settings=FP32), images((40, 44, 3), (36, 51, 3))
    scores = evaluate(restorer, {"made": made}, photographs([4.0, 9.0], given))["made"]
    expected = []
    for _, image in made:
        random = np.random.default_rng(zlib.crc32(image.tobytes()))
        noisy = add_camera_noise(image / 255, at_level(draw_camera(random), 9), random)
        sigma = min(estimate_sigma(noisy), 75.0) if isinstance(given, str) else given
        output = np.rint(np.clip(restorer.denoise(noisy, sigma), 0, 1) * 255) / 255
        pair = [peak_signal_noise_ratio(image / 255, x, data_range=1) for x in (output, noisy)]
        expected.append([*pair, sigma])
    assert list(scores) == ["4", "9"]
    mean = np.mean(expected, axis=0)
    assert [scores["9"][key] for key in ("psnr", "psnr_noisy", "given_sigma")] == pytest.approx(mean, abs=1e-5)
    assert scores["4"]["psnr_noisy"] > scores["9"]["psnr_noisy"]


@pytest.mark.slow
def test_psnr_of_images_under_camera_noise_meets_the_check_value(data_root: Path) -> None:
    """docs/reproduce.md; another release of the JPEG library may round otherwise."""
    found = [peak_signal_noise_ratio(x / 255, noisy_at(x / 255, 6)) for _, x in scoring_set(data_root, "cbsd68")]
    assert np.mean(found) == pytest.approx(31.39, abs=0.03)


def test_a_model_for_photographs_is_scored_at_the_level_that_is_estimated(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, image in images((40, 44, 3)):
        Image.fromarray(image).save(tmp_path / "set" / f"{name}.png")
    weights, result = tmp_path / "photo.safetensors", tmp_path / "result.json"
    save_model(weights, random_model(in_channels=3, noise="camera"), {})
    words = ["evaluate", "--model", str(weights), "--data", str(tmp_path / "set"), "--json", str(result), "-q"]
    assert run([*words, "--noise", "camera", "--attention"]) == 0
    found = json.loads(result.read_text())
    assert found["protocol"].startswith("camera: ")
    assert set(found["attention"]) == set(found["scores"]["set"]) == {"3", "6", "12"}
    restorer = Restorer(weights)
    for level, score in found["scores"]["set"].items():
        noisy = [noisy_at(image / 255.0, float(level)) for _, image in images((40, 44, 3))]
        assert score["given_sigma"] == pytest.approx(np.mean([restorer.noise_level(x, "auto") for x in noisy]))


@pytest.mark.parametrize(
    ("words", "noise", "message"),
    [
        (["--given-sigma", "3"], "white", "--given-sigma is for models that receive"),
        (["--auto", "--noise", "camera"], "white", "--auto is for"),
        (["--attention", "--noise", "camera"], "white", "requires --given-sigma"),
        ([], "camera", "give --noise camera"),
    ],
)
def test_words_that_do_not_fit_camera_noise_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], noise: str, message: str
) -> None:
    weights = tmp_path / "photo.safetensors"
    save_model(weights, random_model(in_channels=3, noise=noise), {})
    assert run(["evaluate", "--model", str(weights), "--data", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_attention_study_says_what_its_words_mean() -> None:
    """Neighbours and |S|max against the NumPy network; each variant against a model built that way."""
    model, made = random_model(states=3, window=7), images((12, 13), (11, 16))
    study = attention_study(Restorer(model, settings=FP32), made, denoising([25.0]))["25"]
    params = {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    neighbours: list[list[np.ndarray]] = [[], [], []]
    largest = np.zeros(3)
    for _, image in made:
        height, width = image.shape
        noisy = image / 255 + np.random.RandomState(0).normal(0, 25 / 255, image.shape)
        _, trace = oracle.nlrn(noisy[None, None], params, states=3, window=7, sigma=25 / 255)
        mask = oracle.neighbours(height, width, 7)
        for t, dense in enumerate(trace.correlations):
            p = oracle.masked_softmax(dense, mask)
            logs = np.log(np.where(p > 0, p, 1))
            neighbours[t].append(np.exp(-(p * logs).sum(-1)).ravel())
            largest[t] = max(largest[t], np.abs(np.where(mask, dense, 0)).max())
    medians = [np.sort(np.concatenate(n))[(sum(map(len, n)) - 1) // 2] for n in neighbours]  # torch's median
    np.testing.assert_allclose(study["neighbours"], medians, rtol=1e-4)
    np.testing.assert_allclose(study["largest"], largest, rtol=1e-4)
    assert list(study["psnr"]) == list(VARIANTS)
    for variant, change in VARIANTS.items():
        other = random_model(states=3, window=change.get("window", 7), propagation=change.get("propagation", True))
        score = evaluate(Restorer(other, settings=FP32), {"made": made}, denoising([25.0]))["made"]["25"]["psnr"]
        assert study["psnr"][variant] == pytest.approx(score, abs=1e-5)
    assert len(set(study["psnr"].values())) == len(VARIANTS)


def test_sets_are_found_by_name_or_the_folder_is_one(tmp_path: Path, data_root: Path) -> None:
    assert {name: len(found) for name, found in find_sets(data_root).items()} == {"set12": 12, "bsd68": 68}
    assert list(find_sets(data_root, channels=3)) == ["cbsd68"]
    found = find_sets(data_root, ["cbsd68"])["cbsd68"]
    assert len(found) == 68
    assert all(image.ndim == 3 for _, image in found)  # also for a grey model: the set's name is kept honest
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(folder / "a.png")
    assert list(find_sets(folder)) == ["mine"]
    Image.fromarray(np.zeros((10, 30), np.uint8)).save(folder / "tiny.png")
    with pytest.raises(InputError, match="tiny of mine"):
        find_sets(folder)
    for bad in (lambda: find_sets(tmp_path / "none"), lambda: find_sets(data_root, ["set13"])):
        with pytest.raises(InputError):
            bad()


def test_a_model_without_a_window_has_no_attention_study() -> None:
    with pytest.raises(ConfigError, match="window"):
        attention_study(Restorer(random_model(window=None), settings=FP32), images((12, 13)), denoising([25.0]))


def test_results_say_where_they_come_from() -> None:
    run = provenance(Restorer(random_model(), settings=FP32))
    assert run["precision"] == "fp32"
    assert run["torch"] == torch.__version__
    assert len(run["date"]) == 10


BICUBIC = {"set5": (33.66, 30.39, 28.42), "set14": (30.23, 27.54, 26.00)}  # published, float-lr


def sr_restorer(idle: bool = False) -> Restorer:
    """A super-resolution network of random parameters; `idle`: one that adds nothing to what bicubic made."""
    model = random_model(task="sr", sigma_input=False)
    if idle:
        for p in model.tail.parameters():
            torch.nn.init.zeros_(p)
    return Restorer(model, settings=FP32)


@pytest.mark.parametrize("name", ["set5", pytest.param("set14", marks=pytest.mark.slow)])
def test_a_network_that_adds_nothing_has_the_published_scores_of_bicubic(data_root: Path, name: str) -> None:
    sets = find_sets(data_root, [name], task="sr")
    restorer = sr_restorer(idle=True)
    exact = evaluate(restorer, sets, super_resolution([2, 3, 4]))[name]
    coarse = evaluate(restorer, sets, super_resolution([2, 3, 4], "8bit-lr"))[name]
    for scale, expected in zip((2, 3, 4), BICUBIC[name], strict=True):
        assert exact[f"x{scale}"]["psnr"] == pytest.approx(expected, abs=0.006)
        assert 0.001 < exact[f"x{scale}"]["psnr"] - coarse[f"x{scale}"]["psnr"] < 0.03


def test_scores_of_super_resolution_follow_their_protocols(data_root: Path) -> None:
    restorer, image = sr_restorer(), dict(scoring_set(data_root, "set5"))["butterfly"]
    image = image[:100, :95]
    high = quantize8(studio_luma(image / 255))[:99, :93]
    small = resize_bicubic8(image[:99, :93], 33, 31) / 255
    for protocol, low in (("float-lr", resize_bicubic(high, 33, 31)), ("8bit-lr", studio_luma(small))):
        network = restorer.model(torch.from_numpy(resize_bicubic(low, 99, 93)).float()[None, None])[0, 0]
        output = np.rint(np.clip(network.detach().double().numpy(), 0, 1) * 255) / 255
        scores = evaluate(restorer, {"one": [("p", image)]}, super_resolution([3], protocol))["one"]["x3"]
        inner = (slice(3, -3), slice(3, -3))
        expected = peak_signal_noise_ratio(high[inner], output[inner], data_range=1)
        assert scores["psnr"] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ConfigError, match="protocol"):
        super_resolution([2], "rgb")


def test_a_scale_between_two_whole_ones_is_its_fraction() -> None:
    """2.5 is 5 / 2: cropped to a multiple of 5, a border of 3; a network that adds nothing leaves bicubic."""
    ((_, image),) = images((53, 64))
    model = random_model(task="sr", sigma_input=False)
    with torch.no_grad():
        model.tail.weight.zero_()
        model.tail.bias.zero_()
    found = evaluate(Restorer(model, settings=FP32), {"made": [("p0", image)]}, super_resolution([2.5]))["made"]["x2.5"]
    high = image[:50, :60] / 255
    output = quantize8(resize_bicubic(resize_bicubic(high, 20, 24), 50, 60))
    inner = (slice(3, -3), slice(3, -3))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(high[inner], output[inner], data_range=1), abs=0.01)


@pytest.mark.parametrize(("scale", "step", "small"), [(2, 2, 1), (1.5, 3, 2)])
def test_the_attention_of_super_resolution_is_that_of_the_image_it_sees(scale: float, step: int, small: int) -> None:
    """Enlarged by bicubic, twice at least. step: of the sides, which become `small` at this scale."""
    restorer, made = sr_restorer(), images((36, 40), (25, 30))
    conditions = super_resolution([scale])
    study = attention_study(restorer, made, conditions)[f"x{scale:g}"]
    assert study["psnr"]["as is"] == pytest.approx(
        evaluate(restorer, {"m": made}, conditions)["m"][f"x{scale:g}"]["psnr"]
    )
    largest = 0.0
    for _, image in made:
        height, width = (n // step * step for n in image.shape)
        rows, columns = height // step * small, width // step * small
        low = resize_bicubic(image[:height, :width] / 255, rows, columns)
        params = {k: v.numpy().astype(np.float64) for k, v in restorer.model.state_dict().items()}
        _, trace = oracle.nlrn(resize_bicubic(low, 2 * rows, 2 * columns)[None, None], params, states=2, window=5)
        mask = oracle.neighbours(2 * rows, 2 * columns, 5)
        largest = max(largest, np.abs(np.where(mask, trace.correlations[0], 0)).max())
    assert study["largest"][0] == pytest.approx(largest, rel=1e-4)


def test_the_attention_of_a_grey_model_is_studied_on_colour_channel_by_channel() -> None:
    restorer, made = Restorer(random_model(), settings=FP32), images((36, 40, 3), (25, 30, 3))
    grey = [(f"{stem}{c}", image[..., c]) for stem, image in made for c in range(3)]
    found = attention_study(restorer, made, denoising([0]))["0"]
    assert found["psnr"]["self only"] != found["psnr"]["as is"]
    assert found["neighbours"] == pytest.approx(attention_study(restorer, grey, denoising([0]))["0"]["neighbours"])


def test_an_image_too_small_at_one_of_the_scales_is_named_before_any_is_scored(tmp_path: Path) -> None:
    for name, side in (("fine", 24), ("tight", 19), ("small", 18)):
        Image.new("L", (40, side)).save(tmp_path / f"{name}.png")
    assert len(find_sets(tmp_path, task="sr", scales=[2, 3])) == 1
    with pytest.raises(InputError, match=r"small of .* inside a border of 4"):
        find_sets(tmp_path, task="sr", scales=[2, 3, 4])


@pytest.mark.parametrize(("side", "scale"), [(18, 2.5), (18, 1.9)])
def test_images_too_small_for_a_fractional_scale_are_refused_before_the_work(
    tmp_path: Path, side: int, scale: float
) -> None:
    """An image is cropped to a multiple of the scale's numerator, 15 for 18 and 2.5, less a border of 3."""
    Image.fromarray(np.zeros((side, 60), np.uint8)).save(tmp_path / "a.png")
    assert len(find_sets(tmp_path, task="sr", scales=[1.5])) == 1
    with pytest.raises(InputError, match=r"a of .* is too small to score"):
        find_sets(tmp_path, task="sr", scales=[scale])


def test_numbers_that_json_has_no_word_for_are_null(tmp_path: Path) -> None:
    found = {"a": {"psnr": float("inf"), "ssim": 1.0}, "b": [float("nan"), 2], "c": (1, None)}
    text = publish_json(tmp_path / "a.json", found).read_text()
    expected = {"a": {"psnr": None, "ssim": 1.0}, "b": [None, 2], "c": [1, None]}
    assert json.loads(text, parse_constant=pytest.fail) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scale", "3"), "--scale and --protocol are for super-resolution"),
        (("--protocol", "8bit-lr"), "--scale and --protocol are for super-resolution"),
        (("--task", "sr", "--sigma", "25"), "--sigma is for models that denoise"),
    ],
)
def test_options_of_the_other_task_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "a.png")
    assert run(["evaluate", "--data", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
