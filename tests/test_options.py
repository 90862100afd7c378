"""What is asked of an image is one value, whether arguments or the fields of a form say it."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from fastapi import UploadFile

from nlrn import cli
from nlrn.errors import ConfigError
from nlrn.functional.anscombe import PoissonNoise
from nlrn.inference.options import DenoiseOptions, Options, UpscaleOptions
from nlrn.inference.pipeline import Counts, Denoising
from nlrn.web import fields

KINDS: dict[str, tuple[type[Options], type[fields.Upload]]] = {
    "denoise": (DenoiseOptions, fields.Denoising),
    "upscale": (UpscaleOptions, fields.Upscaling),
}


def from_form(task: str, given: dict[str, str]) -> Options:
    form = KINDS[task][1].model_validate({"image": UploadFile(io.BytesIO()), **given})
    return KINDS[task][0].of(form.model_dump(exclude={"image", "watch"}))


def from_arguments(task: str, given: dict[str, str]) -> Options:
    switches = {("tta", "true"): "--tta", ("denoise_first", "true"): "--denoise-first"}
    switches |= {("denoise_first", "false"): "--keep-noise"}
    words = [switches.get(one, f"--{one[0].replace('_', '-')}={one[1]}") for one in given.items()]
    return KINDS[task][0].of(vars(cli._parser().parse_args([task, "in.png", "-o", "out.png", *words])))


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("denoise", {}),
        ("denoise", {"sigma": "12.5", "strength": "0.5", "mode": "patch", "tta": "true", "precision": "fp32"}),
        ("denoise", {"sigma": "auto", "noise": "photo", "level": "1.5", "tile": "64", "overlap": "16"}),
        ("denoise", {"noise": "poisson", "gain": "8", "read_noise": "2", "depth": "16", "range": "0,4095"}),
        ("denoise", {"noise": "poisson", "gain_adu": "2.5", "read_noise_adu": "3", "black_level_adu": "100"}),
        ("denoise", {"model": "denoise-gray", "tile": "0", "overlap": "0", "range": "type", "depth": "8"}),
        ("denoise", {"quality": "80", "compression": "deflate"}),
        ("upscale", {}),
        ("upscale", {"scale": "2.5", "range": "image", "model": "sr"}),
        ("upscale", {"width": "90", "height": "70", "depth": "32", "tile": "128"}),
        ("upscale", {"denoise_first": "true"}),
        ("upscale", {"denoise_first": "false", "scale": "3"}),
    ],
)
def test_arguments_and_fields_of_one_name_ask_for_the_same(task: str, given: dict[str, str]) -> None:
    asked = from_form(task, given)
    assert asked == from_arguments(task, given)
    usual = KINDS[task][0]()
    changed = {
        field.name for field in dataclasses.fields(asked) if getattr(asked, field.name) != getattr(usual, field.name)
    }
    assert changed == {name for name, value in given.items() if (name, value) != ("sigma", "auto")}


def test_every_field_of_a_form_is_an_option() -> None:
    """But for the image, the file's format and the word to watch the work by.

    The operator's are not in the form; neighbours are of stacks, which it does not take; it previews parts by itself.
    """
    for task, (options, form) in KINDS.items():
        operator = {"device", "memory", "neighbors", "preview"} | ({"level"} if task == "upscale" else set())
        names = {field.name for field in dataclasses.fields(options)}
        assert set(form.model_fields) - {"image", "format", "watch"} == names - operator


def test_options_become_what_the_pipeline_asks_for() -> None:
    asked = DenoiseOptions.of({"noise": "poisson", "gain": 8.0, "model": "x", "range": "1,5", "unknown": 3}).asked()
    assert asked == Denoising(PoissonNoise(8.0, 0.0), named=True, value_range=(1.0, 5.0))
    poisson = {"noise": "poisson"}
    assert DenoiseOptions.of(poisson | {"gain_adu": 2.0}).asked() == Denoising(noise="poisson", counts=Counts(2.0))
    wrong: list[dict[str, Any]] = [poisson | {"read_noise": 1.0}, poisson | {"gain": 1.0, "sigma": 3.0}, {"gain": 1.0}]
    wrong += [{"gain_adu": 1.0}, poisson | {"gain": 1.0, "black_level_adu": 5.0}]
    for given in wrong:
        with pytest.raises(ConfigError, match="poisson noise"):
            DenoiseOptions.of(given).asked()
    with pytest.raises(ConfigError, match="smaller of two"):
        Options.of({"range": "5,1"})
