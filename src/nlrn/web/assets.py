"""The files of the page, read once and served by name; no other path leads to a file."""

from __future__ import annotations

from pathlib import Path

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def assets() -> dict[str, tuple[bytes, str]]:
    """By the path in a URL, "/" for the page: the bytes and their type."""
    root = Path(__file__).parent / "page"
    files = sorted(path for path in root.rglob("*") if path.suffix in _TYPES)
    found = {f"/{path.relative_to(root).as_posix()}": (path.read_bytes(), _TYPES[path.suffix]) for path in files}
    return {"/" if name == "/index.html" else name: file for name, file in found.items()}
