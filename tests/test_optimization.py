"""theta and phi: a start of their own and a learning rate of their own; everything else as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import make, trainer

from nlrn.errors import ConfigError
from nlrn.model import NLRN, NLRNConfig
from nlrn.optimization import make_optimizer, scale_embeddings
from nlrn.recipe import OptimConfig, TrainConfig, read_recipe

SMALL = NLRNConfig(channels=8, embed_channels=4, states=2, window=5, sigma_input=True)
EMBEDDINGS = ("block.non_local.theta.", "block.non_local.phi.")


def test_the_gain_scales_the_kernels_of_theta_and_phi_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = NLRN(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scale_embeddings(model, 0.25)
    for name, value in model.state_dict().items():
        changed = name.startswith(EMBEDDINGS) and name.endswith("weight")
        assert torch.equal(value, before[name] * 0.25 if changed else before[name]), name


@pytest.mark.parametrize("kind", ["adam", "adamw"])
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
