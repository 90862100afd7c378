"""Laws of a training step: what it sees, what it computes, alone and in several processes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import CPU, make, trainer

from nlrn.errors import InputError
from nlrn.models.nlrn import NLRN, NLRNConfig, RecurrentBlock
from nlrn.training.config import OptimConfig, Stage
from nlrn.training.distributed import Processes
from nlrn.training.logging import TrainingLog
from nlrn.training.optim import clip_gradients, compile_states, loss_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data"))


# -- what a step sees ----------------------------------------------------------------------------------------


def test_a_batch_is_a_pure_function_of_seed_and_step(recipe: Path, tmp_path: Path) -> None:
    one, two = trainer(recipe, tmp_path), trainer(recipe, tmp_path)
    first = one.batches(7)
    for step in (40, 3):
        one.batches(step)
    for again in (one.batches(7), two.batches(7)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    for other in (one.batches(8), trainer(recipe, tmp_path, seed=1).batches(7)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))  # type: ignore[arg-type]


def test_a_later_stages_patch_that_no_image_holds_is_refused_at_once(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image holds a patch of 41 x 41"):
        trainer(recipe, tmp_path, stages=(Stage(0, 12, 4), Stage(30, 41, 4)))


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_see_the_batch_of_one(recipe: Path, tmp_path: Path, world: int) -> None:
    single = trainer(recipe, tmp_path)
    whole, shares = single.batches(33), []
    for rank in range(world):
        single.batches.processes = Processes(CPU, rank, world)
        shares.append(single.batches(33))
        assert torch.equal(single.batches(33, whole=True)[0], whole[0])
    for i, part in enumerate(whole):
        assert part is not None
        assert torch.equal(torch.cat([share[i] for share in shares]), part)  # type: ignore[misc]


def test_the_noise_has_the_level_that_the_model_is_told(recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path, stages=(Stage(0, 40, 200),))
    noisy, clean, sigma = subject.batches(0)
    assert sigma is not None
    noise = (noisy - clean).flatten(1).double()  # 1,600 numbers for each of 200 levels
    assert float(((noise.std(1) / sigma - 1).abs()).max()) < 5 / math.sqrt(2 * 1600)
    assert float((noise.mean(1) / sigma).abs().max()) < 5 / math.sqrt(1600)
    normal = noise / sigma[:, None]
    assert float((normal**4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / normal.numel()))
    assert float(torch.corrcoef(normal).fill_diagonal_(0).abs().max()) < 6 / math.sqrt(1600)
    levels = np.sort(sigma.numpy() * 255)
    assert levels[0] > 10
    assert levels[-1] < 50
    assert np.abs((levels - 10) / 40 - np.arange(200) / 200).max() < 1.95 / math.sqrt(200)  # Kolmogorov, 0.1 %
    assert float(clean.min()) >= 0
    assert torch.equal(clean * 255, (clean * 255).round())


def test_losses_by_hand() -> None:
    clean = torch.zeros(2, 1, 2, 2)
    restored = torch.stack([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 1.0)])
    assert float(loss_of(restored, clean, "mse")) == pytest.approx((9 + 1) / 2)
    assert float(loss_of(restored, clean, "rms")) == pytest.approx((3 + 1) / 2)
    assert float(loss_of(restored, clean, "log")) == pytest.approx((math.log(3) + math.log(1)) / 2, abs=1e-5)
    assert float(loss_of(clean, clean, "log")) == pytest.approx(math.log(0.5 / 255), rel=1e-6)


def test_a_patch_weighs_the_same_in_the_logarithm_whatever_its_noise() -> None:
    clean = torch.zeros(2, 1, 4, 4)
    error = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    restored = torch.cat([error, 10 * error]).requires_grad_()
    loss_of(restored, clean, "log").backward()  # type: ignore[no-untyped-call]
    assert restored.grad is not None
    weak, strong = (restored.grad * restored.detach()).flatten(1).sum(1)  # change of the loss for errors 1 % larger
    assert float(weak) == pytest.approx(float(strong), rel=1e-4)


@pytest.mark.parametrize("each", [False, True])
def test_gradients_are_clipped_as_by_hand(each: bool) -> None:
    gradients = [np.array([3.0, 4.0]), np.array([0.6, 0.8]), np.array([[12.0]])]
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = torch.from_numpy(g.copy())
    norm = clip_gradients(parameters, OptimConfig(clip=2.5, clip_per_variable=each))
    norms = [5.0, 1.0, 12.0]
    together = math.sqrt(25 + 1 + 144)
    scales = [min(1.0, 2.5 / n) for n in norms] if each else [2.5 / together] * 3
    assert float(norm) == pytest.approx(12.0 if each else together)
    for p, g, scale in zip(parameters, gradients, scales, strict=True):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), g * scale, rtol=1e-6)


def test_the_average_and_its_statistics_are_means_by_hand(recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path)
    average = {k: p.detach().clone() for k, p in subject.model.named_parameters()}
    for step in range(12):
        subject.train_step()
        decay = min(0.9, (1 + step) / (10 + step))
        for k, p in subject.model.named_parameters():
            average[k] = decay * average[k] + (1 - decay) * p.detach()
        subject.step += 1
    model = subject.averaged_model()
    for k, p in model.named_parameters():
        assert torch.allclose(p, average[k], atol=1e-6)
    assert not model.training

    seen: dict[str, list[Tensor]] = {}
    copy = NLRN(subject.config.model)
    copy.load_state_dict(model.state_dict())
    norms = {name: m for name, m in copy.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0].detach()))
    for i in range(4):
        noisy, _, sigma = subject.batches(12 + i)
        copy.train()(noisy, sigma)
    assert len(norms) == 2 + 3 * 2
    for name, inputs in seen.items():
        state = model.state_dict()
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
        assert torch.allclose(state[f"{name}.running_mean"], mean, atol=1e-5)
        assert torch.allclose(state[f"{name}.running_var"], variance, rtol=1e-4, atol=1e-6)


def test_without_averaging_the_weights_are_shipped_as_they_are(recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path, ema=0.0)
    for _ in range(3):
        subject.train_step()
        subject.step += 1
    shipped, trained = subject.averaged_model().state_dict(), subject.model.state_dict()
    assert all(torch.equal(shipped[k], v) for k, v in trained.items())
    assert all(torch.equal(subject.ema[k], p) for k, p in subject.model.named_parameters())


def test_frozen_batch_norms_keep_the_averages_statistics_and_steps_compute_what_inference_does(
    recipe: Path, tmp_path: Path
) -> None:
    subject = trainer(recipe, tmp_path, stages=(Stage(0, 12, 4), Stage(3, 12, 4, frozen=True)))
    with TrainingLog(tmp_path, show=False) as log:
        while subject.step < 3:
            subject.train_step()
            subject.step += 1
        averaged = subject.averaged_model().state_dict()
        subject.end = 4
        subject.run(log)  # one step
    parameters = dict(subject.model.named_parameters())
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, averaged[name]) == (name not in parameters), name

    subject.validation(subject.model.train())  # leaves the model in training mode, as it found it
    twin = NLRN(subject.config.model).eval()
    twin.load_state_dict(subject.model.state_dict())
    noisy, clean, sigma = subject.batches(4)
    expected = loss_of(twin(noisy, sigma), clean, "rms")
    expected.backward()
    loss, _ = subject.train_step()
    assert torch.equal(loss, expected.detach())
    scale = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters() if p.grad is not None))
    for p, q in zip(subject.model.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert torch.allclose(p.grad, q.grad / max(1.0, scale), rtol=1e-4, atol=1e-7)
    subject.step += 1
    shipped = subject.averaged_model().state_dict()
    assert all(torch.equal(shipped[k], v) for k, v in averaged.items() if k not in parameters)
    assert all(torch.equal(shipped[k], v) for k, v in subject.ema.items())


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_state_computes_what_the_eager_one_does(compiler: str) -> None:
    torch.manual_seed(0)
    eager = NLRN(NLRNConfig(channels=8, embed_channels=4, states=9, window=5))
    nn.init.normal_(eager.block.non_local.g.weight, std=0.1)
    compiled = NLRN(eager.config)
    compiled.load_state_dict(eager.state_dict())
    compile_states(compiled, compiler)
    x = torch.rand(2, 1, 12, 12)
    torch._dynamo.utils.counters.clear()
    for model in (eager, compiled):
        model(x).square().mean().backward()
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for c, d in zip(eager.state_dict().values(), compiled.state_dict().values(), strict=True):
        assert torch.allclose(c.float(), d.float(), atol=1e-5)  # nine states, each with statistics of its own
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert torch.equal(compiled.eval()(x), compiled(x))
    other = compiled.reconfigured(window=1)  # its block is its own, not what was compiled
    assert type(other.block) is RecurrentBlock
    assert torch.allclose(other(x), eager.eval().reconfigured(window=1)(x), atol=1e-4)
    assert not torch.allclose(other(x), compiled(x), atol=1e-3)


def test_a_batch_in_parts_makes_the_same_step_once_the_batch_norms_are_frozen(recipe: Path, tmp_path: Path) -> None:
    stages = (Stage(0, 12, 7), Stage(2, 12, 7, frozen=True))
    whole = trainer(recipe, tmp_path, stages=stages)
    parts = trainer(recipe, tmp_path, stages=(stages[0], dataclasses.replace(stages[1], accumulate=3)))
    with TrainingLog(tmp_path, show=False) as log:
        for subject in (whole, parts):
            subject.end = 2
            subject.run(log)
            subject._freeze(log)
    sizes = [len(parts.batches(2, part)[0]) for part in range(3)]
    assert sizes == [2, 2, 3]
    together = [torch.cat(part) for part in zip(*(parts.batches(2, i) for i in range(3)), strict=True)]  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(together, whole.batches(2), strict=True))  # type: ignore[arg-type]
    (loss, norm), (expected, expected_norm) = parts.train_step(), whole.train_step()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(norm) == pytest.approx(float(expected_norm), rel=1e-5)
    for p, q in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_before_that_each_part_is_normalised_by_its_own_statistics(recipe: Path, tmp_path: Path) -> None:
    subject = trainer(recipe, tmp_path, stages=(Stage(0, 12, 6, accumulate=2),))
    twin = NLRN(subject.config.model)
    twin.load_state_dict(subject.model.state_dict())
    batches = [subject.batches(0, part) for part in (0, 1)]
    losses = []
    for noisy, clean, sigma in batches:
        losses.append(float(loss_of(twin(noisy, sigma), clean, "rms").detach()))
    loss, _ = subject.train_step()
    assert float(loss) == pytest.approx(sum(losses) / 2, rel=1e-6)
    for name, value in twin.named_buffers():  # as after two steps
        assert torch.allclose(value, subject.model.get_buffer(name), rtol=1e-6, atol=1e-7), name
    whole = trainer(recipe, tmp_path, stages=(Stage(0, 12, 6),))
    assert float(whole.train_step()[0]) != pytest.approx(float(loss), rel=1e-5)
