"""Heads of causes for a checkpoint that has none, and how good those of a checkpoint are.

`python -m benchmarks.release.causes fit LIST -o work --checkpoint FILE --to FILE` trains the heads on the pooled
features as they are: the scores stay what they were, bit for bit. `held-out`, likewise, trains heads without six
families and records how well these are told. `measure` chooses the thresholds of a checkpoint that has heads, writes
them into a copy of it and records every figure of the model card. LIST is what `faces.py` wrote; pixels and features
are kept in WORK.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.common import machine, record
from benchmarks.release.model_card import Pixels, read_photos
from benchmarks.release.pictures import SEVERE, SIZE, Floats, Pictures, kept, mixtures, singles, undamaged
from fiqa_trt.engines.manifest import digest_of
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.causes import CAUSES, Causes
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.training.damage import NAMED
from fiqa_trt.training.loop import auroc
from fiqa_trt.training.losses import causes_loss, rarity
from fiqa_trt.training.occlusions import OCCLUDERS
from fiqa_trt.training.synthesis import read_faces

BATCH = 32
HELD_OUT = ("motion_blur", "sensor_noise", "webp", "pixelate", "uneven_light", "haze")
PRESENT = 0.3
FALSE = 0.02  # of undamaged portraits, by cause, may be said to have it
LEAST = 0.05  # no threshold is below
TURNED = 0.25  # 30 degrees: not a portrait without a cause
_EPOCHS, _RATE, _DECAY = 120, 2e-3, 1e-2


class _Pooled(nn.Module):
    def __init__(self, network: Ensemble) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        normalised = self.network.normalise(images)
        return tuple(member.pool(normalised) for member in self.network.each())


def compiled(network: Ensemble) -> Callable[[Pixels], Any]:
    """OpenVINO's FP32 of what the heads judge by: several times as fast as PyTorch."""
    import openvino

    example = torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8)
    model = openvino.convert_model(_Pooled(network).eval(), example_input=example, input=[-1, SIZE, SIZE, 3])
    return openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # type: ignore[no-any-return]


def pooled(network: Ensemble, work: Path, name: str, pictures: Pictures) -> list[Floats]:
    """What the heads of each member judge by, float32 [N, features] each; kept by the digest of the weights."""
    weights = b"".join(v.numpy().tobytes() for n, v in network.state_dict().items() if ".causes." not in n)
    files = [
        work / f"{name}-{hashlib.sha256(weights).hexdigest()[:12]}-{number}.npy"
        for number in range(len(network.each()))
    ]
    if not all(file.exists() for file in files):
        parts: list[list[Floats]] = [[] for _ in files]
        infer = compiled(network)
        for start in range(0, len(pictures.rows), BATCH):
            found = infer(np.array(pictures.pixels[start : start + BATCH]))
            for number, part in enumerate(parts):
                part.append(np.array(found[number]))
        for file, part in zip(files, parts, strict=True):
            np.save(file, np.concatenate(part))
    return [np.load(file) for file in files]


def fit(features: Floats, targets: Floats, seed: int = 0) -> nn.Linear:
    """A layer from features to severities: cross-entropy with AdamW, what is unknown left out."""
    torch.manual_seed(seed)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-4
    x = torch.from_numpy((features - mean) / spread)
    y = torch.from_numpy(targets)
    rare = rarity(y)
    layer = nn.Linear(features.shape[1], targets.shape[1])
    nn.init.zeros_(layer.weight)
    rate = float(_RATE)
    optimizer = torch.optim.AdamW(layer.parameters(), rate, weight_decay=_DECAY)
    steps = max(1, len(x) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x)).chunk(steps):
            loss = causes_loss(layer(x[rows]), y[rows], rare=rare)
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


def named(found: Floats, thresholds: Floats) -> list[str | None]:
    """The cause that is named for each row of severities [N, causes]."""
    return Causes(CAUSES, tuple(map(float, thresholds))).worst(found)


def right(pictures: Pictures, found: Floats, thresholds: Floats) -> dict[str, dict[str, float]]:
    """By family: how often a cause of it is the named one, of crops whose severity of it is SEVERE and more."""
    names, result = named(found, thresholds), dict[str, dict[str, float]]()
    for family in (*NAMED, *OCCLUDERS, "bad_crop"):
        chosen = [i for i, own in enumerate(pictures.families) if own == {family}]
        chosen = [i for i in chosen if np.nanmax(pictures.causes[i]) >= SEVERE]
        if not chosen:
            continue
        hits = [any(c == names[i] and pictures.causes[i, k] > 0 for k, c in enumerate(CAUSES)) for i in chosen]
        none = float(np.mean([names[i] is None for i in chosen]))
        others = [names[i] for i, hit in zip(chosen, hits, strict=True) if names[i] and not hit]
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
    rows = straight(pictures, side)
    table: dict[str, dict[str, float]] = {}
    for group in sorted({pictures.rows[i]["demographic"] for i in rows}):
        own = [i for i in rows if pictures.rows[i]["demographic"] == group]
        shares = (found[own] > thresholds).mean(axis=0)
        table[group] = {"images": len(own), **{c: round(float(s), 4) for c, s in zip(CAUSES, shares, strict=True)}}
    gaps = {c: round(max(t[c] for t in table.values()) - min(t[c] for t in table.values()), 4) for c in CAUSES}
    return {"share with a false cause": table, "gaps": gaps}


