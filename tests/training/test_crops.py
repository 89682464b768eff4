"""Occluders, and what the damage done to a crop means in causes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.machine.samples import portrait
from fiqa_trt.models.causes import CAUSES
from fiqa_trt.training.crops import Face, cut, draw_other, make_crop
from fiqa_trt.training.damage import NAMED, severities
from fiqa_trt.training.degradations import FAMILIES, apply_chain
from fiqa_trt.training.occlusions import OCCLUDERS, covered, occlude, typical_points

FACE = np.asarray(portrait())
POINTS = typical_points(45, 40, 135, 135)


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_an_occluder_changes_what_it_says_it_covers_and_nothing_else(kind: str) -> None:
    before = FACE.copy()
    for severity in (0.05, 1.0):
        one, opacity = occlude(before, POINTS, FACE[:, ::-1], kind, severity, np.random.default_rng(3))
        again, _ = occlude(before, POINTS, FACE[:, ::-1], kind, severity, np.random.default_rng(3))
        assert np.array_equal(one, again)
        assert one.shape == FACE.shape
        assert (one[opacity == 0] == FACE[opacity == 0]).all()
        most = opacity > 0.8 * opacity.max()
        assert (one[most] != FACE[most]).any()
    assert np.array_equal(before, FACE)


@pytest.mark.parametrize("kind", sorted(OCCLUDERS.keys() - {"glasses", "thing", "hand"}))
def test_a_severe_one_covers_more_of_the_face(kind: str) -> None:
    def mean(severity: float) -> float:
        drawn = (occlude(FACE, POINTS, FACE, kind, severity, np.random.default_rng(s))[1] for s in range(6))
        return float(np.mean([covered(opacity, POINTS) for opacity in drawn]))

    assert 0 < mean(0.1) < mean(1.0) <= 1


def test_sunglasses_cover_the_eyes_and_clear_ones_hardly_anything() -> None:
    shares = {}
    for kind in ("sunglasses", "glasses"):
        drawn = (occlude(FACE, POINTS, FACE, kind, 1.0, np.random.default_rng(s))[1] for s in range(6))
        shares[kind] = float(np.mean([covered(opacity, POINTS) for opacity in drawn]))
    assert shares["sunglasses"] > 0.35
    assert shares["glasses"] < 0.2


def test_all_of_a_face_is_one() -> None:
    assert covered(np.ones((224, 224), np.float32), POINTS) == pytest.approx(1)
    assert covered(np.zeros((224, 224), np.float32), POINTS) == 0


def test_every_family_has_its_causes_or_none() -> None:
    assert FAMILIES.keys() - NAMED.keys() == {"interlace", "posterise", "over_sharpen"}
    assert NAMED.keys() <= FAMILIES.keys()
    assert {cause for causes in NAMED.values() for cause in causes} == set(CAUSES) - {"pose", "framing"}


@pytest.mark.parametrize("family", NAMED)
def test_severe_damage_alone_is_seen(family: str) -> None:
    chain = [(family, 0.9)]
    found = severities(FACE, chain, 1, apply_chain(FACE, chain, 1))
    assert {cause for cause, level in found.items() if level} == set(NAMED[family])
    assert all(found[cause] == 0.9 for cause in NAMED[family])


def test_what_stronger_damage_hides_is_unknown() -> None:
    chain = [("gaussian_noise", 0.15), ("pixelate", 1.0)]
    found = severities(FACE, chain, 1, apply_chain(FACE, chain, 1))
    assert math.isnan(found["noise"])
    assert found["resolution"] == 1
    assert found["blur"] == 0


def test_a_step_that_is_left_out_changes_nothing_in_the_others() -> None:
    noise = [("gaussian_noise", 0.5)]
    both = apply_chain(FACE, [*noise, ("jpeg", 0.5)], 4, without=["jpeg"])
    assert np.array_equal(both, apply_chain(FACE, noise, 4))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_a_crop_is_described_by_what_was_done_to_it(seed: int) -> None:
    face = Face("x", box=(45, 40, 135, 135), pose=0.2)
    crop = make_crop(FACE, face, (FACE, face), np.random.default_rng(seed), 224)
    assert crop.causes.keys() == set(CAUSES)
    assert all(math.isnan(level) or 0 <= level <= 1 for level in crop.causes.values())
    assert crop.causes["pose"] == 0.2
    assert (crop.causes["framing"] > 0) == (crop.framing > 0)
    assert 0 <= crop.covered <= 1
    if not crop.chain:
        assert np.array_equal(crop.clean, crop.damaged)
        assert crop.covered == 0
    elif crop.chain[0][0] in OCCLUDERS:
        assert not math.isnan(crop.causes["occlusion"])
    unknown = make_crop(FACE, Face("x"), (FACE, face), np.random.default_rng(seed), 64)
    assert math.isnan(unknown.causes["pose"])


@given(st.integers(0, 2**32))
def test_landmarks_move_with_the_crop(seed: int) -> None:
    photo = np.zeros((300, 300, 3), np.uint8)
    places = [(120, 130), (180, 128), (148, 160), (128, 185), (172, 186)]
    for index, (x, y) in enumerate(places):
        photo[y - 4 : y + 5, x - 4 : x + 5] = (index + 1) * 50
    face = Face("x", box=(100, 100, 100, 100), points=tuple(float(v) for place in places for v in place))
    crop, points = cut(photo, face, 0, np.random.default_rng(seed), 224)
    assert points[0, 0] < points[1, 0]
    assert points[3, 0] < points[4, 0]
    shown = [int(crop[round(y), round(x), 0]) for x, y in points]
    assert shown in ([50, 100, 150, 200, 250], [100, 50, 150, 250, 200])


def test_occluders_come_from_the_same_side_of_the_split() -> None:
    faces = [Face("a", split="train"), Face("b", split="val"), Face("c", split="train"), Face("d")]
    drawn = {(i, draw_other(faces, i, np.random.default_rng(s))) for i in range(4) for s in range(20)}
    assert drawn == {(0, 0), (0, 2), (2, 0), (2, 2), (1, 1), (3, 3)}
