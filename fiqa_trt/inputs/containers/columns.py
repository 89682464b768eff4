"""The column of a table that holds images, in all the forms in which programs write it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fiqa_trt.errors import InputError, NoColumn

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of some rows.

    Attributes:
        data: the bytes of each, or null.
        paths: the path of each, or null; None where there are none.
    """

    data: pa.Array
    paths: pa.Array | None

    def __len__(self) -> int:
        return len(self.data)

    def get(self, index: int) -> tuple[bytes | None, str | None]:
        """Bytes and path of one."""
        path = None if self.paths is None else self.paths[index].as_py()
        return self.data[index].as_py(), path


@dataclasses.dataclass(frozen=True)
class ImageColumn:
    """Where the images of a table are.

    Attributes:
        steps: names from the table's column down to the images: one, or several for those within structs.
        many: whether each row holds a list of images.
    """

    steps: tuple[str, ...]
    many: bool

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """What the column holds in some rows: images, or lists of them. Checked: damaged offsets lead nowhere else."""
        import pyarrow.compute as pc

        array = batch.column(batch.schema.get_field_index(self.steps[0]))
        # With damaged offsets, reading values would end the process.
        array.validate(full=True)
        array = _plain(array)
        for name in self.steps[1:]:
            array = _plain(pc.struct_field(array, array.type.get_field_index(name)))
        return array


def images_in(array: pa.Array) -> Images:
    """Bytes and paths in an array of images, each either binary or a struct with `bytes`, and maybe `path`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = _plain(array)
    if not pa.types.is_struct(array.type):
        return Images(array, None)
    data = _plain(pc.struct_field(array, array.type.get_field_index("bytes")))
    index = array.type.get_field_index("path")
    paths = _plain(pc.struct_field(array, index)) if index >= 0 else None
    return Images(data, paths if paths is not None and _is_text(paths.type) else None)


def _plain(array: pa.Array) -> pa.Array:
    """The values themselves, without extension types, dictionaries and runs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        elif isinstance(array, pa.RunEndEncodedArray):
            array = pc.run_end_decode(array)
        else:
            return array


def find_column(schema: pa.Schema, column: str, path: str) -> ImageColumn:
    """Find a column with images.

    Args:
        schema: of the table.
        column: its name, or names joined by dots for a field within structs; a name that has dots itself comes first.
        path: of the table, for messages.

    Raises:
        NoColumn: there is none of that name.
        InputError: there are several, or what it holds are no images.
    """
    import pyarrow as pa

    found = _descend(pa.struct(list(schema)), column)
    if found is None:
        names = ", ".join(schema.names) or "none"
        raise NoColumn(
            f"{path} has no column `{column}`, only: {names}; name one by --image-column or in the path, as "
            "::COLUMN::17 (a list goes to --list)"
        )
    steps, kind = found
    if kind is None:
        raise InputError(f"{path} has more than one column `{column}`: rename one, or choose another by --image-column")
    if _holds_images(kind):
        return ImageColumn(steps, many=False)
    element = _element(kind)
    if element is not None and _holds_images(element):
        return ImageColumn(steps, many=True)
    raise InputError(f"{path}: the column `{column}` holds {_short(kind)}, not the bytes of images{_way_out(kind)}")


def _descend(kind: pa.DataType, column: str) -> tuple[tuple[str, ...], pa.DataType | None] | None:
    """Names and type of a field within a struct; without the type if there are several, None if there is none."""
    names = [kind.field(index).name for index in range(kind.num_fields)]
    parts = column.split(".")
    for cut in range(len(parts), 0, -1):
        name, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
        if names.count(name) > 1:
            return (name,), None
        if name not in names:
            continue
        inner = kind.field(name).type
        if not rest:
            return (name,), inner
        found = _descend(_storage(inner), rest) if _is_struct(_storage(inner)) else None
        if found is not None:
            return (name, *found[0]), found[1]
    return None


def _storage(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind, types = _storage(kind), pa.types
    if types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        images = _storage(kind.field("bytes").type)
        # Where every image is a path, pyarrow gives the bytes no type.
        return _is_binary(images) or (types.is_null(images) and kind.get_field_index("path") >= 0)
    return _is_binary(kind)


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _element(kind: pa.DataType) -> pa.DataType | None:
    """Type of what a list holds; None for what is no list."""
    import pyarrow as pa

    kind, types = _storage(kind), pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return kind.value_type if any(test(kind) for test in tests) else None


def _way_out(kind: pa.DataType) -> str:
    """What to do about a column without images."""
    import pyarrow as pa

    innermost, depth = kind, 0
    while (element := _element(innermost)) is not None:
        innermost, depth = element, depth + 1
    innermost = _storage(innermost)
    if _is_text(innermost):
        return ": text; base64 has to be stored decoded, as binary; a table of paths goes to --list"
    if depth and (pa.types.is_integer(innermost) or pa.types.is_floating(innermost)):
        return ": raw arrays of numbers; store each image encoded, as the bytes of a PNG or JPEG file"
    return "; see --image-column"


def _short(kind: pa.DataType) -> str:
    text = " ".join(str(kind).split())
    return text if len(text) <= 100 else f"{text[:99]}…"
