"""What ruins a face crop, as functions of a severity. Each one: (uint8 RGB [H, W, 3], severity, rng) to the same shape.

Severity runs over (0, 1]: near 0 hardly visible, 1 severe. Everything random comes from the generator that is passed,
so a seed fixes the result. The photometric and blur kernels follow Real-ESRGAN (Wang et al., 2021, "second-order
degradations"); the rest is what spoils real face crops.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Rng = np.random.Generator
Degradation = Callable[[Image, float, Rng], Image]
Chain = list[tuple[str, float]]

_FILTERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_AREA, cv2.INTER_NEAREST)


def _uint8(values: npt.NDArray[Any]) -> Image:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _between(low: float, high: float, severity: float) -> float:
    """Geometric interpolation: equal steps of severity are equal ratios."""
    return float(low * (high / low) ** severity)


def gaussian_blur(image: Image, severity: float, rng: Rng) -> Image:
    """Isotropic or, half of the time, elongated Gaussian blur; sigma 0.5 to 7 px at 224."""
    sigma = _between(0.5, 7, severity) * image.shape[0] / 224
    ratio = rng.uniform(0.5, 1) if rng.random() < 0.5 else 1.0
    angle = rng.uniform(0, np.pi)
    size = 2 * int(np.ceil(3 * sigma)) + 1
    y, x = np.mgrid[:size, :size] - size // 2
    u = (x * np.cos(angle) + y * np.sin(angle)) / sigma
    v = (y * np.cos(angle) - x * np.sin(angle)) / (sigma * ratio)
    kernel = np.exp(-(u * u + v * v) / 2)
    return _uint8(cv2.filter2D(image.astype(np.float32), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101))


def _disk(radius: float) -> npt.NDArray[np.float64]:
    size = 2 * int(np.ceil(radius)) + 1
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return np.asarray(kernel / kernel.sum(), np.float64)


def defocus_blur(image: Image, severity: float, rng: Rng) -> Image:
    """Out of focus: a disk of radius 0.8 to 10 px at 224."""
    kernel = _disk(_between(0.8, 10, severity) * image.shape[0] / 224)
    return _uint8(cv2.filter2D(image.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def motion_blur(image: Image, severity: float, rng: Rng) -> Image:
    """Camera or head movement along a line of 3 to 35 px at 224, in any direction."""
    length = _between(3, 35, severity) * image.shape[0] / 224
    size = 2 * int(np.ceil(length / 2)) + 1
    angle = rng.uniform(0, np.pi)
    dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
    centre = size // 2
    kernel = np.zeros((size, size), np.float32)
    start, end = (round(centre - dx), round(centre - dy)), (round(centre + dx), round(centre + dy))
    cv2.line(kernel, start, end, (1.0,), 1, cv2.LINE_AA)
    return _uint8(cv2.filter2D(image.astype(np.float32), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101))


def soft_face(image: Image, severity: float, rng: Rng) -> Image:
    """Focus on the background: only an ellipse about the face is blurred."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0.42, 0.58, 2)
    radius = rng.uniform(0.3, 0.5, 2)
    distance = ((y / height - centre[0]) / radius[0]) ** 2 + ((x / width - centre[1]) / radius[1]) ** 2
    mask = np.clip((1.4 - distance) / 0.6, 0, 1)[..., None]
    return _uint8(mask * defocus_blur(image, severity, rng) + (1 - mask) * image)


def low_resolution(image: Image, severity: float, rng: Rng) -> Image:
    """Down to between 160 and 12 px and up again, each with a random filter, as a small face that was enlarged."""
    height, width = image.shape[:2]
    side = _between(160, 12, severity) / 224
    down, up = _FILTERS[int(rng.integers(5))], _FILTERS[int(rng.integers(4))]
    small = cv2.resize(image, (max(4, round(width * side)), max(4, round(height * side))), interpolation=down)
    return np.asarray(cv2.resize(small, (width, height), interpolation=up), np.uint8)


def low_resolution_jpeg(image: Image, severity: float, rng: Rng) -> Image:
    """A small crop saved as JPEG and enlarged afterwards: the artefacts are enlarged with it."""
    height, width = image.shape[:2]
    side = _between(180, 24, severity) / 224
    small = cv2.resize(image, (max(8, round(width * side)), max(8, round(height * side))), interpolation=cv2.INTER_AREA)
    small = jpeg(np.asarray(small, np.uint8), float(np.clip(severity + rng.uniform(-0.3, 0.1), 0.02, 1)), rng)
    return np.asarray(cv2.resize(small, (width, height), interpolation=_FILTERS[int(rng.integers(4))]), np.uint8)


def gaussian_noise(image: Image, severity: float, rng: Rng) -> Image:
    """White noise, sigma 2 to 70 levels; in a third of the cases the same in all three channels."""
    channels = 1 if rng.random() < 0.33 else 3
    return _uint8(image + rng.normal(0, _between(2, 70, severity), (*image.shape[:2], channels)))


