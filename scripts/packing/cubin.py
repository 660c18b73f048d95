"""A cubin without what only debuggers and profilers read: source lines and the PTX's text, most of its bytes."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
LINES = (".debug_line", ".debug_str", ".nv_debug_line_sass", ".nv_debug_ptx_txt")
MERCURY = ".nv.merc"  # before the names of the second form of a kernel that cubins from sm_100 on have
OF_LINES = tuple(f"{kind}{name}" for kind in (".rel", ".rela") for name in LINES)  # their relocations


def without_lines(image: bytes) -> bytes:
    """The cubin with empty line tables, which is as long as before, but compresses to a third.

    Nothing moves and no index changes: the sections of lines and their relocations keep their place and get size 0, and
    their bytes become 0. What a driver loads, code, constants, attributes and symbols, stays as ptxas wrote it. The
    result names no path of the machine that built it.

    Raises
    ------
    ValueError
        If the image is no 64-bit ELF file.
    """
    if image[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: no 64-bit ELF file")
    result = bytearray(image)
    for at, name in sections(image):
        if name.removeprefix(MERCURY) in (*LINES, *OF_LINES):
            entry = list(SECTION.unpack_from(image, at))
            start, size = entry[4:6]
            result[start : start + size] = bytes(size)
            entry[5] = 0
            SECTION.pack_into(result, at, *entry)
    return bytes(result)


def sections(image: bytes) -> list[tuple[int, str]]:
    """For each section of an ELF file, where its header is and its name."""
    header = HEADER.unpack_from(image)
    table, count, of_names = header[6], header[12], header[13]
    names = SECTION.unpack_from(image, table + of_names * SECTION.size)[4]
    places = [table + i * SECTION.size for i in range(count)]
    return [(at, text(image, names + SECTION.unpack_from(image, at)[0])) for at in places]


def text(image: bytes, at: int) -> str:
    """A string of a string table."""
    return image[at : image.index(b"\0", at)].decode()
