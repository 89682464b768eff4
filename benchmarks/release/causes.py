"""Heads of causes for a checkpoint that has none, and how good those of a checkpoint are.

`python -m benchmarks.release.causes fit LIST -o work --checkpoint FILE --to FILE` trains the heads on the pooled
features as they are: the scores stay what they were, bit for bit. `python -m benchmarks.release.causes measure LIST
-o work --checkpoint FILE --to FILE` chooses the thresholds, writes them into a copy of the checkpoint and records every
figure of the model card. LIST is what `faces.py` wrote; pixels and features are kept in WORK.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.common import machine, record
from benchmarks.release.model_card import Photo, Pixels, read_photos
from fiqa_trt.decoding.cpu import decode_image
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.causes import CAUSES, Causes
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.training.crops import HIDDEN, Face, cut, draw_other, make_crop
from fiqa_trt.training.damage import NAMED
from fiqa_trt.training.degradations import FAMILIES
from fiqa_trt.training.occlusions import OCCLUDERS, covered, occlude
from fiqa_trt.training.synthesis import read_faces

Floats = npt.NDArray[np.float32]
Rows = list[dict[str, Any]]

SIZE = 224
BATCH = 32
HELD_OUT = ("motion_blur", "sensor_noise", "webp", "pixelate", "uneven_light", "haze")
PRESENT = 0.3
SEVERE = 0.4  # from here on the cause of single damage must be told
FALSE = 0.02  # of undamaged portraits, by cause, may be said to have it
LEAST = 0.1  # no threshold is below
TURNED = 0.25  # 30 degrees: not a portrait without a cause
_WHOLE = 0.05  # of a face that no occluder covers: no occlusion worth a name
_EPOCHS, _RATE, _DECAY = 120, 2e-3, 1e-2


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Crops with what was done to each.

    Attributes:
        pixels: uint8 [N, 224, 224, 3].
        causes: severities, float32 [N, causes]; NaN where it cannot be told.
        rows: `path`, `families` and whatever else a set tells of each.
    """

    pixels: npt.NDArray[np.uint8]
    causes: Floats
    rows: Rows

    @property
    def families(self) -> list[set[str]]:
        """Names of the damage done to each."""
        return [set(row["families"]) for row in self.rows]


Made = tuple[Pixels, dict[str, float], dict[str, Any]]


def kept(work: Path, name: str, count: int, make: Callable[[], Iterator[Made]]) -> Pictures:
    """The set of this name, made if it is not there."""
    pixels, told = work / f"{name}.npy", work / f"{name}.json"
    if not told.exists():
        array = np.lib.format.open_memmap(pixels, "w+", np.uint8, (count, SIZE, SIZE, 3))
        rows, severities = [], []
        for index, (crop, causes, row) in enumerate(make()):
            array[index] = crop
            severities.append([causes.get(cause, 0.0) for cause in CAUSES])
            rows.append(row)
        array.flush()
        told.write_text(json.dumps({"rows": rows, "causes": severities}))
    found = json.loads(told.read_text())
    count = len(found["rows"])
    return Pictures(np.load(pixels, mmap_mode="r")[:count], np.array(found["causes"], np.float32), found["rows"])


def decoded(face: Face) -> Pixels:
    """Pixels of a photograph."""
    return np.asarray(decode_image(Path(face.path).read_bytes()))


def mixtures(faces: Sequence[Face], per_face: int, seed: int) -> Iterator[Made]:
    """Crops as `fiqa-trt synthesize` makes them, without labels of quality."""
    every = list(faces)
    for index, face in enumerate(every):
        photo = decoded(face)
        for copy in range(per_face):
            rng = np.random.default_rng([seed, index, copy])
            whose = every[draw_other(every, index, rng)]
            crop = make_crop(photo, face, (decoded(whose), whose), rng, SIZE)
            row = {"path": face.path, "families": [family for family, _ in crop.chain], "framing": crop.framing}
            yield crop.damaged, crop.causes, row


