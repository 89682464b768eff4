"""What stands before faces in photographs: glasses, hands, hair, microphones, masks, scarves, veils, other heads.

Each one is drawn where the landmarks say, with soft edges and shading, and gives its opacity, so that what it covers
of the eyes, nose and mouth can be weighed. `degradations.occlusion` draws patches that know nothing of the face.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fiqa_trt.training.degradations import Image, Rng

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
"""Left eye, right eye, nose, left and right corner of the mouth (left and right of the picture), float64 [5, 2] in
pixels, x before y."""
Occluder = Callable[[Image, Points, Image, float, Rng], tuple[Floats, Floats]]

# Where a detector's box of a face has them, as shares of its sides.
_TYPICAL = np.array([(0.32, 0.40), (0.68, 0.40), (0.50, 0.60), (0.36, 0.76), (0.64, 0.76)])
_EYE, _NOSE, _MOUTH, _REST = 0.2, 0.2, 0.2, 0.2


def typical_points(x: float, y: float, width: float, height: float) -> Points:
    """Where a face of which only the box is known probably has them."""
    return _TYPICAL * (width, height) + (x, y)


def _axes(points: Points) -> tuple[Points, Points]:
    """Vectors of the length of the eyes' distance: along the eyes, and from them down to the mouth."""
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth - eyes
    size = max(float(np.hypot(*(points[1] - points[0]))), float(np.hypot(*down)) * 0.85, 4.0)
    down = down / max(float(np.hypot(*down)), 1e-6)
    return np.array([down[1], -down[0]]) * size, down * size


def _size(points: Points) -> float:
    """Distance of the eyes in pixels."""
    return float(np.hypot(*_axes(points)[0]))


def _at(points: Points, right: float, down: float) -> Points:
    """A place beside the middle between the eyes, in distances of the eyes."""
    across, below = _axes(points)
    return np.asarray(points[:2].mean(axis=0) + right * across + down * below)


def _filled(image: Image, outline: Points, soft: float) -> Floats:
    """Opacity [H, W] of a polygon with a soft edge."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), max(soft, 0.3)), np.float32)


def _ellipse(centre: Points, across: Points, down: Points, power: float = 2.0, wobble: Any = 0.0) -> Points:
    """Outline of an ellipse with the given half axes; a higher power makes it squarer."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (np.sign(v) * np.abs(v) ** (2 / power) for v in (cos, sin))
    return np.asarray(centre + ((1 + wobble) * x)[:, None] * across + ((1 + wobble) * y)[:, None] * down)


def _texture(image: Image, coarse: int, strength: float, rng: Rng) -> Floats:
    """Smooth noise [H, W, 1] around 0 with about `coarse` spots along a side."""
    height, width = image.shape[:2]
    noise = rng.normal(0, strength, (coarse, coarse)).astype(np.float32)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)[..., None]


def _flat(image: Image, colour: Any) -> Floats:
    return np.asarray(np.broadcast_to(np.asarray(colour, np.float32), image.shape), np.float32).copy()


def _shade(image: Image, points: Points, strength: float, rng: Rng) -> Floats:
    """A gain [H, W, 1] that falls across the face."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, size = rng.uniform(0, 2 * np.pi), _size(points)
    along = ((x - points[2, 0]) * np.cos(angle) + (y - points[2, 1]) * np.sin(angle)) / (2 * size)
    return np.asarray(1 + strength * np.clip(along, -1, 1), np.float32)[..., None]


def _skin(image: Image, points: Points, rng: Rng) -> Floats:
    """The colour of the cheeks, a little lighter or darker."""
    height, width = image.shape[:2]
    samples = []
    for side in (-0.35, 0.35):
        x, y = np.clip(np.rint(_at(points, side, 0.65)).astype(int), 0, (width - 1, height - 1))
        samples.append(np.median(image[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7].reshape(-1, 3), axis=0))
    return np.asarray(np.mean(samples, axis=0) * rng.uniform(0.75, 1.2), np.float32)


def _frames(
    image: Image, points: Points, rng: Rng, lens: Callable[[float], float]
) -> tuple[list[Points], Floats, float]:
    """Outlines of two lenses, opacity of the frame about them, and the size of the face."""
    across, down = _axes(points)
    size = _size(points)
    wide, high, power = lens(0.42), lens(0.30) * rng.uniform(0.7, 1.15), rng.choice([2.0, 2.6, 4.0])
    lenses = [
        _ellipse(eye + down * 0.04 + side * across * 0.04, across * wide, down * high, power)
        for eye, side in zip(points[:2], (-1, 1), strict=True)
    ]
    frame = np.zeros(image.shape[:2], np.uint8)
    thick = max(1, round(size * rng.uniform(0.02, 0.08)))
    for outline in lenses:
        cv2.polylines(frame, [np.rint(outline).astype(np.int32)], True, (255,), thick, cv2.LINE_AA)
    for ends in ((-0.1, 0.1), (-0.9, -1.35), (0.9, 1.35)):
        one, other = (np.rint(_at(points, right, -0.04)).astype(int) for right in ends)
        cv2.line(frame, (int(one[0]), int(one[1])), (int(other[0]), int(other[1])), (255,), thick, cv2.LINE_AA)
    return lenses, np.asarray(frame / 255, np.float32), size


def sunglasses(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Dark lenses, from tinted to black, often with a sheen."""
    lenses, frame, size = _frames(image, points, rng, lambda half: half * rng.uniform(0.95, 1.3))
    opacity = np.maximum.reduce([_filled(image, lens, size * 0.01) for lens in lenses])
    layer = _flat(image, rng.uniform(0, 50) + rng.uniform(-12, 12, 3)) * _shade(image, points, 0.5, rng)
    if rng.random() < 0.6:
        layer = layer + np.maximum(_texture(image, int(rng.integers(3, 9)), rng.uniform(10, 60), rng), 0)
    opacity = opacity * (0.6 + 0.4 * severity)
    dark = rng.random() < 0.8
    layer = np.where(frame[..., None] > 0.5, _flat(image, 20 if dark else rng.uniform(60, 230, 3)), layer)
    return layer, np.maximum(opacity, frame)