def choose(pictures: Pictures, found: Floats) -> Floats:
    """Thresholds that at most FALSE of the undamaged portraits are above, cause by cause, of those of `val` and of each
    group of all; float32 [causes].
    """
    every = straight(pictures)
    group = np.array([pictures.rows[i]["demographic"] for i in every])
    sets = [straight(pictures, "val"), *([every[k] for k in np.flatnonzero(group == own)] for own in np.unique(group))]
    highest = [np.quantile(found[rows], 1 - FALSE, axis=0, method="higher") for rows in sets]
    return np.asarray(np.maximum(np.max(highest, axis=0), LEAST), np.float32)


def straight(pictures: Pictures, side: str | None = None) -> list[int]:
    """Undamaged portraits of a side, or of all, that look into the camera."""
    pose = pictures.causes[:, CAUSES.index("pose")]
    ours = [row["pool"] == "portrait" and side in (None, row["split"]) for row in pictures.rows]
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
        columns[cause] = auroc(values[known], truth[known] >= PRESENT) or 0.0
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
            "right": float(np.mean([names[i] == "pose" for i in turned])),
        },
        "AUROC on mixtures": {"mean": float(np.mean(list(columns.values()))), "causes": columns, "present": counts},
        "false causes": {
            side: {
                "images": len(straight(clean[0], side)),
                "any": float((clean[1][straight(clean[0], side)] > thresholds).any(axis=1).mean()),
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


def held_out(train: Pictures, features: Sequence[Floats], single: Pictures, seen: Sequence[Floats]) -> dict[str, Any]:
    """How well heads that were trained without HELD_OUT tell the causes of these; thresholds as for single damage."""
    known = [i for i, own in enumerate(train.families) if not own & set(HELD_OUT)]
    layers = [fit(x[known], train.causes[known]) for x in features]
    found = severities(layers, seen)
    clean = severities(layers, [x[[i for i in known if not train.rows[i]["families"]]] for x in features])
    thresholds = np.maximum(np.quantile(clean, 1 - FALSE, axis=0), LEAST).astype(np.float32)
    families = {family: each for family, each in right(single, found, thresholds).items() if family in HELD_OUT}
    return {"all": float(np.mean([each["right"] for each in families.values()])), "families": families}


def main() -> None:
    """Fit, or measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "held-out", "measure"))
    parser.add_argument("list", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="the checkpoint with heads, or with thresholds")
    parser.add_argument("--per-face", type=int, default=2)
    parser.add_argument("--name", default="causes")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    faces = read_faces(Source((), str(options.list)))
    ours, val = ([face for face in faces if face.split == side] for side in ("train", "val"))
    network = load_checkpoint(options.checkpoint)

    def seen(name: str, pictures: Pictures) -> list[Floats]:
        return pooled(network, work, name, pictures)

    some = [face for pool in ("/portraits/", "/wild/") for face in val if pool in face.path][::4]
    single = kept(work, "singles", len(some) * 40, lambda: singles(some, 62))
    if options.what != "measure":
        crops = kept(work, "train", len(ours) * options.per_face, lambda: mixtures(ours, options.per_face, 61))
    if options.what == "held-out":
        facts = {"machine": machine(), "held out": HELD_OUT}
        facts |= held_out(crops, seen("train", crops), single, seen("singles", single))
        record(options.name, facts)
        return
    if options.what == "fit":
        network.add_causes(Causes.untuned())
        for member, features in zip(network.each(), seen("train", crops), strict=True):
            member.causes = fit(features, crops.causes)
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, options.to, Causes.untuned().metadata())
        return
    photos = [photo for photo in read_photos(options.list) if photo.pool == "portrait" or photo.split == "val"]
    poses = {face.path: face.pose for face in faces}
    made: dict[str, Pictures] = {
        "singles": single,
        "mixtures": kept(work, "mixtures", len(val) * 6, lambda: mixtures(val, 6, 63)),
        "undamaged": kept(work, "undamaged", len(photos), lambda: undamaged(photos, poses)),
    }
    layers = [member.causes for member in network.each() if member.causes is not None]
    found = {name: severities(layers, seen(name, pictures)) for name, pictures in made.items()}
    thresholds = choose(made["undamaged"], found["undamaged"])
    told = figures({name: (made[name], found[name]) for name in made}, thresholds)
    opening = eyes(Path(__file__).parent / "pose.csv")
    record(options.name, {"machine": machine(), "model": digest_of(options.checkpoint), **told, "eyes": opening})
    tuned = Causes(CAUSES, tuple(round(float(threshold), 4) for threshold in thresholds))
    save_file(load_file(options.checkpoint), options.to, tuned.metadata())


if __name__ == "__main__":
    main()