def sensor_noise(image: Image, severity: float, rng: Rng) -> Image:
    """Photon noise and read noise in linear light, half of the time correlated over neighbours as after demosaicing."""
    linear = (image / 255.0) ** 2.2
    photons = _between(3000, 12, severity)
    noise = rng.normal(0, 1, image.shape) * np.sqrt(linear / photons + (1.5 / photons) ** 2)
    if rng.random() < 0.5:
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.6, 1.2)), np.float64) * 2
    return _uint8(np.clip(linear + noise, 0, 1) ** (1 / 2.2) * 255)


def salt_and_pepper(image: Image, severity: float, rng: Rng) -> Image:
    """Dead and hot pixels: 0.1 to 15 % of them."""
    hit = rng.random(image.shape[:2]) < _between(0.001, 0.15, severity)
    out = image.copy()
    out[hit] = np.where(rng.random((int(hit.sum()), 1)) < 0.5, 0, 255)
    return out


def _recode(image: Image, suffix: str, flags: list[int]) -> Image:
    ok, data = cv2.imencode(suffix, image[..., ::-1], flags)
    if not ok:  # pragma: no cover - OpenCV's wheels carry both codecs
        raise RuntimeError(f"OpenCV cannot write {suffix}")
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


def jpeg(image: Image, severity: float, rng: Rng) -> Image:
    """JPEG of quality 85 to 3, with or without chroma subsampling."""
    quality = round(_between(85, 3, severity))
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if rng.random() < 0.7 else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return _recode(image, ".jpg", flags)


def webp(image: Image, severity: float, rng: Rng) -> Image:
    """WebP of quality 75 to 1."""
    return _recode(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, round(_between(75, 1, severity))])


def low_light(image: Image, severity: float, rng: Rng) -> Image:
    """Under-exposure: 80 to 4 % of the light in linear space, with the noise that comes with it, not brightened."""
    light = _between(0.8, 0.04, severity)
    linear = (image / 255.0) ** 2.2 * light
    noise = rng.normal(0, 1, image.shape) * np.sqrt(linear / _between(20000, 2500, severity))
    return _uint8(np.clip(linear + noise, 0, 1) ** (1 / 2.2) * 255)


def over_exposure(image: Image, severity: float, rng: Rng) -> Image:
    """1.15 to 6 times the light in linear space; what is beyond white is lost."""
    linear = (image / 255.0) ** 2.2 * _between(1.15, 6, severity)
    return _uint8(np.clip(linear, 0, 1) ** (1 / 2.2) * 255)


def uneven_light(image: Image, severity: float, rng: Rng) -> Image:
    """A shadow over one side: the light falls along a random direction to between 70 and 3 %."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) + rng.uniform(-0.15, 0.15)
    shade = 1 / (1 + np.exp(-along * rng.uniform(5, 25)))
    darkest = _between(0.7, 0.03, severity)
    gain = (darkest + (1 - darkest) * shade)[..., None]
    return _uint8(((image / 255.0) ** 2.2 * gain) ** (1 / 2.2) * 255)


def colour_cast(image: Image, severity: float, rng: Rng) -> Image:
    """Wrong white balance: the channels' gains differ by up to a factor of 3."""
    gains = np.exp(rng.uniform(-1, 1, 3) * severity * 0.9)
    gains /= gains.mean()
    return _uint8(image * gains)


def haze(image: Image, severity: float, rng: Rng) -> Image:
    """A veil of bright grey, slightly uneven: 10 to 85 % of it."""
    height, width = image.shape[:2]
    veil = rng.uniform(170, 245)
    coarse = rng.uniform(0.75, 1.0, (3, 3)).astype(np.float32)
    amount = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    amount = np.clip(amount * _between(0.1, 0.85, severity), 0, 0.95)
    return _uint8(image * (1 - amount) + veil * amount)


def low_contrast(image: Image, severity: float, rng: Rng) -> Image:
    """Tones compressed about a random grey, down to 12 % of their range."""
    pivot = rng.uniform(60, 190)
    return _uint8(pivot + (image - pivot) * _between(0.9, 0.12, severity))


def over_sharpen(image: Image, severity: float, rng: Rng) -> Image:
    """Unsharp masking of strength 0.8 to 9: halos and amplified grain."""
    soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.8, 2.5))
    return _uint8(image + (image - soft) * _between(0.8, 9, severity))


def over_smooth(image: Image, severity: float, rng: Rng) -> Image:
    """Beauty filter or denoiser: edges stay, skin turns to plastic."""
    sigma = _between(12, 150, severity)
    return np.asarray(cv2.bilateralFilter(image, 9, sigma, _between(2, 12, severity)), np.uint8)


