"""Reading a source: whatever is asked for comes, and of a file with holes nothing else is read."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.ranges import Ranges
from syncer.transfer_content import source_content
from syncer.tree import Node, NodeKind

BLOCK = 1 << 20
SIZE = 3 * BLOCK + 12_345
CONTENT = random.Random(1).randbytes(SIZE)


class Source:
    """A file that notes what of it is read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    async def read(self, path, node, offset, length):
        self.read_bytes += length
        return CONTENT[offset : offset + length]


@st.composite
def runs(draw):
    borders = sorted(draw(st.sets(st.integers(0, SIZE), max_size=12)))
    return [(a, b - a) for a, b in zip(borders[::2], borders[1::2], strict=False)]


@given(runs(), st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 2 * BLOCK)), max_size=6))
@settings(max_examples=60, deadline=None)
async def test_any_read_of_a_file_with_holes_gives_its_bytes(found, asked):
    source, node = Source(), Node(b"f", NodeKind.FILE, SIZE)
    ranges = Ranges()
    for run in found:
        ranges.add(*run)
    async with source_content(source, b"f", node, ahead=2, ranges=ranges) as content:
        for offset, wanted in asked:
            length = min(wanted, SIZE - offset)
            assert await content.read(offset, length) == CONTENT[offset : offset + length]


async def test_far_apart_runs_are_read_and_nothing_between_them():
    source, node = Source(), Node(b"f", NodeKind.FILE, SIZE)
    ranges = [(5_000, 100), (BLOCK - 10, 20), (3 * BLOCK, 50)]
    async with source_content(source, b"f", node, ahead=3, ranges=ranges) as content:
        for offset, length in ranges:
            assert await content.read(offset, length) == CONTENT[offset : offset + length]
    assert source.read_bytes == (BLOCK - 5_000) + 10 + 50
    assert content.bytes_read == source.read_bytes
