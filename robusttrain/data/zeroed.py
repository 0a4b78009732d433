"""JPEG files of which a part was overwritten with zeros, as a copy that was broken off, or a sector
that was lost, leaves them.

Pillow refuses what ends too early, also where zeros follow to the file's old length. Zeros before
an end that is there decode without an error, into patterns and grey. Huffman codes that are zeros
throughout mean something in every JPEG. In a scan whose code of zeros is a coefficient, as in the
tables of the standard (ITU T.81, annex K.3), it is a coefficient of -1, and `RUN` bytes of them
more than two blocks of 63 such coefficients each, which no picture has. Where that code ends a
block, flat pictures are full of zeros, and nothing can be told; nor of progressive files.
"""

from __future__ import annotations

import re

#: Bytes of zeros that no picture leaves.
RUN = 64
#: Markers: sequential frames, all other frames, tables of codes, a scan.
_SEQUENTIAL, _TABLES, _SCAN = (0xC0, 0xC1), 0xC4, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {*_SEQUENTIAL, _TABLES, 0xC8, 0xCC}
#: What ends a scan: a marker that is neither a stuffed byte nor a restart.
_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ZEROS = re.compile(rb"\x00{%d,}" % RUN)


def zeroed(content: bytes) -> int:
    """How many bytes of zeros, at least `RUN`, a JPEG file holds in place of a part of its pixels;
    0 where there are none, or where nothing can be told.
    """
    if bytes(RUN) not in content:
        return 0
    at, first = 2, dict[int, int]()  # by AC table, the symbol whose code is zeros
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        body = content[at + 4 : end]
        if marker in _FRAMES:
            return 0
        if marker == _TABLES:
            first |= _first_symbols(body)
        if marker == _SCAN:
            after = _END.search(content, end)
            stop = after.start() if after else len(content)
            found = _ZEROS.search(content, end, stop)
            if found and any(first.get(table, 0) & 15 for table in _tables_of(body)):
                return found.end() - found.start()
            end = stop
        at = end
    return 0


def _first_symbols(body: bytes) -> dict[int, int]:
    """Of each AC table in a segment, by its number, the symbol of the first code: run of zeros and
    size of a coefficient, 4 bits each; size 0 is no coefficient.
    """
    found: dict[int, int] = {}
    while len(body) > 17:
        kind, number, count = body[0] >> 4, body[0] & 15, sum(body[1:17])
        if kind == 1:
            found[number] = body[17]
        body = body[17 + count :]
    return found


def _tables_of(body: bytes) -> list[int]:
    """The AC tables that the components of a scan use; none where it is too short to say."""
    count = body[0] if body else 0
    return [body[2 + 2 * each] & 15 for each in range(count)] if len(body) > 2 * count else []
