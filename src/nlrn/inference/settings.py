"""Settings: how an image is run."""

from __future__ import annotations

from dataclasses import dataclass

from nlrn.errors import ConfigError, number

MAX_LEVEL = 2.0
MAX_NEIGHBORS = 2
MODES = ("window", "patch")
PRECISIONS = ("auto", "fp32", "bf16")
OVERLAP = 32
MEMORY = 4 << 30  # bytes; fixed, so that the same command gives the same tiles each time


@dataclass(frozen=True)
class Settings:
    """How an image is processed. mode: "window" (over the whole image) or "patch" (the authors' protocol).

    precision: "bf16", "fp32" or "auto", bf16 where the hardware multiplies it. tile: None chooses by `memory`
    (bytes the computation may take), 0 forces the whole image, else the side of a tile in pixels; tiles overlap
    by `overlap` pixels (None: 32, or half of a smaller tile), the inner quarter of which is blended; an overlap of
    8/3 of NLRN.receptive_radius makes the tiles equal to the whole image. tta: the mean over the image's 8 flips
    and quarter turns, each turned back (what the paper calls multi-view testing): 8 times the work. level: factor
    on the level that is estimated for a model for photographs, 0..2; others do not use it. neighbors: how many planes
    of a stack before and after its own a plane is restored with, 0..2, in window mode.
    """

    mode: str = "window"
    precision: str = "auto"
    tile: int | None = None
    overlap: int | None = None
    memory: int = MEMORY
    tta: bool = False
    level: float = 1.0
    neighbors: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode must be {' or '.join(MODES)}, not {self.mode!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.tile is not None and (number(self.tile, "tile", ConfigError) < 0 or self.tile % 1):
            raise ConfigError(f"tile must be a number of pixels, or 0 for the whole image, not {self.tile}")
        if self.tile and self.mode != "window":  # 0: the whole image
            raise ConfigError("tiles are for window mode: patch mode has its own patches")
        if not 0 <= number(self.level, "level", ConfigError) <= MAX_LEVEL:
            raise ConfigError(f"level must lie in 0..{MAX_LEVEL:g}, not be {self.level:g}")
        if number(self.neighbors, "neighbors", ConfigError) not in range(MAX_NEIGHBORS + 1):
            raise ConfigError(f"neighbors must be a number of planes, 0 to {MAX_NEIGHBORS}, not {self.neighbors}")
        if self.neighbors and self.mode != "window":
            raise ConfigError("neighbors are for window mode: a patch is of one plane")
        if number(self.memory, "memory", ConfigError) < 1:
            raise ConfigError("memory must be at least one byte")
        if not 0 <= number(self.overlap or 0, "overlap", ConfigError) <= (self.tile or 1e9) // 2:
            raise ConfigError(f"overlap must lie between 0 and half of the tile, not be {self.overlap}")

    def overlap_of(self, side: int) -> int:
        """The overlap of tiles of this side."""
        return min(OVERLAP if self.overlap is None else self.overlap, side // 2)
