"""Noise as a camera makes it: drawn on the sensor, carried through demosaicing, colour, tone curve and JPEG.

Pure functions of a float array in [0, 1] (float32 stays float32), of a Camera and of a generator. Images are HWC with
three channels, sRGB. The steps and the ranges of their parameters follow Brooks et al. (Unprocessing images for learned
raw denoising, CVPR 2019); that the noise has to pass demosaicing and JPEG is from Guo et al. (CBDNet, CVPR 2019); the
gradient-corrected demosaicing is that of Malvar, He and Cutler (ICASSP 2004).

Both kinds of demosaicing are linear, so noise passes them by itself: D(x + n) - D(x) = D(n). Therefore the content,
which some camera has interpolated already, is not interpolated again: only the noise is, and the blurs and the
resizing behind it, where a camera smooths its noise.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nlrn.errors import ConfigError, InputError
from nlrn.functional.degradations import resize_bicubic

DEMOSAICING = ("bilinear", "gradient")
SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")  # at Pillow's numbers
_LEAST_SHOT = 1e-12  # below, a deviation of 1e-6 of white, and counts that no integer holds
CAMERA_LEVELS = (3.0, 6.0, 12.0)  # of scores: a good camera's, a small sensor's, a telephone's at night
_AROUND = 1.5  # standard deviation, in pixels, of the window in which content deviates
DENOISING = 0.85  # share of cameras that spare detail, in the estimator's samples
_FLAT, _EDGE = (0.1, 0.8), (0.5, 3.0)  # of those
_COARSE_BLUR, _COARSE_SCALE = (0.3, 1.6), (1.0, 1.8)  # luma_blur and scale of cameras whose noise is coarse
_NO_EDGE = 1e6  # times the noise; no content deviates by that
GREY = 0.5  # where the level of a camera's noise is measured: a grey area of 128

# CIE XYZ (D65) of linear sRGB (IEC 61966-2-1), and camera RGB of XYZ of four cameras (Brooks et al. 2019)
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_CAMERAS = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # JFIF

# Interpolation of a colour at (green at red or blue, from its row, from its column, across): Malvar et al., figure 2
_ACROSS = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]]) / 4
_BILINEAR = (
    np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4,
    np.array([[0, 0, 0], [1, 0, 1], [0, 0, 0]]) / 2,
    np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]]) / 2,
    _ACROSS,
)
_GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
_ROW = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
_OTHER = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]) / 8
_KERNELS = {"bilinear": _BILINEAR, "gradient": (_GREEN, _ROW, _ROW.T, _OTHER)}


@dataclass(frozen=True)
class Camera:
    """What makes the noise of one photograph.

    tone: share of the S-shaped curve 3 x^2 - 2 x^3 in the tone curve, 0 to 1. gains: of white balance, red and blue
    (green is 1). matrix: camera RGB to linear sRGB, by rows, each of which sums to 1. shot, read: the variance of a raw
    value x in [0, 1] is shot * x + read^2. row, column: standard deviations of what whole rows and columns share.
    phase: place of the red pixel in the 2 x 2 tile, 2 * row + column. demosaic: one of DEMOSAICING. luma_blur,
    chroma_blur: standard deviations, in pixels, of the Gaussians by which the camera smooths its noise; chroma: what is
    left of its chroma in addition. flat: what the camera's own denoising leaves of the smoothed noise where the image
    is flat; 1: it smooths everywhere alike. Below 1 it spares detail, and with it the noise there: all of it where the
    content deviates by much more than `edge` times the noise. scale: size of the image relative to the sensor's.
    quality, subsampling: of the JPEG; None: no JPEG, 8 bits.
    """

    tone: float = 1.0
    gains: tuple[float, float] = (2.0, 1.7)
    matrix: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    shot: float = 1e-3
    read: float = 1e-3
    row: float = 0.0
    column: float = 0.0
    phase: int = 0
    demosaic: str = "bilinear"
    luma_blur: float = 0.0
    chroma_blur: float = 0.0
    chroma: float = 1.0
    flat: float = 1.0
    edge: float = 1.0
    scale: float = 1.0
    quality: int | None = 90
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        if not 0 <= self.tone <= 1 or min(self.gains) <= 0 or not 0.25 <= self.scale <= 4:
            raise ConfigError(f"a camera requires tone in [0, 1], gains > 0 and scale in [0.25, 4], not {self}")
        strengths = self.shot, self.read, self.row, self.column, self.luma_blur, self.chroma_blur, self.chroma
        if not all(0 <= x < math.inf for x in strengths):
            raise ConfigError(f"noise, blurs and chroma of a camera must be numbers >= 0: {self}")
        if not 0 <= self.flat <= 1 or not 0 < self.edge < math.inf:
            raise ConfigError(f"a camera's denoising requires flat in [0, 1] and edge > 0, not {self}")
        if self.phase not in range(4) or self.demosaic not in DEMOSAICING or self.subsampling not in SUBSAMPLING:
            raise ConfigError(f"a camera requires phase 0 to 3, and a known demosaic and subsampling: {self}")
        if len(self.matrix) != 9 or not np.allclose(np.reshape(self.matrix, (3, 3)).sum(1), 1):
            raise ConfigError(f"a camera's matrix has 3 rows of 3, each of sum 1, not {self.matrix}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"a JPEG has a quality of 1 to 100, not {self.quality}")

    def amplified(self, factor: float) -> Camera:
        """The same camera with all of its noise `factor` times as strong."""
        parts = {name: getattr(self, name) * factor for name in ("read", "row", "column")}
        return dataclasses.replace(self, shot=self.shot * factor**2, **parts)

    def even(self) -> Camera:
        """The same camera, that spares no detail: its noise is everywhere what this one leaves on flat areas."""
        return dataclasses.replace(self, edge=_NO_EDGE)


def draw_camera(random: np.random.Generator, denoising: float = 0.0, coarse: float = 0.0) -> Camera:
    """A camera at random; with probability `denoising` one that spares detail where it denoises (`Camera.flat`).

    With probability `coarse` its noise is as wide as after strong smoothing or digital zoom, and stronger before it.

    A model is trained with them; the protocol of scores, `noisy_at`, draws cameras that smooth everywhere alike. Of the
    noise of simulated photographs that are soft at 100 %, the tenth of the 16 x 16 blocks that deviate least show 0.53
    with DENOISING and 0.75 without (medians); of photographs of eight cameras with known truth they show 0.44 to 0.70.

    White balance, colour matrix (a mixture of four cameras') and the relation of read to shot noise are those of Brooks
    et al. 2019; the strength, the blurs and the JPEG's parameters span, and exceed, what the noisy images of a Canon 5D
    Mark II in the PolyU set show on flat parts (scripts/measure_camera.py). The weakest noise is nearly none, and every
    tenth image is not compressed, so that a model learns to leave clean images unchanged.
    """
    mixture = random.dirichlet(np.ones(4))
    of_srgb = np.tensordot(mixture, _CAMERAS, 1) @ _XYZ
    matrix = np.linalg.inv(of_srgb / of_srgb.sum(1, keepdims=True))
    log_shot = random.uniform(math.log(1e-5), math.log(2e-2))
    read = math.exp((2.18 * log_shot + 1.20 + random.normal(0, 0.26)) / 2)
    camera = Camera(
        tone=random.uniform(0, 1),
        gains=(random.uniform(1.9, 2.4), random.uniform(1.5, 1.9)),
        matrix=tuple(matrix.ravel().tolist()),
        shot=math.exp(log_shot),
        read=read,
        row=read * random.uniform(0, 0.3),
        column=read * random.uniform(0, 0.3),
        phase=int(random.integers(4)),
        demosaic=DEMOSAICING[random.integers(2)],
        luma_blur=max(0.0, random.uniform(-0.3, 0.9)),
        chroma_blur=max(0.0, random.uniform(-1, 4)),
        chroma=min(1.0, random.uniform(0.15, 1.3)),
        scale=random.uniform(0.5, 1.3) if random.random() < 0.35 else 1.0,
        quality=int(random.integers(60, 101)) if random.random() < 0.9 else None,
        subsampling=SUBSAMPLING[random.integers(3)],
    )
    if denoising > 0 and random.random() < denoising:
        flat, edge = (math.exp(random.uniform(math.log(low), math.log(high))) for low, high in (_FLAT, _EDGE))
        camera = dataclasses.replace(camera.amplified(flat**-0.5), flat=flat, edge=edge)  # more noise, more denoising
    if coarse > 0 and random.random() < coarse:
        blur, scale = random.uniform(*_COARSE_BLUR), random.uniform(*_COARSE_SCALE)
        camera = dataclasses.replace(camera.amplified(1 + 2 * blur), luma_blur=blur, scale=scale)
    return camera


def add_camera_noise(image: np.ndarray, camera: Camera, random: np.random.Generator) -> np.ndarray:
    """`image` as this camera would have taken and stored it: same shape and dtype, in [0, 1], of 8 bits.

    image: HWC in [0, 1], at least 8 x 8. Its content changes by clipping and JPEG only. Raises InputError.
    """
    image = _colour(image)
    return stored(np.clip(image + _noise(image, camera, random), 0, 1), camera)


def with_even_noise(image: np.ndarray, camera: Camera, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`add_camera_noise`, and the noise that the file would hold if the camera spared no detail (`Camera.even`).

    The level that a model receives is the standard deviation of the second, which has no detail that JPEG alone loses.
    """
    again = copy.deepcopy(random)
    noisy = add_camera_noise(image, camera, random)
    return noisy, add_camera_noise(image, camera.even(), again) - stored(image, camera)


def stored(image: np.ndarray, camera: Camera) -> np.ndarray:
    """HWC in [0, 1] as the camera's file holds it, without noise of its own: through its JPEG, or rounded to 8 bits."""
    if camera.quality is None:
        return np.floor(image * 255 + 0.5).astype(image.dtype) / image.dtype.type(255)
    return jpeg(image, camera.quality, camera.subsampling)


def noisy_at(image: np.ndarray, level: float) -> np.ndarray:
    """`image` as a camera whose noise has this `camera_level` stored it: the protocol of scores on camera noise.

    image: HWC float in [0, 1], rounded to 8 bits; the result is float64. Camera and noise follow from these values
    (their CRC-32 is the seed of NumPy's default generator), so each image has its own camera, the same at every level.
    """
    values = np.floor(_colour(image) * 255 + 0.5).astype(np.uint8)
    random = np.random.default_rng(zlib.crc32(values.tobytes()))
    return add_camera_noise(values / 255.0, at_level(draw_camera(random), level), random)


def camera_level(camera: Camera, seed: int = 0) -> float:
    """Standard deviation of the camera's noise on a grey area, on the 0..255 scale, before rounding and JPEG."""
    grey = np.full((96, 96, 3), GREY)
    return float(255 * _noise(grey, camera, np.random.default_rng(seed)).std())


def at_level(camera: Camera, level: float) -> Camera:
    """The camera with its noise so strong that `camera_level` is `level`, within a few per cent where nothing clips."""
    if not 0 <= level < math.inf:
        raise ConfigError(f"the level of a camera's noise is {level}; expected a number >= 0 on the 0..255 scale")
    weak = camera.amplified(1e-3 / math.sqrt(max(camera.shot, camera.read**2, 1e-30)))
    return weak.amplified(level / camera_level(weak))


def _noise(image: np.ndarray, camera: Camera, random: np.random.Generator) -> np.ndarray:
    """What is added to an image before rounding and JPEG; of the image's shape and dtype."""
    height, width = image.shape[:2]
    if camera.scale != 1:
        sides = max(8, round(height / camera.scale)), max(8, round(width / camera.scale))
        image = np.clip(resize_bicubic(image, *sides), 0, 1).astype(image.dtype)
    linear = to_linear(image, camera.tone)
    raw = mosaic(to_raw(linear, camera), camera.phase)
    noise = np.minimum(raw + raw_noise(raw, camera, random), 1) - raw  # a full pixel holds no more
    linear = np.clip(linear + from_raw(demosaic(noise, camera.phase, camera.demosaic), camera), 0, 1)
    noise = denoised(to_srgb(linear, camera.tone) - image, image, camera)
    if camera.scale != 1:
        noise = resize_bicubic(noise, height, width)
    return noise.astype(image.dtype, copy=False)


# -- tone and colour -----------------------------------------------------------------------------------------------


def to_linear(image: np.ndarray, tone: float) -> np.ndarray:
    """sRGB in [0, 1] to linear light: the inverse of `to_srgb`."""
    if tone > 0:  # of 1/2 + (1 + tone/2) u - 2 tone u^3, whose middle root is a sine of a third of an angle
        p = (1 + tone / 2) / (2 * tone)
        reach = 2 * math.sqrt(p / 3)
        sine = (image - 0.5) * (3 / (2 * tone * p * reach))
        image = 0.5 + reach * np.sin(np.arcsin(np.clip(sine, -1, 1)) / 3)
    return np.where(image <= 0.04045, image / 12.92, (np.maximum(image, 0.04045) / 1.055 + 0.055 / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray, tone: float) -> np.ndarray:
    """Linear light in [0, 1] to sRGB (IEC 61966-2-1), then the tone curve: y + tone (3 y^2 - 2 y^3 - y)."""
    curve = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, curve)
    return encoded + tone * (encoded * (encoded * (3 - 2 * encoded) - 1)) if tone > 0 else encoded


def to_raw(linear: np.ndarray, camera: Camera) -> np.ndarray:
    """Linear sRGB HWC to what the sensor's pixels of each colour hold: matrix and white balance undone, in [0, 1]."""
    back = np.linalg.inv(_colours(camera)).astype(linear.dtype)
    return np.clip(linear @ back.T, 0, 1)


def from_raw(raw: np.ndarray, camera: Camera) -> np.ndarray:
    """White balance, then the colour matrix: raw HWC to linear sRGB, not clipped."""
    return raw @ _colours(camera).astype(raw.dtype).T


def _colours(camera: Camera) -> np.ndarray:
    red, blue = camera.gains
    return np.reshape(camera.matrix, (3, 3)) * np.array([red, 1, blue])


# -- the sensor ----------------------------------------------------------------------------------------------------


def raw_noise(raw: np.ndarray, camera: Camera, random: np.random.Generator) -> np.ndarray:
    """Noise of a mosaic HW: Poisson of shot, normal of read, and what whole rows and columns share."""
    height, width = raw.shape
    noise = camera.read * random.standard_normal(raw.shape, dtype=np.float32)
    if camera.shot > _LEAST_SHOT:
        noise += camera.shot * random.poisson(raw / camera.shot) - raw
    noise += camera.row * random.standard_normal((height, 1)) + camera.column * random.standard_normal((1, width))
    return noise.astype(raw.dtype, copy=False)


def mosaic(image: np.ndarray, phase: int) -> np.ndarray:
    """HWC to HW: at every pixel the one colour that a Bayer sensor has there (`Camera.phase`)."""
    down, right = divmod(phase, 2)
    result = image[..., 1].copy()
    result[down::2, right::2] = image[down::2, right::2, 0]
    result[1 - down :: 2, 1 - right :: 2] = image[1 - down :: 2, 1 - right :: 2, 2]
    return result


def demosaic(raw: np.ndarray, phase: int, method: str = "bilinear") -> np.ndarray:
    """HW to HWC, mirrored at the border: "bilinear", or "gradient" (Malvar, He and Cutler 2004); linear."""
    if method not in DEMOSAICING:
        raise ConfigError(f"demosaicing is one of {', '.join(DEMOSAICING)}, not {method!r}")
    padded = np.pad(raw, 2, mode="reflect")
    green, row, column, other = (_filtered(padded, kernel) for kernel in _KERNELS[method])
    result = np.empty((*raw.shape, 3), raw.dtype)
    result[..., 1] = green
    for colour, (down, right) in ((0, divmod(phase, 2)), (2, divmod(3 - phase, 2))):
        own, beside = np.s_[down::2, right::2], np.s_[down::2, 1 - right :: 2]
        below, across = np.s_[1 - down :: 2, right::2], np.s_[1 - down :: 2, 1 - right :: 2]
        plane = result[..., colour]
        plane[own], plane[beside], plane[below], plane[across] = raw[own], row[beside], column[below], other[across]
        for place in (beside, below):
            result[..., 1][place] = raw[place]
    return result


def _filtered(padded: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation with a kernel of 3 x 3 or 5 x 5, of an array padded by 2."""
    height, width = padded.shape[0] - 4, padded.shape[1] - 4
    first = 2 - len(kernel) // 2
    result = np.zeros((height, width), padded.dtype)
    for down, right in np.argwhere(kernel):
        top, left = first + down, first + right
        result += padded.dtype.type(kernel[down, right]) * padded[top : top + height, left : left + width]
    return result


# -- behind the sensor ---------------------------------------------------------------------------------------------


def smoothed(noise: np.ndarray, luma: float, chroma: float, gain: float = 1.0) -> np.ndarray:
    """HWC with its luma and its chroma (JFIF) each convolved with a Gaussian, and its chroma multiplied by `gain`.

    luma, chroma: standard deviations of the Gaussians, in pixels.
    """
    if luma == chroma == 0 and gain == 1:
        return noise
    matrix = _YCBCR.astype(noise.dtype)
    planes = noise @ matrix.T
    planes[..., 0] = _gaussian(planes[..., 0], luma)
    planes[..., 1:] = gain * _gaussian(planes[..., 1:], chroma)
    return planes @ np.linalg.inv(_YCBCR).astype(noise.dtype).T


def denoised(noise: np.ndarray, image: np.ndarray, camera: Camera) -> np.ndarray:
    """What a camera's own denoising leaves of noise HWC on the clean image HWC (`Camera.flat`, `Camera.edge`).

    Denoisers that keep edges smooth a pixel by how far its surroundings deviate (Tomasi and Manduchi 1998; guided
    filter, He et al. 2013, equation 5: variance / (variance + threshold^2) is what remains of it).
    """
    soft = smoothed(noise, camera.luma_blur, camera.chroma_blur, camera.chroma)
    if camera.flat == 1:
        return soft
    luma = image @ _YCBCR[0].astype(image.dtype)
    variance = np.maximum(_gaussian(luma**2, _AROUND) - _gaussian(luma, _AROUND) ** 2, 0)
    threshold = camera.edge**2 * np.mean((noise @ _YCBCR[0].astype(noise.dtype)) ** 2)
    kept = (variance / (variance + threshold + _LEAST_SHOT))[..., None]
    return np.asarray(kept * noise + (1 - kept) * noise.dtype.type(camera.flat) * soft, noise.dtype)


def _gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    """The first two axes convolved with a sampled Gaussian cut at 4 sigma (as scipy's is), edges repeated."""
    if sigma == 0:
        return x
    reach = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(x.dtype)
    for axis in (0, 1):
        length = x.shape[axis]
        padded = np.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)], mode="edge")
        rows = padded if axis == 0 else padded.swapaxes(0, 1)
        total = sum(tap * rows[i : i + length] for i, tap in enumerate(taps))
        x = total if axis == 0 else total.swapaxes(0, 1)
    return x


def jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """HWC in [0, 1] through a JPEG file, by Pillow: rounded to 8 bits, of the same dtype."""
    if subsampling not in SUBSAMPLING:
        raise ConfigError(f"subsampling is one of {', '.join(SUBSAMPLING)}, not {subsampling!r}")
    file = io.BytesIO()
    whole = Image.fromarray(np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    whole.save(file, "JPEG", quality=quality, subsampling=SUBSAMPLING.index(subsampling))
    with Image.open(file) as stored:
        return np.asarray(stored).astype(image.dtype) / image.dtype.type(255)


def _colour(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 8:
        raise InputError(f"a camera's noise is for images HWC of 3 channels and at least 8 x 8; got {image.shape}")
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"expected a float image in [0, 1]; got {image.dtype}")
    if not (image.min() >= 0 and image.max() <= 1):
        raise InputError(f"expected a float image in [0, 1]; its values are {image.min():g} to {image.max():g}")
    return image
