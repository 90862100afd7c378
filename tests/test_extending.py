"""What CONTRIBUTING.md promises of additions: a distance, noise, backend or format that is entered in its table works.

Each is added here as its one file would add it, and used by what goes by its name.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from torch import Tensor

from nlrn.batch.plan import plan
from nlrn.errors import ConfigError, InputError
from nlrn.inference.restorer import Restorer
from nlrn.io.image import ImageData, encode_image, write_image
from nlrn.io.written import SUFFIXES, WRITTEN, Written
from nlrn.models.checkpoint import load_model, save_model
from nlrn.models.distances import DISTANCES, Distance
from nlrn.models.nlrn import NLRN, NLRNConfig, NonLocal2d
from nlrn.ops import functional as dispatch
from nlrn.ops import neighborhood_attention, reference, unsupported
from nlrn.training.data import Batches
from nlrn.training.degradations import NOISES, GaussianNoise
from nlrn.training.distributed import Processes
from nlrn.training.validation import Validation


def cosine(q: Tensor, k: Tensor, log_h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ten times the cosine of the angle between two pixels."""
    return 10 * torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)


def test_a_distance_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTANCES, "cosine", Distance(("theta", "phi"), logits=cosine))
    torch.manual_seed(0)
    part = NonLocal2d(4, 3, distance="cosine").double()
    torch.nn.init.normal_(part.g.weight)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    theta, phi, g = (m(x).flatten(2)[0].T for m in (part.theta, part.phi, part.g))
    cosines = (theta / theta.norm(dim=1, keepdim=True)) @ (phi / phi.norm(dim=1, keepdim=True)).T
    expected = x + ((10 * cosines).softmax(1) @ g).T.view(1, 4, 5, 6)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-12)

    config = NLRNConfig(channels=4, embed_channels=2, states=2, window=5, distance="cosine", propagation=False)
    save_model(tmp_path / "cosine.safetensors", NLRN(config).eval())
    model = load_model(tmp_path / "cosine.safetensors")
    assert model.config == config
    image = np.random.default_rng(0).random((12, 13), np.float32)
    restored = Restorer(model).denoise(image)
    assert restored.shape == image.shape
    assert np.isfinite(restored).all()


class Inverted(GaussianNoise):
    """No noise at all: the negative of the image."""

    def pairs(self, step, first, clean, patch):  # type: ignore[no-untyped-def]
        batch = super().pairs(step, first, clean, patch)
        return batch._replace(degraded=1 - batch.clean)

    def conditions(self):  # type: ignore[no-untyped-def]
        return {"inverted": (0.1, lambda clean, number: (1 - clean, clean))}


def test_a_noise_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy.make(tmp_path)
    recipe = tmp_path / "inverted.toml"
    recipe.write_text(plain.read_text().replace("[noise]", '[noise]\nkind = "inverted"'))
    with pytest.raises(
        ConfigError,
        match=r"noise\.kind must be gaussian or camera or pairs or noise2noise or neighbor2neighbor, not 'inverted'",
    ):
        toy.read_recipe(recipe)
    monkeypatch.setitem(NOISES, "inverted", Inverted)
    config = toy.read_recipe(recipe)
    degraded, clean, sigma = Batches(config, tmp_path, Processes(torch.device("cpu")))(0)
    assert torch.equal(degraded, 1 - clean)
    assert sigma is not None
    scores = Validation(config, tmp_path, torch.device("cpu"))(NLRN(config.model))
    assert "psnr_inverted" in scores
    assert config.digest() != toy.read_recipe(plain).digest()


def test_a_backend_is_one_module_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def attend(*arguments: object) -> tuple[Tensor, Tensor | None]:
        calls.append(arguments)
        return reference.attend(*arguments)  # type: ignore[arg-type]

    functions = {
        name: getattr(reference, name) for name in ("unsupported", "state_elements", "to_dense", "of_pixel", "rows")
    }
    added = SimpleNamespace(attend=attend, **functions)
    monkeypatch.setitem(dispatch.DIRECT, "added", added)
    monkeypatch.setitem(dispatch.BACKENDS, "added", added)
    q, k, v = (torch.randn(1, 6, 7, n) for n in (3, 3, 4))
    assert unsupported("added", q, 3) is None
    expected = neighborhood_attention(q, k, v, window=3, backend="reference")
    assert torch.equal(neighborhood_attention(q, k, v, window=3, backend="added"), expected)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_a_format_that_is_written_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITTEN, "TGA", Written((".tga",), "image/x-tga", alpha=True))
    monkeypatch.setitem(SUFFIXES, ".tga", "TGA")
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = ImageData((levels / 255).astype(np.float32), alpha=levels[::-1])
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", image)
    (job,) = plan(tmp_path / "in", tmp_path / "out", form=".tga")
    assert (job.target.name, job.form) == ("a.tga", "TGA")
    with Image.open(write_image(tmp_path / "a.tga", image)) as file:
        assert np.array_equal(np.asarray(file), np.dstack((levels, levels[::-1])))
    with pytest.raises(InputError, match="TGA files would cut the image's 16 bits to 8"):
        encode_image(image.with_depth(16), "TGA")
