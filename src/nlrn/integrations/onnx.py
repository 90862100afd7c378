"""An NLRN as one ONNX file, for runtimes without torch (the extra nlrn[onnx]).

The graph is the folded network (`nlrn.models.folded`) in float32; height, width and the number of images are free.
Its attention is `onnx_attention`, which keeps memory to a few KB a pixel.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlrn.errors import ConfigError
from nlrn.integrations import require
from nlrn.models.checkpoint import load_model
from nlrn.models.folded import FoldedNLRN, convolve
from nlrn.models.nlrn import NLRN
from nlrn.system.atomic import check_target, publish

OPSET = 18
_EXAMPLE = (2, 19, 37)  # batch, height, width of the image that is traced: no two alike


class _Rowwise(FoldedNLRN):
    """The folded network with the attention that ONNX takes; its correlation is a list of tensors."""

    def attend(self, a: Tensor, t: int, correlation: Any, carry: bool) -> tuple[Tensor, Any]:
        from nlrn.integrations.onnx_attention import attention

        q, k, v = torch.split(convolve(a, self.embed[t]), self.split, 1)
        assert self.config.window is not None
        z, rows = attention(q, k, v, self.config.window, correlation or [])
        return z, rows if carry else None


class _Graph(nn.Module):
    """What is traced: image [B, C, H, W] and, where the model takes one, sigma [B, 1, H, W]."""

    def __init__(self, network: _Rowwise) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self.network.restored(image, sigma)


def export(model: NLRN | str | Path, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model as an ONNX file (opset 18), atomically, and return its path.

    model: an NLRN, a shipped name or a weights file, of a window and the embedded Gaussian. In the file: the input
    `image` [B, C, H, W], float32 on the 0..1 scale, for a model that receives the noise level `sigma` [B, 1, H, W],
    standard deviation on the same scale (sigma / 255; the same number everywhere for one level); the output
    `restored`, of the image's shape and not clipped. The metadata hold the configuration.

    Raises ConfigError for a model that has no window or another distance, InputError for the path, BackendError
    without the libraries.
    """
    require("onnx", "onnx", "onnxscript")
    check_target(path, overwrite=overwrite, inputs=[model] if isinstance(model, str | Path) else [])
    network = load_model(model) if isinstance(model, str | Path) else model
    return publish(path, graph(network), overwrite=overwrite)


def graph(model: NLRN) -> bytes:
    """The ONNX file of a model in eval mode. Raises ConfigError, BackendError."""
    import onnx

    config = model.config
    if config.window is None or not model.block.non_local.carries:
        raise ConfigError("only models with a window and the distance embedded_gaussian are exported to ONNX")
    proto = _traced(_Graph(_Rowwise(model)).eval(), config.in_channels, config.sigma_input)
    for node in proto.graph.node:  # without the places in the source that made the nodes
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.helper.set_model_props(
        proto, {"nlrn": json.dumps(dataclasses.asdict(config), sort_keys=True), "sigma": "standard deviation / 255"}
    )
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@torch.no_grad()
def _traced(network: nn.Module, channels: int, sigma_input: bool) -> Any:
    from nlrn.integrations.onnx_attention import translations

    batch, height, width = _EXAMPLE
    names = ["image", "sigma"] if sigma_input else ["image"]
    inputs = tuple(torch.rand(batch, n, height, width) for n in (channels, 1)[: len(names)])
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["restored"],
            dynamic_shapes=tuple(dict(free) for _ in names),
            custom_translation_table=translations(),
        )
    assert program is not None
    return program.model_proto
