"""Restorer: a model, its device and its settings. The single way from an image to the restored image.

Images here are NumPy float arrays HW or HWC on the 0..1 scale; they may exceed it (noise does) and results are
not clipped. Files, other array types and user interfaces are converted by the modules above this one.
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nlrn.errors import ConfigError, NotFiniteError
from nlrn.functional.alpha import fill_hidden, hidden
from nlrn.functional.anscombe import PoissonNoise
from nlrn.functional.levels import channels_of, check_auto, checked_level, checked_strength, found_noise, level_of
from nlrn.functional.noise import NoiseEstimate
from nlrn.functional.ranges import Range, Scale, checked_image, scale_beyond, scale_of
from nlrn.functional.tiling import PATCH, Average, Blend, patch_size, patches, plan
from nlrn.inference.beside import ALONE, Beside, check_neighbors
from nlrn.inference.coarse import with_half_size
from nlrn.inference.kinds import ImageT, floats_or_same_kind
from nlrn.inference.memory import backing_off, memory_per_pixel, tile_side, within_memory
from nlrn.inference.self_ensemble import Progress, image_of, over_views, planes_of, tick_of_part
from nlrn.inference.settings import MEMORY as MEMORY
from nlrn.inference.settings import Settings as Settings
from nlrn.inference.super_resolution import enlarged, passes_of, resized_bicubic, seen_size
from nlrn.models.checkpoint import default_model, load_model, to_device
from nlrn.models.folded import FoldedNLRN
from nlrn.models.nlrn import NLRN
from nlrn.ops.cpu import say_if_missing
from nlrn.system.hardware import hardware_bf16, usable_device

_BATCH_PIXELS = 1 << 16  # pixels of patches that go through the model together


class Restorer:
    """A model on a device under fixed settings; it keeps nothing of any image.

    An NLRN given as the model is copied, in float32 and eval mode; the caller's is not changed.

    model: a loaded NLRN, a shipped name, a weights file, or None for the default grey denoiser.
    device: "auto", or any of torch's. Raises ModelNotFoundError, CheckpointError, BackendError.
    """

    def __init__(
        self,
        model: NLRN | str | Path | None = None,
        *,
        device: str = "auto",
        settings: Settings | None = None,
    ) -> None:
        self.device = usable_device(device)
        self.settings = settings or Settings()
        model = default_model("denoise", 1) if model is None else model
        own = copy.deepcopy(model) if isinstance(model, NLRN) else load_model(model)
        self.model = to_device(own.float(), self.device).eval()
        if self.device.type == "cpu":
            say_if_missing()
        self._folded: dict[torch.dtype, FoldedNLRN] = {}
        self._largest: int | None = None  # side of a tile after a refusal of memory; None: it backs off

    def denoise(
        self,
        image: ImageT,
        sigma: float | str | np.ndarray | PoissonNoise = "auto",
        *,
        strength: float = 1.0,
        alpha: np.ndarray | None = None,
        noise: str = "auto",
        value_range: Range = "auto",
        progress: Progress | None = None,
        beside: Beside = ALONE,
    ) -> ImageT:
        """The denoised image of the same shape, of floats float64 for float64 and else float32, not clipped.

        image: float HW or HWC (C = 1 or 3) on the 0..1 scale, or whatever else `nlrn.denoise` takes without axes, of
        which the same kind comes back; a colour image goes through a grey model channel by channel. sigma: the
        noise's standard deviation in 0-255 units, 0..75: a number, an HW map, "auto" to estimate it, for every
        channel where each goes through the model separately, or a PoissonNoise, which grows with the light. strength:
        how much of the noise goes, 0..1. noise: what is estimated, as of `estimate_noise`. alpha: HW, or None; the
        colour of pixels where it is 0 does not reach the others and comes back as it was. value_range: what the
        network sees as 0..1, as of `functional.ranges.scale_of`; sigma stays in 1/255 of 0..1. progress:
        progress(done, total) is called after each tile or batch of patches; where the system refuses memory, the work
        begins again in smaller tiles, and the logger "nlrn" reports it. beside: of float arrays, the planes of the
        stack beside this one, up to Settings.neighbors before and after it, with the same noise.
        Raises InputError for anything else, ConfigError for more planes, MemoryBudgetError where no tile fits.
        """
        self.require("denoise")

        def restore(array: np.ndarray, own: np.ndarray | None, chosen: Range) -> np.ndarray:
            hidden_by = own if alpha is None else alpha
            return self._denoise(array, sigma, strength, hidden_by, noise, chosen, progress, beside)

        return floats_or_same_kind(image, restore, value_range)

    def _denoise(
        self,
        image: np.ndarray,
        sigma: float | str | np.ndarray | PoissonNoise,
        strength: float,
        alpha: np.ndarray | None,
        noise: str,
        value_range: Range,
        progress: Progress | None,
        beside: Beside,
    ) -> np.ndarray:
        image = checked_image(image, value_range)
        beside = beside.checked(image, value_range, self.settings.neighbors)
        check_neighbors(self.settings, self.model.config)
        strength = checked_strength(strength)
        if self._largest is None:
            again = partial(Restorer.denoise, image=image, sigma=sigma, strength=strength, alpha=alpha, noise=noise)
            again = partial(again, value_range=value_range, progress=progress, beside=beside)
            return backing_off(self, image.shape[:2], again)[0]
        if not isinstance(sigma, PoissonNoise):
            sigma = self.noise_level(image, sigma, alpha, noise, value_range)
        seen = fill_hidden(image, alpha)
        scale = self.scale(image, sigma, alpha=alpha, value_range=value_range)
        level = sigma if isinstance(sigma, PoissonNoise) else sigma / scale.spread
        unit = self._denoised(scale.unit(seen), level, progress, beside.seen(scale.unit))
        result = scale.back(unit, image.dtype) + scale.beyond(seen)
        if strength < 1:
            result = image + np.float32(strength) * (result - image)
        return result if alpha is None else np.where(hidden(image, alpha), image, result)

    def scale(
        self,
        image: np.ndarray,
        sigma: float | str | np.ndarray | PoissonNoise = 0.0,
        *,
        alpha: np.ndarray | None = None,
        value_range: Range = "auto",
    ) -> Scale:
        """The range of values of an image that the network sees as 0..1, as of `nlrn.functional.ranges.scale_of`.

        Noise of photons has its own scale, and a model of one fixed level keeps the type's range for "auto".
        """
        config = self.model.config
        fixed = config.task == "denoise" and not config.sigma_input
        if isinstance(sigma, PoissonNoise) or (fixed and value_range == "auto"):
            return Scale()
        known = 0.0 if isinstance(sigma, str) or not config.sigma_input else sigma
        return scale_of(fill_hidden(image, alpha), value_range, known)

    def _denoised(
        self, image: np.ndarray, sigma: float | np.ndarray | PoissonNoise, progress: Progress | None, beside: Beside
    ) -> np.ndarray:
        if isinstance(sigma, PoissonNoise):
            if not self.model.config.sigma_input or self.model.config.noise != "white":
                raise ConfigError("Poisson noise requires a model that receives the level of white noise")
            return sigma.removed(
                image,
                lambda x, level, *others: self._denoised(x, level, progress, Beside(others, beside.before)),
                beside.planes,
            )
        if image.shape[2:] == (3,) and self.model.config.in_channels == channels_of(image) == 1:
            grey = beside.seen(lambda plane: plane[..., :1])
            return self._denoised(image[..., :1], sigma, progress, grey).repeat(3, axis=2)  # once, not three times
        if isinstance(sigma, np.ndarray) and sigma.ndim == 1:
            channels = []
            for c, level in enumerate(sigma):
                tick = progress and partial(tick_of_part, progress, c, len(sigma))
                one = itemgetter((..., slice(c, c + 1)))
                channels.append(self._denoised(one(image), float(level), tick, beside.seen(one)))
            return np.concatenate(channels, axis=2)
        scale = scale_beyond(image, sigma) if self.model.config.sigma_input else Scale()
        planes = beside.joined(image, lambda plane: planes_of(scale.unit(plane), self.model.config.in_channels))
        whole = partial(self._restored, place=beside.before)
        run = partial(with_half_size, whole) if self.model.config.noise == "camera" else whole
        restored = run(planes, sigma / scale.spread, progress)
        return scale.back(image_of(restored, image.shape), np.dtype(np.float32))

    def upscale(
        self,
        image: ImageT,
        height: int,
        width: int,
        *,
        value_range: Range = "auto",
        progress: Progress | None = None,
    ) -> ImageT:
        """The image in another size, [height, width(, C)], of floats float64 for float64 and else float32, not clipped.

        As in the paper: enlarged by MATLAB's bicubic, then the network restores the luminance (BT.601, studio range)
        of the enlarged image, and the colour differences stay bicubic; a grey image is its own luminance. image: as
        for `denoise`; alpha is enlarged by bicubic. Each side grows by 1.5 to 16: by one pass up to 4, what the
        network has seen in training, and by two equal ones beyond. Below 2 it would sharpen too much: it runs at 2,
        and bicubic makes the result smaller. value_range: as for `denoise`.
        Raises InputError for anything else, ConfigError for a model of another task, MemoryBudgetError when no tile
        fits the memory.
        """
        self.require("sr")

        def restore(array: np.ndarray, alpha: np.ndarray | None, chosen: Range) -> np.ndarray:
            return self._upscale(fill_hidden(array, alpha), height, width, chosen, progress)

        return floats_or_same_kind(image, restore, value_range)

    def _upscale(
        self, given: np.ndarray, height: int, width: int, value_range: Range, progress: Progress | None
    ) -> np.ndarray:
        image = given = checked_image(given, value_range)
        if self._largest is None:
            again = partial(Restorer.upscale, image=image, height=height, width=width)
            shape = seen_size(image.shape[:2], (height, width))
            return backing_off(self, shape, partial(again, value_range=value_range, progress=progress))[0]
        scale = self.scale(image, value_range=value_range)
        beyond, image = scale.beyond(given), scale.unit(given)
        passes = passes_of(image.shape[:2], (height, width))
        for i in range(passes):
            share = (i + 1) / passes
            pairs = zip(image.shape[:2], (height, width), strict=True)
            rows, columns = seen_size(image.shape[:2], [n * (m / n) ** share for n, m in pairs])
            tick = progress and partial(tick_of_part, progress, i, passes)
            image = enlarged(image, rows, columns, partial(self._restored, noise=0.0, progress=tick))
        image = image if image.shape[:2] == (height, width) else resized_bicubic(image, height, width)
        result = scale.back(image, given.dtype)
        return result + (resized_bicubic(beyond, height, width) if isinstance(beyond, np.ndarray) else 0)

    def require(self, task: str) -> None:
        """Raises ConfigError for a model of another task."""
        if self.model.config.task != task:
            raise ConfigError(f"this model is for {self.model.config.task}, not for {task}: give another")

    def _restored(
        self, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None, place: int = 0
    ) -> np.ndarray:
        """[B, P * C, H, W] restored by the settings: the image [B, C, H, W] at that place among the P planes."""
        run = self._patchwise if self.settings.mode == "patch" else partial(self._tilewise, place=place)
        return over_views(run, planes, noise, progress) if self.settings.tta else run(planes, noise, progress)

    def noise_level(
        self,
        image: np.ndarray,
        sigma: float | str | np.ndarray,
        alpha: np.ndarray | None = None,
        noise: str = "auto",
        value_range: Range = "auto",
    ) -> float | np.ndarray:
        """The noise level that will be used, in 0-255 units: as given, or estimated and held to 0..75.

        A number, a map HW, or for "auto" on a colour image that goes through a grey model a level for each channel
        [C]. noise: what "auto" takes the image to have, as of `estimate_noise`. Where alpha is 0 nothing is estimated
        from. A model trained for one level takes none: for it "auto" is not estimated, and 0 comes back. For a model
        for photographs it is the level of correlated noise, an estimate times Settings.level.
        """
        if not isinstance(sigma, str):
            black, white = (0.0, 1.0) if isinstance(value_range, str) else value_range
            return checked_level(image, sigma, self.model.config.in_channels, white - black)
        check_auto(sigma)
        found = self.found_noise(image, alpha, noise, value_range)
        spread = self.scale(image, alpha=alpha, value_range=value_range).spread
        return self.level_for(found, spread) if found else 0.0

    def level_for(self, found: tuple[NoiseEstimate, ...], spread: float) -> float | np.ndarray:
        """What this model receives for the noise that was found, 0-255 units, a number or one for each channel."""
        camera = self.model.config.noise == "camera"
        return level_of(found, spread, self.settings.level if camera else None)

    def found_noise(
        self,
        image: np.ndarray,
        alpha: np.ndarray | None = None,
        noise: str = "auto",
        value_range: Range = "auto",
    ) -> tuple[NoiseEstimate, ...]:
        """The noise that "auto" finds: one estimate, or one for each channel that the model takes separately.

        None for a model that takes no sigma. It is estimated on the range that the network sees; levels are in 1/255
        of 0..1 as always.
        """
        config = self.model.config
        if not config.sigma_input:
            return ()
        scale = self.scale(image, alpha=alpha, value_range=value_range)
        seen = image if scale == Scale() else scale.unit(image)
        found = found_noise(seen, config.in_channels, alpha, noise)
        return tuple(one.times(scale.spread) for one in found)

    def memory_per_pixel(self, height: int, width: int) -> float:
        """Bytes a pixel that an image of this size takes at the peak of one pass.

        Fitted to the presets on a CPU; python -m benchmarks.model compares it with the peak.
        """
        return memory_per_pixel(self.model, height, width, self.bf16, self.settings.neighbors)

    def tile_for(self, height: int, width: int) -> int | None:
        """The side of the tiles an image is cut into, None for the whole image at once.

        Raises MemoryBudgetError when not even the smallest tile fits.
        """
        return tile_side(height, width, self.settings, self._bytes, self._largest or sys.maxsize)

    def _bytes(self, height: int, width: int) -> float:
        return height * width * self.memory_per_pixel(height, width)

    def limited(self, largest: int) -> Restorer:
        """The same, that neither cuts into tiles of a larger side nor backs off."""
        same = copy.copy(self)
        same._largest = largest
        return same

    # -- two ways over an image -----------------------------------------------------------------------------

    def _tilewise(
        self, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None, place: int
    ) -> np.ndarray:
        """One image of the batch at a time, so memory does not grow with B."""
        channels, (height, width) = self.model.config.in_channels, planes.shape[2:]
        side = self.tile_for(height, width) or max(height, width)
        overlap = self.settings.overlap_of(side)
        tiles = plan(height, width, side, overlap, ramp=overlap // 4)  # the rest is context for both
        restored = np.empty_like(planes, shape=(len(planes), channels, height, width))
        done, total = 0, len(planes) * len(tiles)
        for b, image in enumerate(planes):
            blend = Blend(height, width, channels)
            for tile in tiles:
                x = image[:, *tile.region]
                x = x.reshape(-1, channels, *x.shape[1:])  # [P, C, H, W]
                level = noise if isinstance(noise, float) else noise[tile.region]
                out = self._run(self.model.config.window, x, level, self.settings.neighbors)
                blend.add(tile, out[place].transpose(1, 2, 0))
                done += 1
                if progress is not None:
                    progress(done, total)
            restored[b] = blend.result().transpose(2, 0, 1)
        return restored

    def _patchwise(self, planes: np.ndarray, noise: float | np.ndarray, progress: Progress | None) -> np.ndarray:
        """The authors' protocol: overlapping patches, every prediction of a pixel averaged."""
        height, width = planes.shape[2:]
        window = self.model.config.window
        seen = None if window is None or window >= PATCH else window
        model = self.model.reconfigured(window=seen)
        rows, columns = patch_size(height, width)
        parts = [
            (b, (slice(y, y + rows), slice(x, x + columns)))
            for b in range(len(planes))
            for y, x in patches(height, width)
        ]
        averages = [Average(height, width, planes.shape[1]) for _ in planes]
        room = self.settings.memory / memory_per_pixel(model, rows, columns, self.bf16)  # pixels together
        size = max(1, int(min(room, _BATCH_PIXELS)) // (rows * columns))
        for start in range(0, len(parts), size):
            group = parts[start : start + size]
            x = np.stack([planes[b][:, *region] for b, region in group])
            level = noise if isinstance(noise, float) else np.stack([noise[region] for _, region in group])
            for (b, (down, right)), out in zip(group, self._run(seen, x, level), strict=True):
                averages[b].add(down.start, right.start, out.transpose(1, 2, 0))
            if progress is not None:
                progress(start + len(group), len(parts))
        return np.stack([average.result().transpose(2, 0, 1) for average in averages])

    # -- one pass --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self, window: int | None, x: np.ndarray, noise: float | np.ndarray, reach: int = 0) -> np.ndarray:
        """[B, C, H, W] through the model; a result that is not finite is computed again in float32, then refused.

        reach: above 0, B are planes that see each other.
        """
        batch = torch.from_numpy(np.require(x, np.float32, ["C", "W"])).to(self.device)
        sigma: float | Tensor | None = None
        if self.model.config.sigma_input:
            level = noise if isinstance(noise, float) else torch.from_numpy(np.require(noise, np.float32, ["C", "W"]))
            sigma = level / 255
            if isinstance(sigma, Tensor):
                sigma = sigma.to(self.device).reshape(-1, 1, *x.shape[2:])
        for dtype in (torch.bfloat16, torch.float32) if self.bf16 else (torch.float32,):
            with within_memory(*x.shape[2:]), torch.autocast(self.device.type, enabled=False):
                network = self._network(dtype, window, reach if len(x) > 1 else 0)
                out: np.ndarray = network(batch, sigma).cpu().numpy()
            if np.isfinite(out).all():
                return out
        raise NotFiniteError("the model gave numbers that are not finite; nothing is written")

    def _network(self, dtype: torch.dtype, window: int | None, reach: int) -> FoldedNLRN | NLRN:
        """The model for inference, its batch norms folded; built at the first use. One of another distance as it is.

        The weights of the two dot products do not sum to 1, which folding needs; the others are for comparisons.
        """
        if not self.model.block.non_local.carries:
            return self.model.reconfigured(window=window)
        if dtype not in self._folded:
            self._folded[dtype] = FoldedNLRN(self.model, dtype)
        return self._folded[dtype].seeing(window, reach)

    @property
    def bf16(self) -> bool:
        """Whether convolutions run in bf16 here, "auto" being resolved."""
        if self.settings.precision != "auto":
            return self.settings.precision == "bf16"
        return hardware_bf16(self.device)