def glasses(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Clear lenses: the frame, and the more severe the more glare."""
    lenses, frame, size = _frames(image, points, rng, lambda half: half * rng.uniform(0.85, 1.1))
    inside = np.maximum.reduce([_filled(image, lens, size * 0.01) for lens in lenses])
    glare = np.clip(_texture(image, int(rng.integers(3, 7)), 1, rng)[..., 0], 0, 1) * severity
    layer = _flat(image, rng.uniform(200, 255))
    layer = np.where(frame[..., None] > 0.5, _flat(image, rng.uniform(0, 90, 3)), layer)
    return layer, np.asarray(np.maximum(frame, inside * glare), np.float32)


def hand(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """One to four fingers, of the skin's colour and shaded as cylinders, from below or from a side."""
    across, down = _axes(points)
    size = _size(points)
    count = 1 + round(severity * 3)
    tip = _at(points, rng.uniform(-0.6, 0.6), rng.uniform(0.9, 1.3) - 1.1 * severity * rng.random())
    side = rng.choice([-1.0, 1.0])
    way = down + side * across * rng.uniform(-0.2, 1.2)
    way = way / np.hypot(*way)
    normal, radius = np.array([-way[1], way[0]]), size * rng.uniform(0.11, 0.17)
    skin = _skin(image, points, rng)
    layer, opacity = _flat(image, skin), np.zeros(image.shape[:2], np.float32)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float64)
    for finger in range(count):
        start = tip + normal * (finger - (count - 1) / 2) * 2 * radius + way * size * rng.uniform(-0.15, 0.15)
        along = (x - start[0]) * way[0] + (y - start[1]) * way[1]
        beside = (x - start[0]) * normal[0] + (y - start[1]) * normal[1]
        bent = beside - 0.06 * size * np.sin(along / size * 2)
        reach = np.hypot(np.minimum(along, 0), bent) / radius
        own = np.clip((1.06 - reach) * radius / 1.5, 0, 1)
        round_off = 0.55 + 0.5 * np.sqrt(np.clip(1 - reach**2, 0, 1))
        crease = 1 - 0.12 * np.exp(-(((along % (size * 0.55)) - size * 0.27) ** 2) / (0.02 * size) ** 2)
        layer = np.where(own[..., None] > 0, skin * (round_off * crease)[..., None], layer).astype(np.float32)
        opacity = np.maximum(opacity, own).astype(np.float32)
    return layer + _texture(image, 60, 4, rng), opacity


