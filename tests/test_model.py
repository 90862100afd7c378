"""NLRN: its sizes, the oracle's network with every parameter random, and what each option promises."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

from nlrn.errors import BackendError, ConfigError, InputError
from nlrn.models.distances import DISTANCES
from nlrn.models.nlrn import NLRN, PRESETS, NLRNConfig
from nlrn.ops import correlation_to_dense

NARROW = {"channels": 12, "embed_channels": 6}


def random_model(
    config: NLRNConfig, embedding: float = 1.0, seed: int = 0, backend: str = "auto"
) -> tuple[NLRN, oracle.Params]:
    """In float64 and eval mode, every parameter and running statistic random; and the same for the oracle."""
    model = NLRN(config, backend=backend).double().eval()
    state = model.state_dict()
    shapes = {name: tuple(p.shape) for name, p in state.items() if not name.endswith("num_batches_tracked")}
    params = oracle.random_parameters(shapes, seed, embedding)
    model.load_state_dict(state | {name: torch.as_tensor(value) for name, value in params.items()})
    return model, params


def random_image(*shape: int, seed: int = 1) -> Tensor:
    """Noise around 0.5, exact in float32, as float64."""
    return (0.5 + 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).double()


def difference(a: Tensor, b: np.ndarray | Tensor) -> float:
    """max |a - b| / max |b|."""
    b = torch.as_tensor(b).detach().double()
    return float((a.detach().double() - b).abs().max() / b.abs().max())


# ------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("config", "trainable", "convolutions"),
    [
        (NLRNConfig(), 340_099, 330_625),
        (NLRNConfig(sigma_input=True), 341_251, 331_777),
        (NLRNConfig(states=15, propagation=False), 340_099 + 3 * 3 * 2 * 128, 330_625),
        (NLRNConfig(in_channels=3), 340_099 + 2 * 9 * 128 + 2 * (9 * 128 + 1) + 4, 330_625 + 4 * 9 * 128 + 2),
        (PRESETS["small"], 85_827, 83_393),
    ],
)
def test_parameter_counts(config: NLRNConfig, trainable: int, convolutions: int) -> None:
    model = NLRN(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == convolutions
    assert len(layers) == 7  # head, theta, phi, g, two shared 3 x 3, tail
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 3 * config.states + 2


def test_the_presets_are_the_papers_network_and_a_small_one() -> None:
    assert PRESETS["base"] == NLRNConfig() == NLRN().config
    assert NLRNConfig() == NLRNConfig(1, 128, 64, 12, 45, True, False, "denoise")
    assert PRESETS["small"] == NLRNConfig(channels=64, embed_channels=32, states=6, window=15)
    assert set(PRESETS) == {"base", "small"}


def test_initial_weights_are_glorot_uniform_with_zero_biases_and_a_zero_g() -> None:
    torch.manual_seed(0)
    model = NLRN(NLRNConfig(sigma_input=True))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum, layer.affine) == (1e-3, 0.01, True), name
            assert bool((layer.weight == 1).all()), name
            assert not layer.bias.any(), name
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None, name
            assert not layer.bias.any(), name
            taps = layer.kernel_size[0] ** 2
            bound = math.sqrt(6 / (taps * (layer.in_channels + layer.out_channels)))
            if name.endswith(".g"):
                assert not layer.weight.any()
                continue
            largest, spread = float(layer.weight.detach().abs().max()), float(layer.weight.detach().std())
            assert 0.98 * bound < largest <= bound, name
            assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05), name


# --------------------------------------------------------------------------------------------- the oracle
SIGMAS = {
    "none": None,
    "number": 25 / 255,
    "batch": torch.tensor([5 / 255, 50 / 255], dtype=torch.float64),
    "map": torch.linspace(0, 75 / 255, 2 * 9 * 14, dtype=torch.float64).view(2, 1, 9, 14),
}
CASES = [  # states, window, propagation, sigma, channels
    (12, 5, True, "none", 1),
    (12, 5, False, "none", 1),
    (12, None, True, "map", 1),
    (12, None, False, "number", 3),
    (6, 5, True, "batch", 3),
    (6, 5, False, "map", 1),
    (6, None, True, "none", 3),
    (6, None, False, "batch", 1),
    (6, 5, True, "number", 1),
]


def expect(
    config: NLRNConfig, params: oracle.Params, x: Tensor, sigma: Tensor | float | None, training: bool
) -> tuple[np.ndarray, oracle.Trace, float]:
    """The oracle's output and trace, and the largest |S| inside the windows."""
    expected, trace = oracle.nlrn(
        x.numpy(), params, states=config.states, window=config.window, propagation=config.propagation,
        sigma=sigma.numpy() if isinstance(sigma, Tensor) else sigma, training=training,
    )  # fmt: skip
    return expected, trace, trace.largest_logit(oracle.neighbours(*x.shape[2:], config.window))


