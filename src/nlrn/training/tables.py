"""Tables of a TOML file as frozen dataclasses, strict about every key and type."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from nlrn.errors import ConfigError

FORMER_KEYS = (("data", "validation_pictures", "validation_images"),)  # codespell:ignore - of headers and digests


def build(kind: type, values: Any, where: str) -> Any:
    """A dataclass of that kind, and those in its fields, from a TOML table; `where` names the table in messages.

    Raises ConfigError: for an unknown key with the nearest known one, for a wrong type with both types.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a table, not {values!r}")
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(kind)}  # "from" is a keyword of Python
    for table, old, new in FORMER_KEYS:
        if table == where and old in values and new in values:
            raise ConfigError(f"{where} has {new} and {old}, its former name: give {new} only")
        if table == where:
            values = {new if key == old else key: value for key, value in values.items()}
    hints = {name.rstrip("_"): hint for name, hint in get_type_hints(kind).items()}
    values = {key: _nested(hints.get(key), value, key) for key, value in values.items()}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(fields))}"
            raise ConfigError(f"unknown key {key!r} in {where}{hint}")
        if not _fits(hints[key], value):
            raise ConfigError(f"{where}.{key} must be {fields[key].type}, not {value!r}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return kind(**{fields[k].name: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _nested(hint: Any, value: Any, where: str) -> Any:
    """The value, but where the hint is a dataclass, or several, what its tables make."""
    kind: Any = next(filter(dataclasses.is_dataclass, (hint, *get_args(hint))), None)
    several = get_origin(hint) is tuple
    if kind is None or (several and not isinstance(value, list)):
        return value
    return [build(kind, one, where) for one in value] if several else build(kind, value, where)


def _fits(wanted: Any, value: Any) -> bool:
    """Whether a TOML value has an annotated type. Integers are floats too; bools and nan are not."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        of = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(of) == len(value) and all(map(_fits, of, value))
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is wanted