def hair(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Strands that hang from the brow or a side over the face."""
    size = _size(points)
    colour = np.array([(25, 20, 18), (70, 45, 30), (150, 110, 70), (120, 60, 35), (130, 130, 130)])[rng.integers(5)]
    layer, opacity = _flat(image, colour), np.zeros(image.shape[:2], np.uint8)
    middle, width, reach = rng.uniform(-0.9, 0.9), 0.15 + 0.6 * severity, rng.uniform(0.4, 0.7) + severity
    lean, steps = rng.uniform(-0.5, 0.5), np.linspace(0, 1, 12)
    for _ in range(int(40 + 260 * severity)):
        place = middle + rng.uniform(-width, width)
        bend = lean + rng.normal(0, 0.12)
        length = reach * rng.uniform(0.7, 1.1)
        start = rng.uniform(-1.6, -1.0)
        strand = np.stack([_at(points, place + bend * s * s, start + (length - 0.5 - start) * s) for s in steps])
        pixels = [np.rint(strand * 16).astype(np.int32)]
        tone = tuple(float(v) for v in colour * rng.uniform(0.6, 1.5))
        thick = max(1, round(size * rng.uniform(0.01, 0.04)))
        cv2.polylines(layer, pixels, False, tone, thick, cv2.LINE_AA, 4)
        cv2.polylines(opacity, pixels, False, (255,), thick, cv2.LINE_AA, 4)
    return layer, np.asarray(cv2.GaussianBlur(opacity.astype(np.float32) / 255, (0, 0), 0.6), np.float32)


def microphone(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """A ball of mesh or foam before the mouth, on a rod from below."""
    across, down = _axes(points)
    size = _size(points)
    radius = size * (0.15 + 0.3 * severity)
    centre = _at(points, rng.uniform(-0.5, 0.5), rng.uniform(0.95, 1.35) - 0.25 * severity)
    way = down + across * rng.uniform(-0.9, 0.9)
    way, grip = way / np.hypot(*way), radius * rng.uniform(0.5, 0.8)
    normal = np.array([-way[1], way[0]])
    rod = np.stack([centre + normal * grip, centre - normal * grip, centre - normal * grip + way * 400])
    rod = np.concatenate([rod, [centre + normal * grip + way * 400]])
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float64)
    near = np.hypot(x - centre[0], y - centre[1]) / radius
    ball = np.clip((1 - near) * radius / 1.5, 0, 1).astype(np.float32)
    tone, step = rng.uniform(15, 120) + rng.uniform(-10, 10, 3), rng.uniform(2, 5)
    mesh = 1 + 0.35 * np.sin(2 * np.pi * x / step) * np.sin(2 * np.pi * y / step)
    gain = (0.5 + 0.7 * np.sqrt(np.clip(1 - near**2, 0, 1))) * mesh
    layer = np.where(ball[..., None] > 0, tone * gain[..., None], rng.uniform(10, 90) * np.ones(3)).astype(np.float32)
    return layer, np.maximum(ball, _filled(image, rod, 0.8))


def _cloth(image: Image, points: Points, rng: Rng) -> Floats:
    """A layer of woven, folded, maybe striped stuff."""
    height, width = image.shape[:2]
    tones = np.array([(235, 235, 235), (120, 170, 200), (25, 25, 28), rng.uniform(0, 255, 3), rng.uniform(60, 220, 3)])
    layer = _flat(image, tones[rng.integers(5)]) * _shade(image, points, rng.uniform(0.1, 0.4), rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 30)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)[..., None]
    if rng.random() < 0.5:
        layer = layer + wave * rng.uniform(4, 50)
    layer = layer + _texture(image, int(rng.integers(5, 25)), 14, rng) + _texture(image, 110, 5, rng)
    return np.asarray(layer, np.float32)


def mask(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Over mouth and chin; the more severe the higher over the nose."""
    top = 0.85 - 0.5 * severity + rng.uniform(-0.05, 0.05)
    corners = [(-0.75, top + 0.2), (-0.3, top + 0.03), (0, top - 0.06), (0.3, top + 0.03), (0.75, top + 0.2)]
    corners += [(0.68, 1.35), (0.35, 1.75), (0, 1.85), (-0.35, 1.75), (-0.68, 1.35)]
    outline = np.stack([_at(points, right, down) for right, down in corners])
    return _cloth(image, points, rng), _filled(image, outline, 1.0)


def scarf(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Everything below a wavy line, from the chin up to the nose."""
    top, phase = 1.45 - 0.95 * severity, rng.uniform(0, 6)
    line = [(right, top + 0.1 * np.sin(right * 3 + phase)) for right in np.linspace(-2.2, 2.2, 24)]
    outline = np.stack([_at(points, right, down) for right, down in [*line, (2.2, 5.0), (-2.2, 5.0)]])
    return _cloth(image, points, rng), _filled(image, outline, 1.2)


def veil(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Thin stuff over the whole face or its lower part, that lets some of it through."""
    height, width = image.shape[:2]
    top = rng.choice([-3.0, -3.0, 0.4])
    corners = [(-2.5, top), (2.5, top), (2.5, 5.0), (-2.5, 5.0)]
    covered = _filled(image, np.stack([_at(points, right, down) for right, down in corners]), 1.5)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    step, through = rng.uniform(2.5, 9), 0.25 + 0.55 * severity
    net = 0.5 + 0.5 * np.sin(2 * np.pi * (x + y) / step) * np.sin(2 * np.pi * (x - y) / step)
    folds = 1 + np.clip(_texture(image, int(rng.integers(4, 10)), 0.25, rng)[..., 0], -0.5, 0.5)
    weave = net if rng.random() < 0.5 else np.ones_like(net)
    opacity = np.clip(covered * through * folds * (0.5 + 0.5 * weave), 0, 1)
    return _cloth(image, points, rng), np.asarray(opacity, np.float32)


def second_head(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """Another person's head before this one, more or less of it."""
    height, width = image.shape[:2]
    scale, side = rng.uniform(0.8, 1.5), rng.choice([-1.0, 1.0])
    middle = _at(points, side * (2.1 - severity) * rng.uniform(0.9, 1.1), rng.uniform(0.2, 1.6) - 0.3 * severity)
    size = _size(points) * 3.6 * scale
    moved = np.array(
        [[size / other.shape[1], 0, middle[0] - size / 2], [0, size / other.shape[0], middle[1] - size / 2]]
    )
    layer = cv2.warpAffine(other, moved, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
    wobble = 0.04 * np.sin(np.linspace(0, 2 * np.pi, 60, endpoint=False) * rng.integers(2, 5) + rng.uniform(0, 6))
    outline = _ellipse(middle, np.array([size * 0.36, 0.0]), np.array([0.0, size * 0.47]), 2.2, wobble)
    return np.asarray(layer, np.float32), _filled(image, outline, rng.uniform(0.8, 3))


def thing(image: Image, points: Points, other: Image, severity: float, rng: Rng) -> tuple[Floats, Floats]:
    """A shape of no name (a cup, a leaf, a shoulder) that looks like a part of another photograph."""
    size = _size(points) * (0.25 + 0.75 * severity)
    centre = _at(points, rng.uniform(-0.8, 0.8), rng.uniform(-0.3, 1.4))
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    wobble = sum(rng.normal(0, 0.12) * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4))
    turned = rng.uniform(0, np.pi)
    one = np.array([np.cos(turned), np.sin(turned)]) * size
    outline = _ellipse(centre, one, np.array([-one[1], one[0]]) * rng.uniform(0.4, 1), rng.choice([2.0, 4.0]), wobble)
    height, width = image.shape[:2]
    # A corner of the other picture, enlarged: the texture of a photograph, and no face.
    top, left = (int(end * 0.72 * rng.integers(2)) for end in other.shape[:2])
    piece = other[top : top + max(8, other.shape[0] // 4), left : left + max(8, other.shape[1] // 4)]
    layer = cv2.resize(piece, (width, height), interpolation=cv2.INTER_CUBIC) + _texture(image, 110, 4, rng)
    return np.asarray(layer, np.float32), _filled(image, outline, rng.uniform(0.6, 2.5))


OCCLUDERS: dict[str, Occluder] = {
    function.__name__: function
    for function in (sunglasses, glasses, hand, hair, microphone, mask, scarf, veil, second_head, thing)
}


def occlude(image: Image, points: Points, other: Image, kind: str, severity: float, rng: Rng) -> tuple[Image, Floats]:
    """Draw an occluder.

    Args:
        image: uint8 RGB [H, W, 3], a face.
        points: of it.
        other: another photograph of a face, uint8 RGB of any size; some occluders are made of it.
        kind: of OCCLUDERS.
        severity: in (0, 1]: how large, high or opaque.
        rng: of everything random.

    Returns:
        The picture, and how opaque what covers it is: float32 [H, W] in [0, 1].

    Raises:
        KeyError: an unknown kind.
    """
    layer, opacity = OCCLUDERS[kind](image, points, other, severity, rng)
    opacity = np.clip(opacity, 0, 1)
    drawn = np.clip(np.rint(image * (1 - opacity[..., None]) + layer * opacity[..., None]), 0, 255).astype(np.uint8)
    return drawn, opacity


def covered(opacity: Floats, points: Points) -> float:
    """What an opacity [H, W] covers of the face: the eyes, the nose, the mouth and the rest count a fifth each."""
    across, down = _axes(points)
    mouth, wide = points[3:].mean(axis=0), (points[4] - points[3]) / 2
    parts = [
        *((eye, across * 0.3, down * 0.17, _EYE) for eye in points[:2]),
        (_at(points, 0, 0.45) * 0.5 + points[2] * 0.5, across * 0.22, down * 0.3, _NOSE),
        (mouth, wide * 1.15, down * 0.2, _MOUTH),
        (_at(points, 0, 0.5), across * 1.0, down * 1.35, _REST),
    ]
    total = 0.0
    for centre, wide_axis, down_axis, weight in parts:
        region = np.zeros(opacity.shape, np.uint8)
        cv2.fillPoly(region, [np.rint(_ellipse(centre, wide_axis, down_axis)).astype(np.int32)], (1,))
        inside = region > 0
        total += weight * float(opacity[inside].mean()) if inside.any() else 0.0
    return total


def draw_occluder(rng: Rng) -> tuple[str, float]:
    """A kind and its severity."""
    return str(rng.choice(list(OCCLUDERS))), float(max(rng.random(), 0.05))