def singles(faces: Sequence[Face], seed: int) -> Iterator[Made]:
    """A crop of each face for each family of damage, each occluder and a bad crop, of a severity from SEVERE to 1."""
    every = list(faces)
    for index, face in enumerate(every):
        photo, whose = decoded(face), every[(index + 1) % len(every)]
        for number, family in enumerate((*NAMED, *OCCLUDERS, "bad_crop")):
            rng = np.random.default_rng([seed, index, number])
            severity = float(rng.uniform(SEVERE, 1))
            row = {"path": face.path, "families": [family], "severity": severity}
            if family == "bad_crop":
                yield cut(photo, face, HIDDEN * severity, rng, SIZE)[0], {"framing": severity}, row
                continue
            crop, points = cut(photo, face, 0, rng, SIZE)
            if family in FAMILIES:
                yield FAMILIES[family](crop, severity, rng), dict.fromkeys(NAMED[family], severity), row
                continue
            head, _ = cut(decoded(whose), whose, 0, rng, SIZE)
            drawn, opacity = occlude(crop, points, head, family, severity, rng)
            level = min(1.0, 2 * covered(opacity, points))
            yield drawn, {"occlusion": level}, row


def undamaged(photos: Sequence[Photo], poses: dict[str, float | None]) -> Iterator[Made]:
    """The undistorted crop of each photograph."""
    for photo in photos:
        pose = poses[str(photo.path)]
        row = {"path": str(photo.path), "families": [], "pool": photo.pool, "split": photo.split}
        row |= {"demographic": photo.demographic}
        yield photo.crop(), {"pose": float("nan") if pose is None else pose}, row


def pooled(network: Ensemble, work: Path, name: str, pictures: Pictures) -> list[Floats]:
    """What the heads of each member judge by, float32 [N, features] each; kept by the digest of the weights."""
    weights = b"".join(v.numpy().tobytes() for n, v in network.state_dict().items() if ".causes." not in n)
    files = [
        work / f"{name}-{hashlib.sha256(weights).hexdigest()[:12]}-{number}.npy"
        for number in range(len(network.each()))
    ]
    if not all(file.exists() for file in files):
        parts: list[list[Floats]] = [[] for _ in files]
        with torch.inference_mode():
            for start in range(0, len(pictures.rows), BATCH):
                batch = torch.from_numpy(np.array(pictures.pixels[start : start + BATCH]))
                normalised = network.normalise(batch).contiguous(memory_format=torch.channels_last)
                for part, member in zip(parts, network.each(), strict=True):
                    part.append(member.pool(normalised).numpy())
        for file, part in zip(files, parts, strict=True):
            np.save(file, np.concatenate(part))
    return [np.load(file) for file in files]


def fit(features: Floats, targets: Floats, seed: int = 0) -> nn.Linear:
    """A layer from features to severities: cross-entropy with AdamW, what is unknown left out."""
    torch.manual_seed(seed)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-4
    x = torch.from_numpy((features - mean) / spread)
    known = torch.from_numpy(~np.isnan(targets)).float()
    y = torch.from_numpy(np.nan_to_num(targets))
    layer = nn.Linear(features.shape[1], targets.shape[1])
    nn.init.zeros_(layer.weight)
    rate = float(_RATE)
    optimizer = torch.optim.AdamW(layer.parameters(), rate, weight_decay=_DECAY)
    steps = max(1, len(x) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x)).chunk(steps):
            losses = nn.functional.binary_cross_entropy_with_logits(layer(x[rows]), y[rows], reduction="none")
            loss = (losses * known[rows]).sum() / known[rows].sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        layer.weight.div_(torch.from_numpy(spread))
        layer.bias.sub_(layer.weight @ torch.from_numpy(mean))
    return layer


def severities(layers: Sequence[nn.Linear], features: Sequence[Floats]) -> Floats:
    """The mean over members, float32 [N, causes]."""
    with torch.inference_mode():
        each = [torch.sigmoid(layer(torch.from_numpy(x))) for layer, x in zip(layers, features, strict=True)]
    return np.asarray(torch.stack(each).mean(dim=0).numpy(), np.float32)


def named(found: Floats, thresholds: Floats) -> npt.NDArray[np.int64]:
    """The cause that is the farthest above its threshold, int64 [N]; -1 where none is."""
    above = found - thresholds
    return np.where(above.max(axis=1) > 0, above.argmax(axis=1), -1)


