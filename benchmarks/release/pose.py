"""Head poses and landmarks of the training photographs. `python -m benchmarks.release.pose FACES.csv -o pose.csv`.

Needs `pip install mediapipe==0.10.21` (Apache-2.0), in an environment of its own: it wants an older NumPy. The result
is kept in the repository, so nobody else has to run this.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

_SIDE = 320
_SIDES, _BROW, _CHIN = (234, 454), 10, 152
_EYES = ((33, 133, 159, 145), (362, 263, 386, 374))  # of each its two corners, then its upper and lower lid
_NOSE, _MOUTH = 1, (61, 291)
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # left and right of the picture


def main() -> None:
    """Write yaw and pitch in degrees, the places of POINTS in pixels and how far the eyes are open (height by width)
    for each photograph in which a face was found.
    """
    import mediapipe

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path, help="columns file, face_x, face_y, face_w, face_h")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    mesh = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=False, min_detection_confidence=0.1
    )
    with options.faces.open(newline="") as faces, options.output.open("w", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(["file", "yaw", "pitch", *(f"{name}_{axis}" for name in POINTS for axis in "xy"), "eyes_open"])
        for row in csv.DictReader(faces):
            box = tuple(int(row[f"face_{side}"]) for side in "xywh")
            found = mesh.process(crop(options.faces.parent / row["file"], box)).multi_face_landmarks
            if found:
                points = np.array([[p.x, p.y, p.z] for p in found[0].landmark]) * _SIDE
                x, y, width, height = box
                side = max(width, height)
                places = five(points)[:, :2] * 2 * side / _SIDE + (x + width // 2 - side, y + height // 2 - side)
                turned = (f"{angle:.3f}" for angle in angles(points))
                writer.writerow([row["file"], *turned, *np.rint(places).astype(int).ravel(), f"{opening(points):.3f}"])


def crop(photo: Path, box: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The square of twice the face about its middle, reflected where it leaves the photograph: RGB, 320 px."""
    image = cv2.imread(str(photo))
    if image is None:
        raise OSError(f"cannot read {photo}")
    x, y, width, height = box
    side = max(width, height)
    image = cv2.copyMakeBorder(image, side, side, side, side, cv2.BORDER_REFLECT)
    left, top = x + width // 2, y + height // 2
    square = image[top : top + 2 * side, left : left + 2 * side, ::-1]
    return np.ascontiguousarray(cv2.resize(square, (_SIDE, _SIDE)), np.uint8)


def angles(points: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Yaw and pitch in degrees from landmarks [468, 3]: the turn of the line from one side of the face to the other,
    and the tilt of the plane of that line and the one from brow to chin.
    """
    across = points[_SIDES[1]] - points[_SIDES[0]]
    across /= np.linalg.norm(across)
    normal = np.cross(across, points[_CHIN] - points[_BROW])
    yaw, pitch = np.arctan2(across[2], across[0]), np.arctan2(normal[1], normal[2])
    return float(np.degrees(yaw)), float(np.degrees(pitch))


def five(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The places of POINTS among landmarks [468, 3]."""
    eyes = [points[list(eye[:2])].mean(axis=0) for eye in _EYES]
    return np.stack([*eyes, points[_NOSE], *points[list(_MOUTH)]])


def opening(points: npt.NDArray[np.float64]) -> float:
    """Height of the opening of the eyes, relative to their width, the mean of both; an open eye has about 0.3."""

    def apart(one: int, other: int) -> float:
        return float(np.linalg.norm(points[one] - points[other]))

    return float(np.mean([apart(upper, lower) / apart(left, right) for left, right, upper, lower in _EYES]))


if __name__ == "__main__":
    main()
