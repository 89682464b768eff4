import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.errors import InputError
from fiqa_trt.inputs import foreign
from fiqa_trt.inputs.containers.registry import CONTAINERS as CONTAINERS_READ
from fiqa_trt.inputs.foreign import noted_as, suffix_of
from fiqa_trt.inputs.formats import SUFFIXES
from fiqa_trt.inputs.listing import LeftOut, walk
from fiqa_trt.inputs.source import Source, check_source, list_inputs

FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)
CONTAINERS = sorted({suffix for each in foreign._UNREAD for suffix in each.suffixes.split()})
IMAGES = sorted(set(foreign._IMAGES) - set(SUFFIXES))


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def put(folder: Path, *names: str, data: bytes = JPEG) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def listed(*folders: Path, **options: object) -> tuple[list[str], list[str]]:
    """Names below the first folder, and what was said."""
    said = list[str]()
    source = Source(tuple(map(str, folders)), **options)  # type: ignore[arg-type]
    paths = [path for batch in list_inputs(source, said.append) for path in batch.column(0).to_pylist()]
    return [os.path.relpath(path, folders[0]) for path in paths], said


def test_every_format_that_is_decoded_is_listed(tmp_path: Path) -> None:
    names = [f"a{suffix}" for suffix in SUFFIXES] + [f"B{suffix.upper()}" for suffix in SUFFIXES]
    put(tmp_path, *names)
    assert listed(tmp_path) == (sorted(names), [])


@pytest.mark.parametrize("suffix", [*CONTAINERS, *IMAGES])
def test_what_is_left_out_is_counted(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, f"b{suffix}", f"deep/er/c.d{suffix.upper()}", data=b"x")
    with pytest.raises(InputError) as caught:
        listed(tmp_path)
    assert f"left out: 2 {suffix}" in str(caught.value)
    put(tmp_path, "a.jpg")
    assert listed(tmp_path) == (["a.jpg"], [f"left out in {tmp_path}: 2 {suffix}"])
    assert len(listed(tmp_path, all_files=True)[0]) == 3


