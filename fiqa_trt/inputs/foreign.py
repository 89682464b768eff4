"""What files that are not scored are, by their names: other containers, images of other formats, or nothing of note."""

from __future__ import annotations

import dataclasses
import os
import re

from fiqa_trt.inputs.containers.registry import CONTAINERS


@dataclasses.dataclass(frozen=True)
class Unread:
    """A kind of file that may hold images, and that is not read.

    Attributes:
        what: it is, after "is".
        way_out: what one does with it.
        suffixes: of its files, divided by spaces.
    """

    what: str
    way_out: str
    suffixes: str


_EXPORT = "write its images to a folder, a .tar or a .parquet first"
_PACKED = ".gz .bz2 .xz .zst .lz4 .lz .lzma .br .z"
_TARS = ".tgz .tbz .tbz2 .txz .tzst .tlz .taz " + " ".join(f".tar{suffix}" for suffix in _PACKED.split())
_UNREAD = (
    Unread("compressed, so its members cannot be found", "unpack it to a plain .tar first", _TARS),
    Unread("compressed", "unpack it first", _PACKED),
    Unread(
        "an archive that is not read",
        "unpack it and give the folder",
        ".zipx .7z .rar .cab .cpio .lzh .cbz .cbr .jar",
    ),
    Unread("a disk image", "mount it and give the folder", ".iso .squashfs .sqsh .dmg .vhd .vhdx .qcow2"),
    Unread("an HDF5 file, which is not read", _EXPORT, ".h5 .hdf5 .hdf .he5"),
    Unread("a RecordIO file, which is not read", _EXPORT, ".rec .recordio"),
    Unread("an LMDB database, which is not read", _EXPORT, ".mdb .lmdb"),
    Unread("a SQLite database, which is not read", _EXPORT, ".sqlite .sqlite3 .db3"),
    Unread("a TFRecord file, which is not read", _EXPORT, ".tfrecord .tfrecords .tfrec"),
    Unread("a Zarr store, which is not read", _EXPORT, ".zarr"),
    Unread("a Lance data set, which is not read", _EXPORT, ".lance"),
    Unread("a shard that is not read", _EXPORT, ".beton .mds .msgpack .avro .orc"),
    Unread("a file of arrays, not of images", _EXPORT, ".npz .npy"),
    Unread("a file of Python objects, which is never opened", _EXPORT, ".pkl .pickle .pt .pth"),
    Unread("not named as a table", "if it is Parquet, name it .parquet", ".pq .parq"),
    Unread("not named as a table", "if it is Arrow IPC (Feather 2), name it .arrow", ".feather .ipc .arrows"),
    Unread("a video", "write its frames to a folder first", ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp"),
)
_IMAGE_SUFFIXES = """
    .heic .heif .heics .hif .avci .jxl .jxr .wdp .hdp .jls .jph .jhc .bpg .flif .mpo .qoi .exr .hdr .pfm .pam .tga .pcx
    .cr2 .cr3 .crw .nef .nrw .dng .arw .srf .sr2 .rw2 .orf .raf .pef .srw .x3f .raw .3fr .mrw .kdc .dcr .erf .iiq .rwl
    .psd .psb .xcf .kra .ora .ai .eps .svg .svgz .wmf .emf .sgi .ras .xbm .xpm .ico .icns .cur .dds .ktx .mng .miff
    .pict .djvu .fits .dcm .dicom .nii .nrrd
"""
_COMPANIONS = """
    .txt .json .jsonl .ndjson .xml .csv .tsv .xlsx .xls .ods .md .rst .html .htm .css .js .yaml .yml .toml .ini .cfg
    .conf .log .py .pyc .sh .bat .m .ipynb .pdf .doc .docx .db .xmp .aae .thm .cls .caption .pts .lab .bbox .mat .idx
    .lst .index .lock .md5 .sha1 .sha256 .crc .url .lnk .desktop .wav .mp3 .flac .srt .vtt .obj .ply .mtl .safetensors
    .onnx .so .c .h .cpp
"""
_SYSTEM_FOLDERS = """
    @eadir @recycle #recycle #snapshot .@__thumb .snapshot .snapshots .zfs lost+found __macosx .appledouble
    .git .svn .hg .spotlight-v100 .fseventsd .trash .trashes .thumbnails .ipynb_checkpoints $recycle.bin
"""
# Whatever has come to be read since is no longer among them.
_BY_SUFFIX = {suffix: kind for kind in _UNREAD for suffix in kind.suffixes.split() if suffix not in CONTAINERS}
_IMAGES = frozenset(_IMAGE_SUFFIXES.split())
_COUNTED = frozenset((*_BY_SUFFIX, *_IMAGES))
INSIDE = frozenset(CONTAINERS)
_FEATURES = frozenset([".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".msgpack"])
_WITHOUT_NOTE = frozenset(_COMPANIONS.split())
_WHOLE_NAMES = {"zarr.json": ".zarr", ".zarray": ".zarr", "lock.mdb": "", ".DS_Store": ""}
_SYSTEM = frozenset((*_SYSTEM_FOLDERS.split(), "system volume information"))
_VOLUME = re.compile(r"(-\d+-of-\d+|\.\d{2,3})$")


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, dot included, empty where it has none; that of a compressed tar is
    double, and the numbers of a volume (`x.tfrecord-00000-of-00010`, `x.7z.001`) do not count.
    """
    stem, suffix = os.path.splitext(_VOLUME.sub("", name.lower()))
    return f".tar{suffix}" if stem.endswith(".tar") and f".tar{suffix}" in _BY_SUFFIX else suffix


def unread_with(suffix: str) -> Unread | None:
    """The kind that is not read whose files have this suffix."""
    return _BY_SUFFIX.get(suffix)


def noted_as(name: str) -> str | None:
    """The suffix under which a file that is not scored is counted; empty for what is not worth a word (labels, texts);
    None where the name does not tell.
    """
    known = _WHOLE_NAMES.get(name)
    if known is not None:
        return known
    if name[name.rfind(".") :].lower() in _WITHOUT_NOTE:  # most of what lies beside images
        return ""
    suffix = suffix_of(name)
    if suffix in _COUNTED:
        return suffix
    return "" if suffix in _WITHOUT_NOTE else None


def noted_inside(name: str) -> str | None:
    """The same of a member of a tar, where arrays belong to the samples, and no shard is read."""
    suffix = suffix_of(name)
    return suffix if suffix in INSIDE else "" if suffix in _FEATURES else noted_as(name)


def is_system_folder(name: str) -> bool:
    """Whether a folder is where a system keeps trash, thumbnails or snapshots: nothing of the data set, or again what
    is in it.
    """
    name = name.lower()
    return name in _SYSTEM or name.startswith(".trash-")
