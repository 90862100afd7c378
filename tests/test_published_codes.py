"""A training as the authors' two codes do it: their scale, their Adam, their loss, each against a plain definition."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import make, trainer

from nlrn.models.checkpoint import load_model
from nlrn.models.nlrn import NLRN, NLRNConfig, on_unit_scale
from nlrn.training.config import NoiseConfig, OptimConfig, ScheduleConfig, Stage
from nlrn.training.logging import TrainingLog
from nlrn.training.optim import TensorFlowAdam, clip_gradients, loss_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize(("lr", "eps"), [(1e-3, 1e-8), (1e-3, 1e-3), (0.1, 1e-1)])
def test_adam_is_tensorflows(lr: float, eps: float) -> None:
    """lr_t = lr sqrt(1 - b2^t) / (1 - b1^t); p -= lr_t m / (sqrt(v) + eps): TensorFlow's documentation."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(5, 3, dtype=torch.float64, generator=generator))
    expected, m, v = p.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    optimizer = TensorFlowAdam([p], lr=lr, eps=eps)
    for t in range(1, 8):
        gradient = torch.randn(5, 3, dtype=torch.float64, generator=generator) * 10.0 ** (t - 4)
        p.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        expected = expected - rate * m / (v.sqrt() + eps)
        assert torch.allclose(p.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("size", "region", "top"), [(43, 5, 19), (45, 5, 20), (44, 5, 20), (9, 1, 4), (8, 8, 0)])
def test_the_loss_is_of_the_middle(size: int, region: int, top: int) -> None:
    """Where the authors' central_crop begins: size // 2 - 5 // 2."""
    restored, clean = torch.rand(2, 1, size, size), torch.rand(2, 1, size, size)
    part = (..., slice(top, top + region), slice(top, top + region))
    expected = (restored[part] - clean[part]).square().mean()
    assert torch.allclose(loss_of(restored, clean, "mse", region), expected)
    inside = torch.zeros(2, 1, size, size)
    inside[part] = 1
    restored.requires_grad_()
    loss_of(restored, clean, "mse", region).backward()  # type: ignore[no-untyped-call]
    assert restored.grad is not None
    assert torch.equal(restored.grad != 0, inside != 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_another_scale_is_brought_to_ours(channels: int) -> None:
    torch.manual_seed(0)
    model = NLRN(NLRNConfig(in_channels=channels, channels=8, embed_channels=4, states=2, window=5)).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    model.head_norm.running_mean.mul_(100)  # type: ignore[union-attr]
    model.head_norm.running_var.mul_(40)  # type: ignore[union-attr]  # below 65, which no 0..255 variance can be
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(2, channels, 9, 8)
    other = on_unit_scale(model, 255)
    with torch.no_grad():
        expected = model(255 * x) / 255
        assert torch.allclose(other(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert bool((other.head_norm.running_var >= 0).all())  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert on_unit_scale(model, 1) is model


def published(recipe: Path, folder: Path, largest: int, region: int):  # type: ignore[no-untyped-def]
    """A toy of one noise level, trained as they do."""
    return trainer(
        recipe,
        folder,
        model=NLRNConfig(channels=8, embed_channels=4, states=2, window=None),
        noise=NoiseConfig(25.0, 25.0),
        optim=OptimConfig("tf-adam", 1e-3, weight_decay=0.0, clip=2.5, clip_per_variable=True),
        schedule=ScheduleConfig("halving", 4, warmup=0, halve_at=(1,)),
        stages=(Stage(0, 12, 4),),
        loss="mse",
        loss_region=region,
        image_range=largest,
        ema=0.0,
        validate_every=1,
    )


@pytest.mark.parametrize(("largest", "region"), [(255, 0), (1, 5), (255, 5), (1, 0)])
def test_a_training_is_theirs_step_by_step(recipe: Path, tmp_path: Path, largest: int, region: int) -> None:
    """Against a loop in plain torch on the authors' scale; what is written is for 0..1, resumed or not."""
    subject = published(recipe, tmp_path / "run", largest, region)
    plain = published(recipe, tmp_path / "plain", 1, 0)
    twin = copy.deepcopy(subject.model).train()
    optimizer = TensorFlowAdam(twin.parameters(), lr=1e-3)
    for step in range(4):
        noisy, clean, _ = plain.batches(step)  # 0..1
        optimizer.param_groups[0]["lr"] = 1e-3 if step <= 1 else 5e-4
        optimizer.zero_grad()
        error = twin(largest * noisy) - largest * clean  # all on their scale
        part = error if not region else error[..., 4:9, 4:9]
        part.square().mean().backward()
        clip_gradients(list(twin.parameters()), subject.config.optim)
        optimizer.step()
    (tmp_path / "run").mkdir()
    with TrainingLog(tmp_path / "run", show=False, keep=True, tensorboard=False) as log:
        subject.run(log)
        weights = subject.finish(log)
    for (name, a), b in zip(subject.model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-5), name
    x = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        assert torch.allclose(load_model(weights)(x), twin.eval()(largest * x) / largest, atol=1e-4)


def test_the_scale_decides_what_the_clip_touches(recipe: Path, tmp_path: Path) -> None:
    """On 0..255 the gradients of the first step are larger, so that more variables reach the limit of 2.5."""
    touched = {}
    for largest in (1, 255):
        subject = published(recipe, tmp_path / str(largest), largest, 0)
        noisy, clean, _ = subject.batches(0)
        assert float(clean.max()) <= largest
        assert float(clean.max()) > largest / 2
        loss_of(subject.model.train()(noisy), clean, "mse").backward()  # type: ignore[no-untyped-call]
        norms = [float(p.grad.norm()) for p in subject.model.parameters() if p.grad is not None]
        touched[largest] = sum(norm > 2.5 for norm in norms)
    assert touched[255] > touched[1]
    digests = {published(recipe, tmp_path, n, r).config.digest() for n in (1, 255) for r in (0, 5)}
    assert len(digests) == 4
    config = published(recipe, tmp_path, 1, 0).config
    assert "image_range" not in config.header()  # released states keep their digests
    assert dataclasses.replace(config, image_range=255).digest() != config.digest()
