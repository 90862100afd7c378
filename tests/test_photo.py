"""Training on camera noise, from trained weights: what a step sees, what is taken over, what a recipe may say."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import CPU, make, recorded, trainer

from nlrn.errors import ConfigError, ModelNotFoundError
from nlrn.functional.camera import CAMERA_LEVELS, Camera, draw_camera, noisy_at
from nlrn.functional.metrics import psnr
from nlrn.io.datasets import HELD_OUT, read_folder, training_images, validation_images
from nlrn.models.checkpoint import load_model, save_model
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.training import degradations
from nlrn.training.config import NoiseConfig, Stage, StartConfig, TrainConfig, read_recipe
from nlrn.training.degradations import LEVEL_ERROR, enlarged_part
from nlrn.training.distributed import Processes
from nlrn.training.growth import grown
from nlrn.training.starting import start_from
from nlrn.training.trainer import Trainer, train

ROOT = Path(__file__).resolve().parents[1]
CAMERA = NoiseConfig(kind="camera")
MODEL = NLRNConfig(3, 8, 4, 2, 5, sigma_input=True, noise="camera")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"))


def photographer(recipe: Path, folder: Path, **changes: object) -> Trainer:
    return trainer(recipe, folder, **{"model": MODEL, "noise": CAMERA, **changes})  # type: ignore[arg-type]


def trained(config: NLRNConfig, seed: int = 0) -> NLRN:
    """A network whose every parameter and statistic is unlike a fresh one's."""
    torch.manual_seed(seed)
    model = NLRN(config)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value) + 0.01 * name.endswith("running_var"))
    return model


# -- what a step sees ----------------------------------------------------------------------------------------------


