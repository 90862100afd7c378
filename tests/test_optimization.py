"""theta and phi: a start of their own and a learning rate of their own; everything else as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy import make, trainer

from nlrn.errors import ConfigError
from nlrn.models.nlrn import NLRN, NLRNConfig
from nlrn.training.config import OptimConfig, TrainConfig, read_recipe
from nlrn.training.optim import Muon, make_optimizer, orthogonalized, start_embeddings

SMALL = NLRNConfig(channels=8, embed_channels=4, states=2, window=5, sigma_input=True)
HIDDEN = {"block.conv_a.weight", "block.conv_b.weight", "block.non_local.g.weight"}
EMBEDDINGS = ("block.non_local.theta.", "block.non_local.phi.")


def test_the_gain_scales_the_kernels_of_theta_and_phi_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = NLRN(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start_embeddings(model, 0.25)
    for name, value in model.state_dict().items():
        changed = name.startswith(EMBEDDINGS) and name.endswith("weight")
        assert torch.equal(value, before[name] * 0.25 if changed else before[name]), name


def test_tied_embeddings_start_as_one_and_part_ways(tmp_path: Path) -> None:
    subject = trainer(make(tmp_path), tmp_path / "run", embedding_tied=True, embedding_gain=0.5)
    block = subject.model.block.non_local
    torch.manual_seed(subject.config.seed)
    theta = NLRN(subject.config.model).block.non_local.theta
    assert torch.equal(block.phi.weight, block.theta.weight)
    assert torch.equal(block.theta.weight, 0.5 * theta.weight)
    for _ in range(3):
        subject.train_step()
        subject.step += 1
    assert not torch.equal(block.phi.weight, block.theta.weight)


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_every_parameter_has_its_rate_and_its_decay(kind: str) -> None:
    config = TrainConfig("x", SMALL, embedding_lr=0.125, optim=OptimConfig(kind, weight_decay=0.5))
    model = NLRN(SMALL)
    optimizer = make_optimizer(config, model)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    for name, group in found.items():
        assert group["factor"] == (0.125 if name.startswith(EMBEDDINGS) else 1.0), name
        assert group["weight_decay"] == (0.5 if model.get_parameter(name).dim() > 1 else 0.0), name
        assert group["orthogonal"] == (name in HIDDEN), name


def test_the_trainer_uses_both(tmp_path: Path) -> None:
    """With a rate of 0 theta and phi stay exactly where the gain put them; everything else moves."""
    subject = trainer(
        make(tmp_path),
        tmp_path / "run",
        embedding_gain=0.5,
        embedding_lr=0.0,
        optim=OptimConfig(weight_decay=0.0),
    )
    torch.manual_seed(subject.config.seed)
    start = dict(NLRN(subject.config.model).named_parameters())
    for _ in range(3):
        subject.train_step()
        subject.step += 1
    for name, p in subject.model.named_parameters():
        if name.startswith(EMBEDDINGS):
            gain = 0.5 if p.dim() > 1 else 1.0
            assert torch.equal(p, start[name] * gain), name
        elif "block.conv" in name and p.dim() > 1:
            assert not torch.equal(p, start[name]), name


def test_bad_values_are_refused_and_the_recipes_use_them() -> None:
    for bad in ({"embedding_gain": 0.0}, {"embedding_gain": -1.0}, {"embedding_lr": -0.1}):
        with pytest.raises(ConfigError, match="embedding"):
            TrainConfig("x", SMALL, **bad)  # type: ignore[arg-type]
    recipes = Path(__file__).parents[1] / "recipes"
    assert read_recipe(recipes / "denoise-gray-small.toml").embedding_gain == 0.5
    paper = read_recipe(recipes / "paper-sigma25.toml")
    assert (paper.embedding_gain, paper.embedding_lr) == (1.0, 1.0)


@pytest.mark.parametrize("shape", [(64, 576), (32, 32), (48, 12), (1, 9)])
def test_orthogonalized_brings_the_singular_values_to_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalized(matrix)
    values = torch.linalg.svdvals(found)
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    large = singular > 0.05 * singular.max()  # five steps do not lift the smallest all the way
    inside = (left.T @ found @ right.T).diagonal()[large]
    assert (inside > 0.6).all()
    assert values.max() < 1.3
    assert torch.equal(orthogonalized(torch.zeros(shape)), torch.zeros(shape))


def test_muon_is_torchs_muon_on_matrices_and_adamw_on_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 90, generator=generator), torch.randn(24, generator=generator)
    gradients = [[torch.randn(x.shape, generator=generator) for x in start] for _ in range(4)]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    ours[0] = nn.Parameter(start[0].view(24, 10, 3, 3).clone())
    common = {"lr": 0.01, "weight_decay": 0.1}
    groups = [{"params": [p], "orthogonal": orthogonal} for p, orthogonal in zip(ours, (True, False), strict=True)]
    subjects = [Muon(groups, **common)]
    oracles = [
        torch.optim.Muon(theirs[:1], adjust_lr_fn="match_rms_adamw", **common),
        torch.optim.AdamW(theirs[1:], **common),
    ]
    for step in gradients:
        for parameters, optimizers in ((ours, subjects), (theirs, oracles)):
            for p, gradient in zip(parameters, step, strict=True):
                p.grad = gradient.view(p.shape).clone()
            for optimizer in optimizers:
                optimizer.step()
    moved, expected = ours[0].view(24, 90) - start[0], theirs[0] - start[0]
    assert (moved - expected).norm() < 0.02 * expected.norm()  # theirs computes in bfloat16
    assert torch.equal(ours[1], theirs[1])