def auroc(values: Floats, present: npt.NDArray[np.bool_]) -> float:
    """Share of pairs, one present and one absent, in the right order."""
    from scipy.stats import rankdata

    ranks, count = rankdata(values), int(present.sum())
    rest = len(values) - count
    return float((ranks[present].sum() - count * (count + 1) / 2) / (count * rest))


def right(pictures: Pictures, found: Floats, thresholds: Floats) -> dict[str, dict[str, float]]:
    """By family: how often a cause of it is the named one, of crops whose severity of it is SEVERE and more."""
    names, result = named(found, thresholds), dict[str, dict[str, float]]()
    for family in (*NAMED, *OCCLUDERS, "bad_crop"):
        chosen = [i for i, own in enumerate(pictures.families) if own == {family}]
        chosen = [i for i in chosen if np.nanmax(pictures.causes[i]) >= SEVERE]
        if not chosen:
            continue
        hits = [names[i] >= 0 and pictures.causes[i, names[i]] > 0 for i in chosen]
        none = float(np.mean([names[i] < 0 for i in chosen]))
        others = [CAUSES[names[i]] for i, hit in zip(chosen, hits, strict=True) if names[i] >= 0 and not hit]
        result[family] = {"right": float(np.mean(hits)), "none": none, "crops": len(chosen)}
        if others:
            most = max(set(others), key=others.count)
            result[family][f"taken for {most}"] = others.count(most) / len(chosen)
    return result