def test_a_batch_of_photographs_is_a_pure_function_of_seed_and_step(recipe: Path, tmp_path: Path) -> None:
    one, two = photographer(recipe, tmp_path), photographer(recipe, tmp_path)
    first = one.batches(7)
    one.batches(40)
    for again in (one.batches(7), two.batches(7)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    assert not torch.equal(first[0], one.batches(8)[0])
    assert not torch.equal(first[0], photographer(recipe, tmp_path, seed=1).batches(7)[0])


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_see_the_photographs_of_one(recipe: Path, tmp_path: Path, world: int) -> None:
    single = photographer(recipe, tmp_path)
    whole, shares = single.batches(33), []
    for rank in range(world):
        single.batches.processes = Processes(CPU, rank, world)
        shares.append(single.batches(33))
    for i, part in enumerate(whole):
        assert part is not None
        assert torch.equal(torch.cat([share[i] for share in shares]), part)  # type: ignore[misc]


def draws(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """From here on every camera that training draws has these changes."""

    def changed(random: np.random.Generator, *shares: float) -> Camera:
        return dataclasses.replace(draw_camera(random, *shares), **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(degradations, "draw_camera", changed)


def test_the_plane_holds_the_level_of_the_noise_with_the_error_of_an_estimate(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, quality=None, flat=1.0)  # so that the noise is all that is added, and everywhere alike
    noisy, clean, plane = photographer(recipe, tmp_path, stages=(Stage(0, 16, 400),)).batches(0)
    assert noisy.shape == clean.shape == (400, 3, 16, 16)
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    assert plane is not None
    for levels in (noisy * 255, clean * 255):
        assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert torch.equal(clean[:, 0], clean[:, 1])  # these images are grey, and their noise is not
    assert not torch.equal(noisy[:, 0], noisy[:, 1])
    true = (noisy - clean).flatten(1).std(1, correction=0)
    some = true > 0
    error = (plane[some] / true[some]).log().numpy()
    assert error.mean() == pytest.approx(0, abs=4 * LEVEL_ERROR / math.sqrt(len(error)))
    assert error.std() == pytest.approx(LEVEL_ERROR, rel=4 / math.sqrt(2 * len(error)))
    assert float(plane.max()) <= np.float32(75 / 255)


def test_the_level_is_that_of_flat_areas(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for edge in (1e-3, 1e6):  # all detail is spared, or none
        draws(monkeypatch, quality=None, luma_blur=0.8, flat=0.3, edge=edge)
        noisy, clean, plane = photographer(recipe, tmp_path, stages=(Stage(0, 16, 400),)).batches(0)
        assert plane is not None
        found.append(((noisy - clean).flatten(1).std(1, correction=0), plane))
    (spared, level), (flat, same) = found
    assert torch.equal(level, same)
    some = flat > 1 / 255
    assert float((level[some] / flat[some]).log().mean().exp()) == pytest.approx(1, abs=0.1)
    assert float((spared[some] / flat[some]).median()) > 2


def test_what_a_jpeg_alone_loses_is_no_noise(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws(monkeypatch, quality=60, shot=0.0, read=0.0, row=0.0, column=0.0)
    noisy, clean, plane = photographer(recipe, tmp_path, stages=(Stage(0, 16, 40),)).batches(0)
    assert plane is not None
    assert float((noisy - clean).abs().max()) > 1 / 255
    assert float(plane.max()) == 0


def test_a_blind_model_sees_no_level(recipe: Path, tmp_path: Path) -> None:
    blind = NLRNConfig(3, 8, 4, 2, 5)
    _, target, plane = photographer(recipe, tmp_path, model=blind, stages=(Stage(0, 16, 40),)).batches(0)
    assert plane is None
    assert torch.allclose(target * 255, (target * 255).round(), atol=1e-4)


def test_validation_is_on_camera_noise_at_the_levels_of_the_scores(recipe: Path, tmp_path: Path) -> None:
    subject = photographer(recipe, tmp_path)
    result = subject.validation(subject.model)
    assert {key for key in result if key.startswith("psnr")} == {f"psnr_camera_{s:g}" for s in CAMERA_LEVELS}
    with torch.no_grad():
        subject.model.tail.weight.zero_()
        subject.model.tail.bias.zero_()  # type: ignore[union-attr]
    found = subject.validation(subject.model)
    for level in CAMERA_LEVELS:
        expected = np.mean([psnr(clean, noisy_at(clean, level)) for clean in subject.validation.clean])
        assert found[f"psnr_camera_{level:g}"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow  # all of them are read
def test_twenty_photographs_are_held_out(data_root: Path) -> None:
    stems = [stem for stem, _ in read_folder(data_root / "sunhays80", channels=1)]
    assert list(HELD_OUT["sunhays80"]) == stems[3::4]
    kept = [stem for stem, _ in validation_images(data_root, "sunhays80", ("t91", "sunhays80"), channels=1)]
    seen = [stem for stem, _ in training_images(data_root, "sunhays80", channels=1)]
    assert len(kept) == 20
    assert len(seen) == 60
    assert sorted(kept + seen) == stems
    assert [stem for stem, _ in validation_images(data_root, "sunhays80", ("t91",), channels=1)] == stems


# -- the start -----------------------------------------------------------------------------------------------------


def test_a_start_takes_everything_of_a_model_of_its_kind(tmp_path: Path) -> None:
    source, model = trained(MODEL), NLRN(dataclasses.replace(MODEL, noise="white"))
    save_model(tmp_path / "source.safetensors", source)
    taken = start_from(model, tmp_path / "source.safetensors", statistics=True)
    assert {"head", "tail", "block.norm1", "block.non_local"} <= set(taken)
    expected = load_model(tmp_path / "source.safetensors").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_start_takes_the_block_of_a_model_with_other_channels_and_states(tmp_path: Path) -> None:
    grey = dataclasses.replace(MODEL, in_channels=1, noise="white")
    file = tmp_path / "source.safetensors"
    save_model(file, trained(grey))
    source = grown({f"model.{name}": value for name, value in load_model(file).state_dict().items()}, 4)
    model = trained(dataclasses.replace(MODEL, states=4), seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken = start_from(model, file)
    assert "head" not in taken
    assert "tail_norm" in taken
    for name, value in model.state_dict().items():
        if name.startswith(("head", "tail.")):
            assert torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, source[f"model.{name}"]), name
    fewer = trained(dataclasses.replace(MODEL, states=1), seed=1)
    start_from(fewer, file)
    assert torch.equal(fewer.block.norm2[0].running_mean, load_model(file).block.norm2[0].running_mean)
    with pytest.raises(ConfigError, match="its head_norm does not fit"):
        start_from(model, file, statistics=True)


def test_a_start_that_does_not_fit_is_one_error(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "wide.safetensors"
    save_model(file, trained(dataclasses.replace(MODEL, channels=16)))
    with pytest.raises(ConfigError, match=r"wide.safetensors cannot be the start: its block.non_local has the shapes"):
        photographer(recipe, tmp_path / "run", start=StartConfig(str(file))).start(resume=False)
    with pytest.raises(ModelNotFoundError, match="'denoise-nothing'"):
        photographer(recipe, tmp_path / "run", start=StartConfig("denoise-nothing")).start(resume=False)


def test_a_run_that_is_frozen_from_the_start_keeps_the_statistics_of_its_start(recipe: Path, tmp_path: Path) -> None:
    """And it resumes where it was ended, without the file that it started from."""
    file, stages = tmp_path / "source.safetensors", (Stage(0, 12, 4, frozen=True),)
    save_model(file, trained(MODEL))
    config = dataclasses.replace(
        read_recipe(recipe), model=MODEL, noise=CAMERA, start=StartConfig(str(file)), stages=stages, embedding_gain=0.5
    )
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=6, decay=0.0))
    straight = train(config, output=tmp_path / "straight", data=recipe.parent, quiet=True)
    short = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=3))
    train(short, output=tmp_path / "parts", data=recipe.parent, quiet=True)
    expected, found = (load_model(path).state_dict() for path in (file, straight))
    for name, value in found.items():
        if "running" in name:
            assert torch.equal(value, expected[name]), name
    assert float((found["block.conv_a.weight"] - expected["block.conv_a.weight"]).abs().max()) < 6 * 1e-3 * 4
    assert not torch.equal(found["block.conv_a.weight"], expected["block.conv_a.weight"])
    file.unlink()
    resumed = train(config, output=tmp_path / "parts", data=recipe.parent, resume=True, quiet=True)
    assert all(torch.equal(value, found[name]) for name, value in load_model(resumed).state_dict().items())


def test_patches_are_enlarged_by_up_to_the_factor_and_a_third_of_them_is_not() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 72, dtype=np.float32)[:, None, None], (72, 72, 3))
    slope, factors = 1 / 71, []
    for seed in range(300):
        part = enlarged_part(ramp, 3.0, np.random.default_rng(seed))
        assert part.shape == ramp.shape
        assert part.dtype == np.float32
        factors.append(slope / float(part[40, 0, 0] - part[32, 0, 0]) * 8)
        if factors[-1] == pytest.approx(1, abs=1e-5):
            np.testing.assert_array_equal(part, ramp)
    factors = np.sort(factors)
    assert 0.25 < np.mean(factors < 1.001) < 0.42
    assert 2.7 < factors[-1] < 3.05
    assert np.median(factors[factors > 1.02]) == pytest.approx(3**0.5, rel=0.1)  # uniform in its logarithm


def test_a_batch_is_enlarged_before_the_camera_takes_it(recipe: Path, tmp_path: Path) -> None:
    plain, wide = (
        photographer(recipe, tmp_path / str(most), noise=dataclasses.replace(CAMERA, enlarge=most))
        for most in (1.0, 3.0)
    )
    detail = []
    for one in (plain, wide):
        targets = [one.batches(step)[1].numpy() for step in range(12)]
        detail.append(np.mean([np.abs(np.diff(target, axis=-1)).mean() for target in targets]))
    assert detail[1] < 0.9 * detail[0]


def test_values_beyond_the_range_of_16_bits_reach_no_camera(recipe: Path, tmp_path: Path) -> None:
    """Images of a small range may lie beyond 0..1 (nlrn.functional.ranges); a camera stores none of that."""
    noise = photographer(recipe, tmp_path).batches.degradation
    clean = torch.rand(2, 3, noise.side(16), noise.side(16)) * 510 - 127
    batch = noise.pairs(0, 0, clean, 16)
    for values in (batch.degraded, batch.clean):
        assert 0 <= float(values.min()) < float(values.max()) <= 1
    for _, degrade in noise.conditions().values():
        noisy, target = degrade(clean[0].permute(1, 2, 0).double().numpy() / 255, 0)
        assert noisy.min() >= 0
        assert target.max() <= 1


@pytest.mark.parametrize("denoising", [0.0, 1.0])
@pytest.mark.parametrize("coarse", [0.0, 1.0])
def test_the_recipe_sets_the_shares_of_cameras_that_spare_detail_and_of_coarse_noise(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denoising: float, coarse: float
) -> None:
    drawn: list[tuple[Camera, Camera]] = []

    def watched(random: np.random.Generator, *shares: float) -> Camera:
        plain = draw_camera(copy.deepcopy(random), shares[0])
        drawn.append((plain, draw_camera(random, *shares)))
        return drawn[-1][1]

    monkeypatch.setattr(degradations, "draw_camera", watched)
    noise = dataclasses.replace(CAMERA, denoising=denoising, coarse=coarse)
    photographer(recipe, tmp_path, noise=noise).batches(0)
    assert drawn
    for plain, camera in drawn:
        assert (camera.flat < 1) == bool(denoising)
        assert (camera != plain) == bool(coarse)


# -- recipes -------------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_small_model_for_photographs() -> None:
    config = read_recipe(ROOT / "recipes" / "denoise-photo-small.toml")
    assert config.start == StartConfig("denoise-photo-small")
    assert config.noise == dataclasses.replace(CAMERA, enlarge=3.0, denoising=0.65, coarse=0.3)
    assert config.model == NLRNConfig(3, 64, 32, 6, 15, sigma_input=True, noise="camera")
    assert config.freeze == 0
    assert config.data.folders == ("bsds500/train", "bsds500/test", "sunhays80")
    header = json.loads(config.header())
    assert header["start"] == {"from": "denoise-photo-small"}
    assert header["noise"]["kind"] == "camera"
    start_from(NLRN(config.model), "denoise-photo-small", statistics=True)


def test_what_a_recipe_does_not_use_leaves_its_digest_alone() -> None:
    plain = read_recipe(ROOT / "recipes" / "denoise-color-small.toml")
    header = json.loads(plain.header())
    assert "start" not in header
    assert not {"kind", "enlarge", "denoising", "coarse"} & set(header["noise"])
    assert "noise" not in header["model"]
    others = [dataclasses.replace(plain, start=StartConfig(name)) for name in ("denoise-color-small", "other")]
    model = dataclasses.replace(plain.model, noise="camera")
    others.append(dataclasses.replace(plain, model=model, noise=CAMERA))
    assert len({config.digest() for config in (plain, *others)}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[start]\nfrom_ = "a"', "unknown key 'from_' in start; did you mean 'from'"),
        ("[start]\nfrom = 3", "start.from must be str"),
        ("[start]", "start lacks from"),
        ('[start]\nfrom = ""', "must name a shipped model"),
        ("[noise]\nenlarge = 2.0", "for camera noise, from 1 to 4, not 2"),
        ('[noise]\nkind = "camera"\nenlarge = 5.0', "from 1 to 4, not 5"),
        ("[noise]\ndenoising = 0.5", "for camera noise, from 0 to 1, not 0.5"),
        ('[noise]\nkind = "camera"\ndenoising = 1.5', "from 0 to 1, not 1.5"),
        ("[noise]\ncoarse = 0.5", "for camera noise, from 0 to 1, not 0.5"),
        ('[noise]\nkind = "camera"\ncoarse = -0.5', "from 0 to 1, not -0.5"),
        ('[noise]\nkind = "film"', "gaussian or camera or pairs or noise2noise or neighbor2neighbor, not 'film'"),
        ('[noise]\nkind = "camera"\nhigh = 50.0', "leave noise.low and noise.high out"),
        ('[noise]\nkind = "camera"', "in_channels = 3"),
        ('[noise]\nkind = "camera"\n[model]\nin_channels = 3\nsigma_input = true', 'requires model.noise = "camera"'),
        ('[model]\nin_channels = 3\nsigma_input = true\nnoise = "camera"', 'requires noise.kind = "camera"'),
        ('[model]\nnoise = "camera"', "the latter with sigma_input"),
        ('[model]\nsigma_input = true\nnoise = "film"', "white or camera, the latter with sigma_input, not 'film'"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_recipe_with_a_start_comes_back_from_its_header() -> None:
    config = read_recipe(ROOT / "recipes" / "denoise-photo-small.toml")
    assert recorded(config.header()) == config
    assert isinstance(config, TrainConfig)
