"""Reading the header of a GGUF file, with checks of all sizes in it against the length of the file.

A bad file could make a reader that trusts its counts, lengths and offsets fill the memory or read the bytes of another
tensor. In a file that this reader accepts, each tensor has bytes of its own within the file.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES, MOST_TENSORS, MOST_ELEMENTS = 2**16, 2**16, 2**23
"""Limits of metadata entries, of tensors, and of elements of one array: a hundred times those of real files."""
LONGEST_ELEMENT = 2**12
"""Most bytes of a text in an array. Tokens have up to 300, and rebuilding merges takes quadratic time in the length."""
KEPT_ELEMENTS = 2**12
"""Most elements of a numeric array whose values are kept, such as one number per layer."""
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of values of fixed size for `struct`, by type."""
TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 15: ("Q8_K", 256, 292), 41: ("Q1_0", 128, 18)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82)},
    **{23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66)},
    **{39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36)},
}
"""Name, elements per block, and bytes per block, by the type of a tensor."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that are not quantised."""


@dataclass(frozen=True)
class Tensor:
    """A tensor. `shape` has the fastest dimension first; its bytes are at `begin` to `end` in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The metadata and the list of tensors of a GGUF file.

    `values` has texts and numbers, and numeric arrays of at most KEPT_ELEMENTS as tuples. `lengths` has the number of
    elements of every array.
    """

    architecture: str
    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]

    def of_model(self, key: str, default: Any = None) -> Any:
        """Return the value of a `key` of the architecture, such as block_count."""
        return self.values.get(f"{self.architecture}.{key}", default)

    @property
    def numbers(self) -> int:
        """Number of elements of all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def types(self) -> tuple[str, ...]:
        """Types of the tensors, the one with the most elements first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.type] += prod(tensor.shape)
        return tuple(name for name, _ in counts.most_common())

    @property
    def in_words(self) -> str:
        """Types of the tensors in words, such as "Q4_1 (some tensors Q8_0, F32)"."""
        first, *others = self.types
        return first + (f" (some tensors {', '.join(others)})" if others else "")


def read_header(file: Path, name: str) -> Header:
    """Return the header of `file`, which errors call `name`, such as "model.path='x.gguf'".

    Raises ModelError if the file is cut off or damaged, is a part of a split file, or claims sizes that it does not
    have.
    """
    try:
        with file.open("rb") as opened:
            if file.stat().st_size < 24:
                raise _BadError("it is too short")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _read(_Cursor(content))
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror or error}; make it readable") from None
    except _BadError as error:
        raise ModelError(f"{name} is no GGUF file that can be used: {error}; copy or download it again") from None
    if (parts := header.values.get("split.count", 0)) and parts != 1:
        raise ModelError(
            f"{name} is one of {parts} parts of a model; join them with llama-gguf-split --merge, and give the result"
        )
    return header


class _BadError(ValueError):
    """A problem of a file."""


class _Cursor:
    """A position in the file. It refuses to read past the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.size, self.at = content, len(content), 0

    def skip(self, count: int) -> int:
        """Skip `count` bytes and return the position of the first one."""
        begin = self.at
        if count > self.size - begin:
            raise _BadError(
                f"at byte {begin} it claims {count} more bytes, and it has {self.size - begin}: it is cut off"
            )
        self.at += count
        return begin

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.content, self.skip(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        begin = self.skip(length)
        try:
            return self.content[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise _BadError(f"the text at byte {begin} is not UTF-8") from None

    def skip_texts(self, count: int) -> None:
        for _ in range(count):
            length = self.number("<Q")
            begin = self.skip(length)
            if length > LONGEST_ELEMENT:
                raise _BadError(f"the element at byte {begin} of a list of texts has {length} bytes")


def _read(cursor: _Cursor) -> Header:
    if cursor.content[: cursor.skip(4) + 4] != MAGIC:
        raise _BadError(f"it begins with {cursor.content[:4]!r} in place of {MAGIC!r}")
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise _BadError(f"it is of version {version}, and versions {' and '.join(map(str, VERSIONS))} are read")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    if entries > MOST_ENTRIES or not 1 <= tensors <= MOST_TENSORS:
        raise _BadError(f"it claims {tensors} tensors and {entries} entries of metadata")
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(entries):
        key = cursor.text()
        if key in values or key in lengths:
            raise _BadError(f"it has {key!r:.100} twice")
        kind = cursor.number("<I")
        if kind == ARRAY:
            lengths[key], kept = _array(cursor, key)
            values |= {} if kept is None else {key: kept}
        elif kind == STRING:
            values[key] = cursor.text()
        elif kind in SCALARS:
            values[key] = cursor.number(SCALARS[kind])
        else:
            raise _BadError(f"{key!r:.100} has a value of the unknown type {kind}")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _BadError("it has no general.architecture")
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise _BadError(f"general.alignment={alignment!r:.100} is no power of two")
    return Header(architecture, values, lengths, tuple(_tensors(cursor, tensors, alignment)))


def _array(cursor: _Cursor, key: str) -> tuple[int, tuple[Any, ...] | None]:
    """Return the number of elements of an array, and its values if they are kept."""
    kind, count = cursor.number("<I"), cursor.number("<Q")
    if count > MOST_ELEMENTS:
        raise _BadError(f"{key!r:.100} claims {count} elements")
    if kind == STRING:
        cursor.skip_texts(count)
        return count, None
    if kind not in SCALARS:
        raise _BadError(f"{key!r:.100} has elements of the unknown type {kind}")
    begin = cursor.skip(count * struct.calcsize(SCALARS[kind]))
    if count > KEPT_ELEMENTS:
        return count, None
    return count, struct.unpack_from(f"<{count}{SCALARS[kind][1]}", cursor.content, begin)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> Iterator[Tensor]:
    """Yield the tensors, after checking that each has bytes of its own within the file."""
    found: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for _ in range(count):
        name = cursor.text()
        if name in found:
            raise _BadError(f"it has the tensor {name!r:.100} twice")
        dimensions = cursor.number("<I")
        if not 1 <= dimensions <= 4:
            raise _BadError(f"the tensor {name!r:.100} claims {dimensions} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))
        kind, offset = cursor.number("<I"), cursor.number("<Q")
        if kind not in TYPES:
            raise _BadError(f"the tensor {name!r:.100} has the unknown type {kind}")
        label, block, size = TYPES[kind]
        if not all(shape) or shape[0] % block or offset % alignment:
            raise _BadError(f"the tensor {name!r:.100} of type {label} has the shape {shape} and the offset {offset}")
        found[name] = shape, label, offset, prod(shape) // block * size
    start = -(-cursor.at // alignment) * alignment
    free = 0
    for name, (_, label, offset, size) in sorted(found.items(), key=lambda entry: entry[1][2]):
        if start + offset + size > cursor.size:
            raise _BadError(
                f"the tensor {name!r:.100} of type {label} ends at byte {start + offset + size}, and the file at "
                f"byte {cursor.size}: it is cut off"
            )
        if offset < free:
            raise _BadError(f"the tensor {name!r:.100} shares bytes with another one")
        free = offset + size
    for name, (shape, label, offset, size) in found.items():
        yield Tensor(name, shape, label, start + offset, start + offset + size)