def test_kinds_do_not_contradict_each_other() -> None:
    every = (
        [s for each in foreign._UNREAD for s in each.suffixes.split()] + [*foreign._IMAGES] + [*foreign._WITHOUT_NOTE]
    )
    assert len(every) == len(set(every))
    assert all(suffix_of(f"a{suffix}") == suffix for suffix in every)
    assert {noted_as(f"a{suffix}") for suffix in foreign._WITHOUT_NOTE} == {""}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("train.tfrecord-00000-of-00010", ".tfrecord"),
        ("x.7z.001", ".7z"),
        ("x.TAR.GZ", ".tar.gz"),
        ("x.jpg.gz", ".gz"),
        ("x.tar", ".tar"),
        ("noext", ""),
        (".zip", ""),
    ],
)
def test_suffixes(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_companions_are_not_worth_a_line(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    put(tmp_path, "a.txt", "a.json", "a.XML", "labels.csv", "README.md", "README", "Thumbs.db", ".DS_Store", data=b"x")
    assert listed(tmp_path) == (["a.jpg"], [])


def test_files_of_unknown_names_that_begin_like_images(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg.1", "c.jpg_large", "d.jpeg.bak", "noext")
    put(tmp_path, "README", "e.unheardof", "empty", data=b"")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    names, said = listed(tmp_path)
    assert names == ["a.jpg"]
    (line,) = said
    assert line == (
        f"left out in {tmp_path}: 1 broken link (dangling), 4 other files that may be images (b.jpg.1, "
        "c.jpg_large, d.jpeg.bak, …; --all-files tries every file)"
    )


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    """Each may have been a folder of images, on a disk that is away now."""
    put(tmp_path, "a.jpg")
    for name, target in (("people", "/gone/people"), ("a.txt", "gone"), ("b.jpg", "gone"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    assert listed(tmp_path) == (["a.jpg", "b.jpg", "loop"], [f"left out in {tmp_path}: 1 broken link (people)"])


def test_names_cannot_disturb_a_terminal(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "line\nbreak\x1b[31m")
    put(tmp_path, os.fsdecode(b"caf\xe9"))
    _, (line,) = listed(tmp_path)
    assert line.isprintable()


def test_only_so_many_files_are_opened_for_their_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiqa_trt.inputs.listing._OPENED", 5)
    put(tmp_path, "a.jpg", *(f"{number:03}" for number in range(9)))
    _, (line,) = listed(tmp_path)
    assert "at least 5 other files that may be images" in line


def test_resource_forks_are_known_by_their_content(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "._image.jpg")
    put(tmp_path, "._a.jpg", "deep/._b.PNG", data=FORK)
    assert listed(tmp_path) == (
        ["._image.jpg", "a.jpg"],
        [f"left out in {tmp_path}: 2 resource forks (._a.jpg, ._b.PNG)"],
    )
    assert len(listed(tmp_path, all_files=True)[0]) == 4


def test_system_folders_are_not_entered_but_where_they_are_asked_for(tmp_path: Path) -> None:
    put(
        tmp_path, "a.jpg", ".faces/b.jpg", "@eaDir/a.jpg/THUMB.jpg", "deep/.Trash-1000/files/t.jpg", ".thumbnails/x.png"
    )
    names, said = listed(tmp_path)
    assert names == [".faces/b.jpg", "a.jpg"]
    assert said == [f"left out in {tmp_path}: 3 system folders (.thumbnails, @eaDir, .Trash-1000)"]
    assert listed(tmp_path / "@eaDir") == (["a.jpg/THUMB.jpg"], [])
    assert len(listed(tmp_path, all_files=True)[0]) == 5


def test_folders_with_nothing_else_say_what_to_do(tmp_path: Path) -> None:
    put(tmp_path, "lmdb/data.mdb", "lmdb/lock.mdb", "mixed/a.heic", "mixed/b.tar.gz", "mixed/c.tar.gz", data=b"x")
    (tmp_path / "zarr" / "images").mkdir(parents=True)
    put(tmp_path, "zarr/images/.zarray", "zarr/images/0.0.0.0", data=b"{}")
    for folder, said in (
        ("lmdb", "1 .mdb; .mdb is an LMDB database, which is not read: write its images"),
        (
            "mixed",
            "2 .tar.gz, 1 .heic; .tar.gz is compressed, so its members cannot be found: unpack it to a plain .tar",
        ),
        ("zarr", "1 .zarr; .zarr is a Zarr store"),
    ):
        with pytest.raises(InputError) as caught:
            listed(tmp_path / folder)
        assert str(caught.value).startswith(f"no images in {tmp_path / folder}; left out: {said}")
        assert "\n" not in str(caught.value)
    put(tmp_path, "full/a.jpg")
    assert listed(tmp_path / "full", tmp_path / "mixed")[1] == [
        f"no images in {tmp_path / 'mixed'}; left out: 2 .tar.gz, 1 .heic"
    ]


def test_tables_of_a_folder_without_the_column_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [JPEG, JPEG]}), tmp_path / "data.parquet")
    pq.write_table(pa.table({"indices": [1]}), tmp_path / "cache-1.parquet")
    pq.write_table(pa.table({"image": [0.5]}), tmp_path / "cache-2.parquet")
    names, (line,) = listed(tmp_path, image_column="image")
    assert names == ["data.parquet::0", "data.parquet::1"]
    assert line.startswith(
        f"left out in {tmp_path}: 2 tables ({tmp_path}/cache-1.parquet has no column `image`, only: indices"
    )
    assert listed(tmp_path, tmp_path, image_column="image")[1] == [line, line]
    (tmp_path / "data.parquet").unlink()
    with pytest.raises(InputError, match=r"no images in .*2 tables .* has no column `image`, only: indices"):
        listed(tmp_path, image_column="image")
    with pytest.raises(InputError, match=r"2 tables \(--image-column scores the images in them\)"):
        listed(tmp_path)
    with pytest.raises(InputError, match="has no column `image`"):
        listed(tmp_path / "cache-1.parquet")


def test_images_of_other_formats_in_a_tar_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.heic", "c.heic", "a.npy", "a.json")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("a.jpg", "b.heic", "c.heic", "a.npy", "a.json"):
            archive.add(tmp_path / name, name)
    said = list[str]()
    found = list(list_inputs(Source((str(tmp_path / "s.tar"),)), said.append))
    assert found[0].column(0).to_pylist() == [f"{tmp_path}/s.tar::a.jpg"]
    assert said == [f"left out in {tmp_path}/s.tar: 2 .heic"]


def test_a_tar_is_searched_by_the_rules_for_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "p/noext", "p/c.img", "__MACOSX/p/a.jpg", "__MACOSX/b.jpg", "p/@eaDir/t.jpg", "._image.jpg")
    put(tmp_path, "._a.jpg", "p/._a.jpg", data=FORK)
    put(tmp_path, "in.tar", "in.tar.gz", "t.parquet", "a.zip", "a.npy", "a.txt", "unheardof", data=b"x")
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in (*names, "a.jpg"):
            archive.add(tmp_path / name, name)
    said, shard = list[str](), f"{tmp_path}/s.tar"
    found = list(list_inputs(Source((shard,)), said.append))
    assert found[0].column(0).to_pylist() == [f"{shard}::{name}" for name in ("._image.jpg", "a.jpg", "a.jpg::2")]
    assert said == [
        f"left out in {shard}: 1 .zip, 1 .tar, 1 .tar.gz, 1 .parquet, 2 resource forks (._a.jpg, …), 2 system folders "
        "(__MACOSX, @eaDir), 2 other files that may be images (c.img, noext; --all-files tries every file)"
    ]
    every = list(list_inputs(Source((shard,), all_files=True), said.append))
    assert (sum(batch.num_rows for batch in every), len(said)) == (len(names) + 1, 1)
    with tarfile.open(tmp_path / "outer.tar", "w") as archive:
        archive.add(tmp_path / "in.tar", "in.tar")
    with pytest.raises(InputError, match=r"left out: 1 \.tar; a \.tar within a \.tar is not read: unpack it first"):
        list(list_inputs(Source((f"{tmp_path}/outer.tar",))))


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_containers_given_by_name_are_refused_at_once(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"faces{suffix}"
    file.write_bytes(b"x")
    for call in (
        lambda: check_source(Source((str(tmp_path), str(file))), tmp_path / "o.parquet"),
        lambda: list(list_inputs(Source((str(file),)))),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(f"{file} is ")
        assert ": " in str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    file.mkdir()
    put(file, "a.jpg")
    check_source(Source((str(file),)), tmp_path / "o.parquet")
    assert listed(file)[0] == ["a.jpg"]


befores = st.sampled_from(["", "._", "x"])
suffixes = st.sampled_from([*SUFFIXES, *IMAGES, *CONTAINERS, ".txt", ".json", "", ".unheardof", ".jpg_large"])
contents = st.sampled_from([JPEG, FORK, b"text", b""])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(befores, suffixes, contents), max_size=12))
def test_every_file_that_is_an_image_is_listed_or_counted(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    counts: dict[str, int] = {}
    taken = list[str]()
    for number, (before, suffix, content) in enumerate(files):
        name = f"{before}{number}{suffix}"
        put(folder, name, data=content)
        if suffix in SUFFIXES:
            if before == "._" and content == FORK:
                counts["resource fork"] = counts.get("resource fork", 0) + 1
            else:
                taken.append(name)
        elif suffix in (*IMAGES, *CONTAINERS):
            counts[suffix] = counts.get(suffix, 0) + 1
        elif suffix not in (".txt", ".json") and content == JPEG:
            counts["other file"] = counts.get("other file", 0) + 1
    left_out = LeftOut()
    assert sorted(map(os.path.basename, walk(str(folder), left_out=left_out))) == sorted(taken)
    said = str(left_out)
    assert bool(left_out) == bool(counts)
    if sum(what.startswith(".") for what in counts) <= 8:  # of more kinds only the most frequent are named
        assert all(f"{count} {what}" in said for what, count in counts.items())


def test_nothing_is_read_and_left_out_at_once() -> None:
    """A container that comes to be read leaves the list of those that are not by itself."""
    assert not set(CONTAINERS_READ) & foreign._BY_SUFFIX.keys()
    for suffix in CONTAINERS_READ:
        assert foreign.unread_with(suffix) is None