def hot_embedding(config: NLRNConfig, x: Tensor, sigma: Tensor | float | None, training: bool) -> float:
    """The scale of theta and phi at which the logits reach about 40, those of a trained network."""
    embedding = 1.0
    for _ in range(8):
        _, _, largest = expect(config, random_model(config, embedding)[1], x, sigma, training)
        embedding *= math.sqrt(40 / largest)
    return embedding


def check_against_the_oracle(config: NLRNConfig, x: Tensor, sigma: Tensor | float | None, training: bool) -> None:
    embedding = hot_embedding(config, x, sigma, training)
    model, params = random_model(config, embedding)
    expected, trace, largest = expect(config, params, x, sigma, training)
    assert 20 <= largest <= 60
    assert difference(model.train(training)(x, sigma), expected) <= 1e-10
    after = oracle.running_after(params, trace)
    statistics = {name: b for name, b in model.named_buffers() if not name.endswith("num_batches_tracked")}
    assert set(after) == (set(statistics) if training else set())
    for name, found in statistics.items():
        assert difference(found, after.get(name, params[name])) <= 1e-12, name
    narrow = random_model(config, embedding)[0].float().train(training)
    out = narrow(x.float(), sigma.float() if isinstance(sigma, Tensor) else sigma)
    assert out.dtype == torch.float32
    assert difference(out, expected) <= 1e-5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("states", "window", "propagation", "sigma", "channels"), CASES)
def test_the_network_is_the_papers_with_every_parameter_random(
    states: int, window: int | None, propagation: bool, sigma: str, channels: int, training: bool
) -> None:
    config = NLRNConfig(
        channels, states=states, window=window, propagation=propagation, sigma_input=sigma != "none", **NARROW
    )
    check_against_the_oracle(config, random_image(2, channels, 9, 14), SIGMAS[sigma], training)


@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_network_with_each_of_the_six_distances(distance: str, window: int | None) -> None:
    config = NLRNConfig(states=3, window=window, propagation=False, distance=distance, **NARROW)
    model, params = random_model(config)
    x = random_image(2, 1, 9, 14)
    expected, _ = oracle.nlrn(x.numpy(), params, states=3, window=window, propagation=False, distance=distance)
    assert difference(model(x), expected) <= 1e-10
    narrowed, _ = oracle.nlrn(x.numpy(), params, states=3, window=3, propagation=False, distance=distance)
    assert difference(model.reconfigured(window=3)(x), narrowed) <= 1e-10
    assert difference(model(x), narrowed) > 1e-6
    assert difference(model(x), expected) <= 1e-10


@pytest.mark.parametrize("size", [(20, 24), (9, 50)])
def test_the_base_network_at_its_full_width_and_window(size: tuple[int, int]) -> None:
    with torch.no_grad():
        check_against_the_oracle(PRESETS["base"], random_image(1, 1, *size), None, training=False)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_named_backend_is_used_and_gives_the_same(backend: str) -> None:
    config, x = NLRNConfig(states=3, window=5, **NARROW), random_image(1, 1, 11, 13)
    model, params = random_model(config, backend=backend)
    assert model.backend(11, 13) == backend
    assert difference(model(x), oracle.nlrn(x.numpy(), params, states=3, window=5)[0]) <= 1e-12


# ------------------------------------------------------------------------------------- recurrence, sharing
def test_convolutions_are_shared_and_batch_norms_are_not() -> None:
    """Every state calls the same convolutions once; no batch norm is called twice."""
    model, _ = random_model(NLRNConfig(states=4, window=3, **NARROW))
    calls: dict[str, int] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    model(random_image(1, 1, 7, 8))
    assert calls.pop("block.conv_a") == calls.pop("block.conv_b") == 4
    assert set(calls.values()) == {1}
    assert len([name for name in calls if "norm" in name]) == 3 * 4 + 2
    statistics = [b.data_ptr() for name, b in model.named_buffers()]
    assert len(set(statistics)) == len(statistics)


def test_every_parameter_matters_and_gets_a_gradient() -> None:
    """All but the bias of phi: it adds one constant to all logits of a query."""
    model, _ = random_model(NLRNConfig(states=3, window=5, sigma_input=True, **NARROW))
    model(random_image(2, 1, 9, 8), 0.1).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        largest = float(p.grad.abs().max())
        assert largest < 1e-9 if name.endswith("phi.bias") else largest > 1e-6, name