def median_smear(image: Image, severity: float, rng: Rng) -> Image:
    """The smeared look of heavy noise reduction: a median of 3 to 19 px."""
    return np.asarray(cv2.medianBlur(image, 2 * round(_between(1, 9, severity)) + 1), np.uint8)


def occlusion(image: Image, severity: float, rng: Rng) -> Image:
    """One to three opaque shapes (flat, graded or textured) over 3 to 55 % of the crop, about the face."""
    height, width = image.shape[:2]
    out = image.copy()
    count = int(rng.integers(1, 4))
    area = _between(0.03, 0.55, severity) / count
    for _ in range(count):
        aspect = np.exp(rng.uniform(-0.7, 0.7))
        half_w = max(2.0, np.sqrt(area * aspect) * width / 2)
        half_h = max(2.0, np.sqrt(area / aspect) * height / 2)
        centre = (rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.8) * height)
        mask = np.zeros((height, width), np.uint8)
        angle = rng.uniform(0, 180)
        if rng.random() < 0.5:
            cv2.ellipse(mask, (centre, (2 * half_w, 2 * half_h), angle), (1,), -1)
        else:
            corners = cv2.boxPoints((centre, (2 * half_w, 2 * half_h), angle))
            cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), (1,))
        # Half of the time in a colour of the picture itself, as hands, hair and collars are.
        own = image[int(rng.integers(height)), int(rng.integers(width))].astype(np.float64)
        patch = np.full(image.shape, own if rng.random() < 0.5 else rng.uniform(0, 255, 3))
        if rng.random() < 0.5:
            texture = rng.normal(0, 40, (int(rng.integers(2, 40)),) * 2 + (3,)).astype(np.float32)
            patch = patch + cv2.resize(texture, (width, height), interpolation=cv2.INTER_CUBIC)
        out = np.where(mask[..., None] > 0, _uint8(patch), out)
    return out


def posterise(image: Image, severity: float, rng: Rng) -> Image:
    """Too few tones: 24 down to 2 levels a channel."""
    step = 255 / (round(_between(24, 2, severity)) - 1)
    return _uint8(np.rint(image / step) * step)


def pixelate(image: Image, severity: float, rng: Rng) -> Image:
    """Mosaic of square blocks of 2 to 20 px at 224."""
    height, width = image.shape[:2]
    block = _between(2, 20, severity) * height / 224
    size = (max(4, round(width / block)), max(4, round(height / block)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def interlace(image: Image, severity: float, rng: Rng) -> Image:
    """Old video: every second line comes from a frame shifted by 1 to 14 px."""
    out = image.copy()
    out[1::2] = np.roll(image, max(1, round(_between(1, 14, severity))), axis=1)[1::2]
    return out


# In the order in which light, lens, sensor and file meet them; a chain is applied in this order.
FAMILIES: dict[str, Degradation] = {
    function.__name__: function
    for function in (
        occlusion, uneven_light, haze, over_exposure, low_contrast, colour_cast,
        soft_face, defocus_blur, motion_blur, gaussian_blur, low_light, sensor_noise, gaussian_noise, salt_and_pepper,
        interlace, over_smooth, median_smear, over_sharpen, posterise, low_resolution, pixelate,
        low_resolution_jpeg, webp, jpeg,
    )
}  # fmt: skip


_SECOND_ORDER = (
    ("gaussian_blur", "motion_blur", "defocus_blur"),
    ("low_resolution",),
    ("gaussian_noise", "sensor_noise"),
    ("jpeg", "webp"),
)


def draw_chain(rng: Rng) -> Chain:
    """Families with severities, in order of application.

    One image in seven stays clean. One in seven gets second-order degradations as in Real-ESRGAN: blur, resampling,
    noise and compression, twice, all mild. The others get one to three families, with severities that are uniform for
    one and lean to the mild side for several, so that the labels are broad.
    """
    if rng.random() < 0.14:
        kinds = [kind for _ in range(2) for kind in _SECOND_ORDER if rng.random() < 0.8]
        return [(str(rng.choice(kind)), float(max(rng.random() ** 1.5 * 0.7, 0.01))) for kind in kinds]
    count = int(rng.choice(4, p=[0.16, 0.42, 0.26, 0.16]))
    names = list(FAMILIES)
    chosen = sorted(rng.choice(len(names), count, replace=False).tolist())
    return [(names[i], float(max(rng.random() ** (1 + 0.35 * (count - 1)), 0.01))) for i in chosen]


def apply_chain(image: Image, chain: Chain, seed: int, without: Collection[str] = ()) -> Image:
    """Apply (family, severity) pairs one after the other. Raises KeyError for an unknown family.

    Args:
        image: uint8 RGB [H, W, 3].
        chain: what to apply.
        seed: of everything random. Each step has random numbers of its own, so that the others do what they would.
        without: families to leave out.
    """
    for step, (name, severity) in enumerate(chain):
        if name not in without:
            image = FAMILIES[name](image, severity, np.random.default_rng([seed, step]))
    return image
