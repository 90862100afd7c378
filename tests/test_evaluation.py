"""Scores against scikit-image, and the attention study against the definitions of its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_restore import FP32, random_model

from nlrn.errors import ConfigError, InputError
from nlrn.evaluation import VARIANTS, attention_study, evaluate_denoising, find_sets, provenance
from nlrn.restore import Restorer


def pictures(*shapes: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    random = np.random.RandomState(0)
    return [(f"p{i}", random.randint(0, 256, shape).astype(np.uint8)) for i, shape in enumerate(shapes)]


def test_scores_follow_the_protocol() -> None:
    restorer, made = Restorer(random_model(), settings=FP32), pictures((20, 24), (16, 31))
    scores = evaluate_denoising(restorer, {"made": made}, [15.0, 50.0])
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
    assert scores["made"]["50"]["pictures"]["p1"][0] == pytest.approx(expected[1][0], abs=1e-6)
    assert scores["made"]["15"]["psnr"] != scores["made"]["50"]["psnr"]


def test_the_attention_study_says_what_its_words_mean() -> None:
    """Neighbours and |S|max against the NumPy network; each variant against a model built that way."""
    model, made = random_model(states=3, window=7), pictures((12, 13), (11, 16))
    study = attention_study(Restorer(model, settings=FP32), made, [25.0])["25"]
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
        score = evaluate_denoising(Restorer(other, settings=FP32), {"made": made}, [25.0])["made"]["25"]["psnr"]
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
        attention_study(Restorer(random_model(window=None), settings=FP32), pictures((12, 13)), [25.0])


def test_results_say_where_they_come_from() -> None:
    run = provenance(Restorer(random_model(), settings=FP32))
    assert run["precision"] == "fp32"
    assert run["torch"] == torch.__version__
    assert len(run["date"]) == 10