def test_propagation_changes_the_second_state_not_the_first() -> None:
    x = random_image(1, 1, 9, 8)
    for states, same in ((1, True), (2, False)):
        model, _ = random_model(NLRNConfig(states=states, window=5, **NARROW))
        off = model.reconfigured(propagation=False)
        assert torch.equal(model(x), off(x)) == same


@pytest.mark.parametrize("propagation", [True, False])
@pytest.mark.parametrize("window", [5, None])
def test_the_observer_sees_the_correlations_of_all_states(window: int | None, propagation: bool) -> None:
    config = NLRNConfig(states=4, window=window, propagation=propagation, **NARROW)
    model, params = random_model(config, 1.5)
    x, seen = random_image(2, 1, 9, 11), []
    with torch.no_grad():
        out = model(x, observer=lambda t, s: seen.append((t, s.clone())))
        torch.testing.assert_close(out, model(x), rtol=0, atol=1e-13)
    _, trace = oracle.nlrn(x.numpy(), params, states=4, window=window, propagation=propagation)
    assert [t for t, _ in seen] == [0, 1, 2, 3]
    for (_, state), expected in zip(seen, trace.correlations, strict=True):
        found = correlation_to_dense(state, batch=2, height=9, width=11, window=window, backend=model.backend(9, 11))
        assert difference(found, oracle.windowed(expected, 9, 11, window)) <= 1e-12


# ------------------------------------------------------------------------------------------ reach and shape
@pytest.mark.parametrize("propagation", [True, False])
@pytest.mark.parametrize(("states", "window", "radius"), [(1, 1, 4), (2, 3, 8), (1, 5, 6), (3, 1, 8)])
def test_an_output_pixel_sees_exactly_the_receptive_radius(
    states: int, window: int, radius: int, propagation: bool
) -> None:
    config = NLRNConfig(states=states, window=window, propagation=propagation, **NARROW)
    model, _ = random_model(config)
    assert model.receptive_radius == radius
    centre = radius + 3
    x = random_image(1, 1, 2 * centre + 1, 2 * centre + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, 0, centre, centre], x)
    rows, columns = gradient[0, 0].nonzero(as_tuple=True)
    reach = torch.maximum((rows - centre).abs(), (columns - centre).abs())
    assert int(reach.max()) == radius
    for side in (rows - centre, columns - centre):
        assert (int(side.min()), int(side.max())) == (-radius, radius)


def test_the_receptive_radius_of_the_presets() -> None:
    assert NLRN().receptive_radius == 290
    assert NLRN(PRESETS["small"]).receptive_radius == 56
    assert NLRN(NLRNConfig(window=None, **NARROW)).receptive_radius is None


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (17, 1), (2, 2), (13, 17), (8, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_output_has_the_shape_of_the_input(channels: int, size: tuple[int, int]) -> None:
    x = random_image(2, channels, *size)
    for window in (5, 45, None):
        model, params = random_model(NLRNConfig(channels, states=2, window=window, **NARROW))
        out = model(x)
        assert out.shape == x.shape
        assert difference(out, oracle.nlrn(x.numpy(), params, states=2, window=window)[0]) <= 1e-12


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, _ = random_model(NLRNConfig(states=3, window=5, **NARROW))
    x = random_image(3, 1, 10, 9)
    alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-13)


def test_channels_last_input_gives_the_same() -> None:
    model, _ = random_model(NLRNConfig(3, states=3, window=5, **NARROW))
    x = random_image(2, 3, 10, 9)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=0, atol=1e-13)


def test_the_output_is_not_clipped() -> None:
    model = NLRN(NLRNConfig(states=2, window=3, **NARROW)).eval()
    nn.init.zeros_(model.tail.weight)
    x = torch.tensor([[[[-3.0, 0.5], [1.0, 4.0]]]])
    assert torch.equal(model(x), x)


# ------------------------------------------------------------------------------------------------- sigma
def test_sigma_passes_by_the_first_batch_norm() -> None:
    """A constant plane under a batch's own statistics would be erased."""
    model, _ = random_model(NLRNConfig(states=2, window=5, sigma_input=True, **NARROW))
    assert model.head_norm.num_features == 1
    x = random_image(2, 1, 9, 8)
    for training in (False, True):
        low, high = (model.train(training)(x, sigma) for sigma in (5 / 255, 50 / 255))
        assert difference(low, high) > 1e-3


def test_a_number_a_batch_and_a_map_of_one_sigma_are_the_same() -> None:
    model, _ = random_model(NLRNConfig(states=2, window=5, sigma_input=True, **NARROW))
    x = random_image(2, 1, 9, 8)
    shapes: list[tuple[int, ...]] = [(), (1,), (2,), (2, 1, 9, 8), (1, 1, 1, 1), (2, 1, 1, 1)]
    for sigma in (*(torch.full(shape, 0.1) for shape in shapes), np.full(2, 0.1, np.float32)):
        assert torch.equal(model(x, sigma), model(x, float(np.float32(0.1))))
    assert not torch.equal(model(x, torch.tensor([0.1, 0.2]))[1], model(x, 0.1)[1])


