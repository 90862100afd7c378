"""What goes to the worker and comes back; imports no torch, so that the service itself stays small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nlrn.web.limits import Limits


@dataclass(frozen=True)
class Task:
    """kind: "denoise", "upscale", "explain" or "preview". data: an image's file. options: fields of the request."""

    kind: str
    data: bytes
    options: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """content: the bytes of a file of the type `media`. headers: those of the answer in addition."""

    content: bytes
    media: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServiceConfig:
    """What the operator chose: files of more models, the device, bytes a computation may take (None: the usual).

    A client names a model by the name that is listed, never by a file.
    """

    models: tuple[str, ...] = ()
    device: str = "auto"
    memory: int | None = None
    limits: Limits = field(default_factory=Limits)
