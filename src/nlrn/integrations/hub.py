"""The Hugging Face hub: save_pretrained, from_pretrained and push_to_hub for an NLRN (the extra nlrn[hub]).

A folder, or a repository, holds model.safetensors, a weights file of this package with the configuration in its header,
README.md, the model card, and a copy of the configuration, config.json, by which the hub counts. Only the weights file
is loaded, checked strictly (`nlrn.models.checkpoint`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nlrn.errors import CheckpointError
from nlrn.integrations import require
from nlrn.models.checkpoint import load_model, save_model
from nlrn.models.nlrn import NLRN

require("hub", "huggingface_hub")

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download  # noqa: E402

WEIGHTS = "model.safetensors"
_CARD = """---
library_name: nlrn
pipeline_tag: image-to-image
tags:
- {tag}
- non-local
- model_hub_mixin
---

# NLRN, {what}

The Non-Local Recurrent Network (Liu, Wen, Fan, Loy, Huang; NeurIPS 2018): {parameters:,} parameters, {channels}
channels, {states} recurrent states, {window}, {propagation} correlation propagation, {images} images.

```python
from nlrn.integrations.hub import HubNLRN

model = HubNLRN.from_pretrained("this repository or folder")
restored = {call}
```

Images are [B, {in_channels}, H, W] on the 0..1 scale{sigma}.
`nlrn.load(model)` restores files and arrays with it.
"""


class HubNLRN(NLRN, ModelHubMixin):
    """An NLRN that can be saved to, loaded from and pushed to a repository of the hub, or a folder laid out like one.

    `HubNLRN.of(model)` shares the parameters of an existing NLRN.
    """

    @classmethod
    def of(cls, model: NLRN) -> HubNLRN:
        """The model, its parameters shared, with the hub's methods."""
        return cls.sharing(model, model.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(save_directory / WEIGHTS, self)
        self._hub_mixin_config = dataclasses.asdict(self.config)  # what ModelHubMixin writes to config.json

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a model's arguments are in its file
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> HubNLRN:
        """The model of a folder or repository, in eval mode. Raises CheckpointError; the hub's errors pass."""
        name = str(pretrained_model_name_or_path)
        path = Path(name) / WEIGHTS
        if not Path(name).is_dir():
            path = Path(
                hf_hub_download(
                    name,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        if not path.is_file():
            raise CheckpointError(f"{name} holds no {WEIGHTS}")
        return cls.of(load_model(path))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that save_pretrained writes where there is none: task, parameters and how to load it."""
        return ModelCard(_card(self))


def _card(model: NLRN) -> str:
    c = model.config
    denoises = c.task == "denoise"
    return _CARD.format(
        tag="denoising" if denoises else "super-resolution",
        what="denoising" if denoises else "super-resolution of the luminance",
        parameters=sum(p.numel() for p in model.parameters()),
        channels=c.channels,
        states=c.states,
        window="the whole image as its window" if c.window is None else f"a window of {c.window} x {c.window}",
        propagation="with" if c.propagation else "without",
        images="grey" if c.in_channels == 1 else "colour",
        in_channels=c.in_channels,
        call="model(image, sigma=25 / 255)" if c.sigma_input else "model(image)",
        sigma=", and so is `sigma`, the noise's standard deviation" if c.sigma_input else "",
    )