# ---------------------------------------------------------------------------------------- reconfiguration
def test_a_reconfigured_network_leaves_frozen_parameters_frozen() -> None:
    model, _ = random_model(NLRNConfig(states=2, window=5, **NARROW))
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        first = next(iter(model.parameters()))
        first.requires_grad_(frozen)
        flags = [p.requires_grad for p in model.parameters()]
        other = model.reconfigured(window=3)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert [p.requires_grad for p in other.parameters()] == flags


def test_a_reconfigured_network_shares_its_parameters() -> None:
    model, params = random_model(NLRNConfig(states=3, window=5, **NARROW))
    x = random_image(1, 1, 11, 12)
    before = model(x)
    for window, propagation in product((3, None), (True, False)):
        other = model.reconfigured(window=window, propagation=propagation)
        assert other.config == NLRNConfig(states=3, window=window, propagation=propagation, **NARROW)
        assert other.receptive_radius == (None if window is None else 11)
        assert [id(t) for t in other.state_dict(keep_vars=True).values()] == [
            id(t) for t in model.state_dict(keep_vars=True).values()
        ]
        expected, _ = oracle.nlrn(x.numpy(), params, states=3, window=window, propagation=propagation)
        assert difference(other(x), expected) <= 1e-12
    assert model.config == NLRNConfig(states=3, window=5, **NARROW)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    "changes",
    [{"states": 4}, {"channels": 8}, {"embed_channels": 8}, {"in_channels": 3}, {"sigma_input": True},
     {"task": "sr"}, {"window": 4}, {"window": 3, "states": 4}, {"distance": "gaussian", "propagation": False}],
)  # fmt: skip
def test_what_would_change_the_parameters_cannot_be_reconfigured(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NLRN(NLRNConfig(states=3, window=5, **NARROW)).reconfigured(**changes)


# ---------------------------------------------------------------------------------------------- precision
def test_training_under_autocast_follows_float32() -> None:
    config = NLRNConfig(states=4, window=5, sigma_input=True, **NARROW)
    x, found = random_image(2, 1, 16, 16).float(), []
    for autocast in (False, True):
        model = random_model(config, 0.5)[0].float().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (model(x, 0.1) - 0.5).square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert bool(found[1].isfinite().all())
    assert float(torch.nn.functional.cosine_similarity(*found, dim=0)) > 0.99


# ----------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"channels": -8}, "channels must be at least 1, not -8"),
        ({"embed_channels": 0}, "embed_channels must be at least 1, not 0"),
        ({"states": 0}, "states must be at least 1, not 0"),
        ({"window": 8}, "not 8"),
        ({"window": -3}, "not -3"),
        ({"task": "deblur"}, "'deblur'"),
        ({"distance": "cosine", "propagation": False}, "'cosine'"),
        ({"distance": "gaussian"}, "gaussian requires propagation = false"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_value(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NLRNConfig(**setting)


def test_inputs_that_do_not_fit_are_refused_by_value() -> None:
    plain = NLRN(NLRNConfig(states=1, window=3, **NARROW)).eval()
    shown = NLRN(NLRNConfig(states=1, window=3, sigma_input=True, **NARROW)).eval()
    x = random_image(2, 1, 5, 6).float()
    with pytest.raises(InputError, match=r"\[B, 1, H, W\], not \(2, 3, 5, 6\)"):
        plain(x.expand(2, 3, 5, 6))
    with pytest.raises(InputError, match=r"not \(2, 5, 6\)"):
        plain(x[:, 0])
    with pytest.raises(InputError, match="takes no noise level"):
        plain(x, 0.1)
    with pytest.raises(InputError, match="needs the noise level"):
        shown(x)
    for shape in ((3,), (2, 1), (2, 5, 6), (2, 1, 6, 5), (2, 2, 5, 6), (1, 2, 1, 5, 6)):
        with pytest.raises(InputError, match=f"not {shape}".replace("(", r"\(").replace(")", r"\)")):
            shown(x, torch.full(shape, 0.1))


def test_a_backend_that_does_not_exist_is_refused() -> None:
    model = NLRN(NLRNConfig(states=1, window=3, **NARROW), backend="fast").eval()
    with pytest.raises(BackendError, match="'fast'"):
        model.backend(5, 6)
    with pytest.raises(BackendError, match="'fast'"):
        model(random_image(1, 1, 5, 6).float())