def by_cause(families: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean over the families of each cause."""
    own: dict[str, list[float]] = {}
    for family, figures in families.items():
        for cause in NAMED.get(family, ("framing",) if family == "bad_crop" else ("occlusion",)):
            own.setdefault(cause, []).append(figures["right"])
    return {cause: float(np.mean(values)) for cause, values in own.items()}


def groups(pictures: Pictures, found: Floats, thresholds: Floats, side: str | None) -> dict[str, Any]:
    """Share of undamaged portraits of each group that are said to have a cause, and the largest gap by cause."""
    rows = [i for i, row in enumerate(pictures.rows) if row["pool"] == "portrait" and side in (None, row["split"])]
    straight = [i for i in rows if not pictures.causes[i, CAUSES.index("pose")] >= TURNED]
    table: dict[str, dict[str, float]] = {}
    for group in sorted({pictures.rows[i]["demographic"] for i in straight}):
        own = [i for i in straight if pictures.rows[i]["demographic"] == group]
        shares = (found[own] > thresholds).mean(axis=0)
        table[group] = {"images": len(own), **{c: round(float(s), 4) for c, s in zip(CAUSES, shares, strict=True)}}
    gaps = {c: round(max(t[c] for t in table.values()) - min(t[c] for t in table.values()), 4) for c in CAUSES}
    return {"share with a false cause": table, "gaps": gaps}


def choose(pictures: Pictures, found: Floats) -> Floats:
    """Thresholds that FALSE of the undamaged `val` portraits are above, cause by cause; float32 [causes]."""
    clean = straight(pictures, "val")
    return np.maximum(np.quantile(found[clean], 1 - FALSE, axis=0), LEAST).astype(np.float32)


def straight(pictures: Pictures, side: str) -> list[int]:
    """Undamaged portraits of a side that look into the camera."""
    pose = pictures.causes[:, CAUSES.index("pose")]
    ours = [row["pool"] == "portrait" and row["split"] == side for row in pictures.rows]
    return [i for i, own in enumerate(ours) if own and not pose[i] >= TURNED]


def figures(sets: dict[str, tuple[Pictures, Floats]], thresholds: Floats) -> dict[str, Any]:
    """Everything that the model card tells of causes."""
    single, mixed, clean = sets["singles"], sets["mixtures"], sets["undamaged"]
    families = right(*single, thresholds)
    several = np.array([len(own) > 1 for own in mixed[0].families])
    columns, counts = {}, {}
    for number, cause in enumerate(CAUSES):
        truth, values = mixed[0].causes[:, number], mixed[1][:, number]
        # Poses and bad crops are no damage: all crops tell of these.
        known = ~np.isnan(truth) & (several | (cause in ("pose", "framing"))) & ((truth >= PRESENT) | (truth == 0))
        if cause == "pose":
            known = ~np.isnan(truth)
        columns[cause] = auroc(values[known], truth[known] >= PRESENT)
        counts[cause] = int((truth[known] >= PRESENT).sum())
    turned = [i for i, row in enumerate(clean[0].rows) if row["split"] == "val"]
    turned = [i for i in turned if clean[0].causes[i, CAUSES.index("pose")] >= SEVERE]
    names = named(clean[1], thresholds)
    shares = {side: (clean[1][straight(clean[0], side)] > thresholds).mean(axis=0) for side in ("val", "train")}
    overall = [v["right"] for v in families.values()]
    return {
        "thresholds": dict(zip(CAUSES, (round(float(t), 4) for t in thresholds), strict=True)),
        "single damage": {
            "all": float(np.mean(overall)),
            "causes": by_cause(families),
            "worst family": min(families, key=lambda family: families[family]["right"]),
            "families": families,
        },
        "turned heads named pose": {
            "images": len(turned),
            "right": float(np.mean([CAUSES[names[i]] == "pose" and names[i] >= 0 for i in turned])),
        },
        "AUROC on mixtures": {"mean": float(np.mean(list(columns.values()))), "causes": columns, "present": counts},
        "false causes": {
            side: {
                "images": len(straight(clean[0], side)),
                "any": float((named(clean[1][straight(clean[0], side)], thresholds) >= 0).mean()),
                **{cause: round(float(s), 4) for cause, s in zip(CAUSES, share, strict=True)},
            }
            for side, share in shares.items()
        },
        "groups": {"val": groups(*clean, thresholds, "val"), "all": groups(*clean, thresholds, None)},
    }


def eyes(path: Path) -> dict[str, Any]:
    """How many photographs there are to learn closed eyes from."""
    with path.open(newline="") as file:
        opening = np.array([float(row["eyes_open"]) for row in csv.DictReader(file)])
    return {"photographs": len(opening), "below 0.1": int((opening < 0.1).sum()), "median": float(np.median(opening))}


def main() -> None:
    """Fit, or measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "measure"))
    parser.add_argument("list", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="the checkpoint with heads and thresholds")
    parser.add_argument("--per-face", type=int, default=2)
    parser.add_argument("--name", default="causes")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    faces = read_faces(Source((), str(options.list)))
    sides = {side: [face for face in faces if face.split == side] for side in ("train", "val")}
    network = load_checkpoint(options.checkpoint)
    if options.what == "fit":
        count = len(sides["train"]) * options.per_face
        crops = kept(options.work, "train", count, lambda: mixtures(sides["train"], options.per_face, 61))
        network.add_causes(Causes.untuned())
        for member, features in zip(network.each(), pooled(network, options.work, "train", crops), strict=True):
            member.causes = fit(features, crops.causes)
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, options.to, Causes.untuned().metadata())
        return
    photos = [photo for photo in read_photos(options.list) if photo.pool == "portrait" or photo.split == "val"]
    poses = {face.path: face.pose for face in faces}
    some = [face for pool in ("/portraits/", "/wild/") for face in sides["val"] if pool in face.path][::4]
    made: dict[str, Pictures] = {
        "singles": kept(options.work, "singles", len(some) * 40, lambda: singles(some, 62)),
        "mixtures": kept(options.work, "mixtures", len(sides["val"]) * 6, lambda: mixtures(sides["val"], 6, 63)),
        "undamaged": kept(options.work, "undamaged", len(photos), lambda: undamaged(photos, poses)),
    }
    layers = [member.causes for member in network.each()]
    seen = {name: pooled(network, options.work, name, pictures) for name, pictures in made.items()}
    found = {name: severities([layer for layer in layers if layer], seen[name]) for name in made}
    thresholds = choose(made["undamaged"], found["undamaged"])
    facts: dict[str, Any] = {"machine": machine(), "checkpoint": options.checkpoint.name}
    facts |= figures({name: (made[name], found[name]) for name in made}, thresholds)
    facts["eyes"] = eyes(Path(__file__).parent / "pose.csv")
    named_thresholds = Causes(CAUSES, tuple(round(float(t), 4) for t in thresholds))
    save_file(load_file(options.checkpoint), options.to, named_thresholds.metadata())
    record(options.name, facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
