"""The label table: what it must be, who stands on which side of the split, and what is decoded of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fiqa_trt.errors import InputError
from fiqa_trt.training.dataset import Dataset, decode_images, read_labels


def test_what_cannot_be_decoded_is_left_out_and_named(data: Dataset) -> None:
    assert len(data.labels.paths) == 38
    assert [line.split("/")[-1].split(":")[:2] for line in data.skipped] == [
        ["8.png", " truncated"],
        ["9.png", " missing"],
    ]
    first = data.pixels(np.array([7, 8]))
    assert first.shape == (2, 224, 224, 3)
    assert first[1].mean() / first[0].mean() == pytest.approx(15 / 12, rel=0.05)  # 10.png follows 7.png


def test_decoded_images_are_found_again_until_they_change(table: Path, tmp_path: Path) -> None:
    def refuse(progress: object) -> None:
        raise AssertionError("decoded again")

    labels = read_labels(table)
    decode_images(labels, tmp_path)
    again = decode_images(labels, tmp_path, report=refuse)
    assert len(again.skipped) == 2
    copy = table.parent / "0.png"
    copy.write_bytes(copy.read_bytes())
    with pytest.raises(AssertionError, match="again"):
        decode_images(labels, tmp_path, report=refuse)


def test_without_groups_a_drawn_split_may_divide_a_person_and_says_so(tmp_path: Path) -> None:
    for header, said in (("path,score,person", True), ("path,score,group", False), ("path,score,split", True)):
        rows = [f"{index}.jpg,0.{index},{'' if 'split' in header else index}" for index in range(40)]
        (tmp_path / "l.csv").write_text("\n".join([header, *rows]))
        assert any("no column `group`" in note for note in read_labels(tmp_path / "l.csv").notes) == said


def test_groups_stay_together_where_no_split_is_given(tmp_path: Path) -> None:
    rows = [f"{index}.jpg,{index},{index % 20}" for index in range(200)]
    (tmp_path / "l.csv").write_text("\n".join(["path,score,group", *rows]))
    labels = read_labels(tmp_path / "l.csv", score_range=(0, 199), val_share=0.25, seed=3)
    sides = {(index % 20, bool(side)) for index, side in enumerate(labels.train)}
    assert len(sides) == 20
    assert 1 <= sum(not side for _, side in sides) <= 10
    assert labels.scores.min() == 0 < labels.scores.max() == 1


def test_a_table_must_make_sense(tmp_path: Path) -> None:
    def complaint(header: str, *rows: str, fill: str = "{0}.jpg,0.{0},1,train") -> str:
        lines = [header, *rows, *(fill.format(index) for index in range(40 - len(rows)))]
        (tmp_path / "l.csv").write_text("\n".join(lines))
        with pytest.raises(InputError) as caught:
            read_labels(tmp_path / "l.csv")
        return str(caught.value)

    header = "path,score,weight,split"
    assert "no column `score`" in complaint("path,quality,weight,split")
    assert "line 2: the score is blank ('nan')" in complaint(header, "a.jpg,nan,1,train")
    assert "line 3: the score is blank; --skip-blank" in complaint(header, "a.jpg,1,1,train", "a.jpg,,1,train")
    assert "score runs from 0 to 4.5, outside 0 to 1; give" in complaint(header, "a.jpg,4.5,1,train")
    assert "score (not MOS: --score-column takes another) runs from 0 to 4.5" in complaint(
        "path,score,MOS,split", "a.jpg,4.5,1,train"
    )
    assert "every score is 0.5" in complaint(header, fill="{0}.jpg,0.5,1,train")
    assert "line 3: a weight of 0" in complaint(header, "a.jpg,0.5,1,train", "b.jpg,0.5,0,train")
    assert "line 2: the weight is blank" in complaint(header, "a.jpg,0.5,,train")
    assert "line 2: a split must be" in complaint(header, "a.jpg,0.5,1,other")
    assert "no rows are left to validate" in complaint(header)
    assert "line 3: the group '1' is in `train`, before it was in `val`" in complaint(
        "path,score,group,split", "a.jpg,0.5,1,val", "b.jpg,0.5,1,train"
    )
    (tmp_path / "l.csv").write_text("path,score\na.jpg,1\n")
    with pytest.raises(InputError, match="1 rows; training needs at least 32"):
        read_labels(tmp_path / "l.csv")


@pytest.mark.parametrize(("scale", "warned"), [((0, 100), True), ((1, 5), False), ((0, 15), True), ((0, 14), False)])
def test_a_scale_that_the_ratings_hardly_fill_is_doubted(
    tmp_path: Path, scale: tuple[float, float], warned: bool
) -> None:
    rows = [f"{index}.jpg,{1.2 + index * 0.1:.1f}" for index in range(38)]
    (tmp_path / "l.csv").write_text("\n".join(["path,score", *rows]))
    notes = "\n".join(read_labels(tmp_path / "l.csv", score_range=scale).notes)
    assert ("the ratings run from 1.2 to 4.9" in notes) == warned
    assert ("--score-range WORST BEST" in notes) == warned


def test_a_wrong_folder_is_one_error(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--images .*gone: no such folder"):
        read_labels(table, tmp_path / "gone")
    with pytest.raises(InputError, match=r"40 of 40 images cannot be read.*--images"):
        decode_images(read_labels(table, tmp_path), tmp_path)
