"""NonLocal2d: the six distances against the oracle, and what inserting the module into a network means."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

from nlrn.errors import ConfigError
from nlrn.models.distances import DISTANCES
from nlrn.models.nlrn import NonLocal2d
from nlrn.ops import tiled

CHANNELS, EMBED = 4, 3
SHAPES = [(2, CHANNELS, 6, 11), (2, CHANNELS, 2, 5), (1, CHANNELS, 17, 5), (1, CHANNELS, 1, 1), (1, CHANNELS, 1, 13)]
WINDOWS = [3, 7, None]


def random_module(distance: str, window: int | None, seed: int = 0, **kwargs: object) -> NonLocal2d:
    """Every parameter random, g too, in float64."""
    module = NonLocal2d(CHANNELS, EMBED, distance=distance, window=window, **kwargs).double()
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    values = oracle.random_parameters(shapes, seed, embedding=1.5)
    module.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()})
    return module


def features(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def expected(module: NonLocal2d, x: Tensor) -> np.ndarray:
    params = {name: p.detach().double().numpy() for name, p in module.state_dict().items()}
    return oracle.non_local(x.double().numpy(), params, module.distance, module.window)


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.pairwise
@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_is_the_formula_of_the_paper(
    distance: str, window: int | None, shape: tuple[int, ...], backend: str
) -> None:
    module, x = random_module(distance, window, backend=backend), features(shape)
    exact = module(x).detach()
    assert exact.shape == x.shape
    np.testing.assert_allclose(exact.numpy(), expected(module, x), rtol=0, atol=1e-12)
    narrow = module.float()(x.float()).detach()
    assert narrow.dtype == torch.float32
    assert float((narrow.double() - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_distances_differ(distance: str) -> None:
    x = features(SHAPES[0])
    out = random_module(distance, 3)(x)
    for other in DISTANCES:
        changed = random_module(distance, 3)
        changed.distance = other
        if other != distance and set(changed.state_dict()) == set(random_module(other, 3).state_dict()):
            assert float((changed(x) - out).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("distance", DISTANCES)
def test_each_distance_owns_the_parameters_it_uses(distance: str) -> None:
    names = {"g"}
    if "embedded" in distance:
        names.add("theta")
    if distance in ("embedded_gaussian", "embedded_dot_product"):
        names.add("phi")
    if distance == "euclidean":
        names.add("log_h")
    module = NonLocal2d(CHANNELS, distance=distance, h=0.5)
    assert {name.split(".")[0] for name in module.state_dict()} == names
    if distance == "euclidean":
        assert module.log_h.exp().item() == pytest.approx(0.5)
    if "embedded" in distance:
        assert module.theta.weight.shape == (CHANNELS // 2, CHANNELS, 1, 1)


def test_one_channel_can_be_embedded() -> None:
    assert NonLocal2d(1).theta.weight.shape == (1, 1, 1, 1)


# --------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("window", [3, None])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_of_the_input_and_of_every_parameter(distance: str, window: int | None) -> None:
    module, x = random_module(distance, window), 0.7 * features((2, CHANNELS, 2, 3))
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    inputs = [t.detach().requires_grad_() for t in (x, *module.parameters())]
    assert torch.autograd.gradcheck(call, inputs)


# --------------------------------------------------------------------------------------------- insertion
def small_network(module: NonLocal2d | None = None) -> nn.Sequential:
    """conv - ReLU - conv, with the module after the ReLU if one is given; the same weights every time."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, 1, 3, padding=1)]
    return nn.Sequential(*layers[:2], *([] if module is None else [module]), layers[2])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_inserting_the_module_changes_nothing_before_training(distance: str, window: int | None) -> None:
    x = features((2, 1, 9, 14)).float()
    assert torch.equal(small_network(NonLocal2d(CHANNELS, distance=distance, window=window))(x), small_network()(x))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_short_training_moves_every_parameter_and_lowers_the_loss(distance: str) -> None:
    module = NonLocal2d(CHANNELS, distance=distance, window=5)
    network = small_network(module)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    rows = torch.arange(16.0)
    clean = (0.5 + 0.4 * torch.sin(rows[:, None] / 3) * torch.cos(rows / 2)).expand(2, 1, 16, 16)
    noisy = clean + 0.2 * features((2, 1, 16, 16)).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (network(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, p in module.named_parameters():
        if not (name == "phi.bias" and distance == "embedded_gaussian"):
            assert float((p.detach() - start[name]).abs().max()) > 1e-3, name


def test_the_bias_of_phi_does_not_matter_to_a_softmax_but_that_of_theta_does() -> None:
    """theta_i . bias is one constant per query; bias . phi_j is not."""
    x = features(SHAPES[0])
    module = random_module("embedded_gaussian", 5)
    before = module(x)
    with torch.no_grad():
        module.phi.bias += 1
    torch.testing.assert_close(module(x), before, rtol=0, atol=1e-12)
    with torch.no_grad():
        module.theta.bias += 1
    assert float((module(x) - before).detach().abs().max()) > 1e-2


# --------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("distance", DISTANCES)
def test_autocast_and_16_bit_modules_work_forward_and_backward(distance: str, window: int | None) -> None:
    module, x = random_module(distance, window).float(), features(SHAPES[0]).float().requires_grad_()
    exact = module(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        cast = module(x)
        cast.square().sum().backward()
    narrow = module.bfloat16()(x.bfloat16())
    narrow.float().square().sum().backward()
    assert (cast.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    for out in (cast, narrow):
        assert float((out.detach() - exact).abs().max()) <= 0.05 * float(exact.abs().max())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("distance", ["euclidean", "dot_product", "embedded_dot_product"])
def test_a_16_bit_module_keeps_its_sums_and_squares_wide(distance: str) -> None:
    """Far from zero the squares of the Euclidean distance cancel, and running sums outgrow 8 bits."""
    narrow = random_module(distance, 3).bfloat16()
    x = (8 + 2 * features((1, CHANNELS, 7, 40))).bfloat16()
    out = narrow(x).detach().double()
    exact = narrow.double()(x.double()).detach()
    assert float((out - exact).abs().max()) <= 2**-6 * float(exact.abs().max())


@pytest.mark.parametrize("block", [1, 20_000, 1 << 20])
@pytest.mark.parametrize("distance", ["dot_product", "embedded_dot_product"])
def test_the_dot_products_of_a_map_are_made_of_tiles(
    distance: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one tile of one image at a time to whole strips of the batch: the same sums, no more held than that."""
    x = features((2, CHANNELS, 13, 61))
    held: list[int] = []
    module = random_module(distance, 5)
    exact = torch.as_tensor(expected(module, x))
    logits = tiled._logits

    def seen(*arguments: Any) -> Tensor:
        found = logits(*arguments)
        held.append(found.numel())
        return found

    def made() -> tuple[Tensor, Tensor]:
        inputs = x.clone().requires_grad_()
        out = module(inputs)
        return out.detach(), torch.autograd.grad(out.square().sum(), inputs)[0]

    whole = made()
    monkeypatch.setattr(tiled, "_logits", seen)
    monkeypatch.setattr(tiled, "BLOCK", block)
    parts = made()
    tile = (8 * 8) * (12 * 12)  # queries x keys of one tile inside the image
    assert len(held) > 3
    assert max(held) <= max(block, tile)
    torch.testing.assert_close(parts[0], exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": "cosine"}, "'cosine'"),
        ({"window": 4}, "not 4"),
        ({"window": -1}, "not -1"),
        ({"window": 0}, "not 0"),
        ({"h": 0.0}, "not 0.0"),
        ({"h": -2.0}, "not -2.0"),
        ({"h": float("nan")}, "not nan"),
        ({"h": float("inf")}, "not inf"),
        ({"embed_channels": 0}, "embed_channels must be at least 1, not 0"),
        ({"channels": 0}, "channels must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_value(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NonLocal2d(**{"channels": CHANNELS, **arguments})


def test_a_name_that_does_not_exist_lists_the_six() -> None:
    with pytest.raises(ConfigError) as caught:
        NonLocal2d(CHANNELS, distance="cosine")
    assert all(name in str(caught.value) for name in DISTANCES)


@pytest.mark.filterwarnings("ignore")  # the exporter warns of what it does itself
@pytest.mark.parametrize("options", [{"distance": "dot_product"}, {"backend": "tiled"}])
def test_an_export_leaves_nothing_behind_for_what_runs_later(options: dict[str, str]) -> None:
    """The masks of tiles are kept, and those of an export hold no numbers."""
    torch.manual_seed(0)
    block, x = NonLocal2d(4, window=5, **options).eval(), torch.rand(1, 4, 9, 9)  # type: ignore[arg-type]
    nn.init.normal_(block.g.weight)
    for kept in (tiled._mask, tiled._shares):
        kept.cache_clear()
    program = torch.export.export(block, (x,))
    found = block(x)
    for kept in (tiled._mask, tiled._shares):
        kept.cache_clear()
    torch.testing.assert_close(found, block(x))
    torch.testing.assert_close(program.module()(x), found)
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), found)  # with masks that are kept
