"""Steps carried out over the Tree protocol: each for itself, again where it may help."""

import os
import random

import pytest
import trio
import trio.testing

from syncer.events import Report, Silence
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed, Full, Unreachable
from syncer.steps import Step, StepKind
from syncer.transfer import MAKING, Feed, Transfer
from syncer.transfer_content import BLOCK_BYTES, digest_of, source_content
from syncer.transfer_ledger import MemoryLedger
from syncer.transfer_local import LocalMover
from syncer.transfer_meter import Meter
from syncer.transfer_steps import Steps
from syncer.tree import Features, Metadata, Node, NodeKind


class Wrapped:
    """A tree whose calls can be made to fail: `before(name, path)` may raise."""

    def __init__(self, tree, before):
        self._tree = tree
        self._before = before

    def __getattr__(self, name):
        found = getattr(self._tree, name)
        if name in {"label", "features"}:
            return found

        async def call(*args, **kwargs):
            await self._before(name, args[0] if args else b"")
            return await found(*args, **kwargs)

        return call


class Away:
    """A destination that is away until a moment; takes files and forgets them."""

    label = "away"
    features = Features(write=True)

    def __init__(self, back_s):
        self._back_s = back_s
        self.written = set()

    async def write(self, path, content, metadata, **more):
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self._back_s:
            raise Unreachable("no answer")
        self.written.add(path)
        return Node(path, NodeKind.FILE, content.size)


class Bench:
    """Two folders, and a transfer between them."""

    def __init__(self, tmp_path):
        self.source_path = tmp_path / "source"
        self.target_path = tmp_path / "target"
        self.source_path.mkdir()
        self.target_path.mkdir()
        self.source = LocalTree(os.fsencode(self.source_path))
        self.target = LocalTree(os.fsencode(self.target_path))
        self.ledger = MemoryLedger()
        self.report = Report("copy", "", "")
        self.meter = Meter()
        self.notes = []

    def transfer(self, *, options=None, source=None, target=None, batches=False, **more):
        options = options or Options()
        steps = Steps(source or self.source, target or self.target, options)
        mover = None
        if batches:
            mover = LocalMover(self.source, self.target, options, self.meter, lambda *_: None)
        return Transfer(
            steps, self.ledger, self.report, self.meter, Silence(), parallel=2, seed=1,
            mover=mover, **{"keep": self.notes.extend} | more,
        )  # fmt: skip

    async def copy_of(self, name, **more):
        node = await self.source.stat(name)
        return Step(StepKind.COPY, name, "new", size=node.size, source_path=name, node=node, **more)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.mark.parametrize("batches", [False, True])
async def test_files_links_and_directories(bench, batches):
    content = random.Random(1).randbytes(3 * BLOCK_BYTES + 17)
    (bench.source_path / "big").write_bytes(content)
    (bench.source_path / "d").mkdir()
    (bench.source_path / "d" / "small").write_text("small")
    (bench.source_path / "link").symlink_to("d/small")
    link = await bench.source.stat(b"link")
    folder = await bench.source.stat(b"d")
    bench.ledger.add_steps(
        [
            await bench.copy_of(b"big"),
            await bench.copy_of(b"d/small"),
            Step(StepKind.SYMLINK, b"link", source_path=b"link", node=link),
            Step(StepKind.MKDIR, b"d", source_path=b"d", node=folder),
            Step(StepKind.LINK, b"twin", source_path=b"d/small"),
        ]
    )
    transfer = bench.transfer(batches=batches)
    await transfer.run(MAKING)
    await transfer.run((StepKind.LINK,))
    assert (bench.target_path / "big").read_bytes() == content
    assert (bench.target_path / "twin").read_text() == "small"
    assert (bench.target_path / "twin").stat().st_nlink == 2
    assert os.readlink(bench.target_path / "link") == "d/small"
    assert (bench.target_path / "big").stat().st_mtime_ns == (
        bench.source_path / "big"
    ).stat().st_mtime_ns
    report = bench.report
    assert (report.files_copied, report.links_made, report.directories_made) == (3, 1, 1)
    assert report.failed == 0
    assert {step.path for step, _ in bench.notes} == {b"big", b"d/small", b"link", b"d", b"twin"}


async def test_a_failing_file_fails_alone(bench):
    for name in ("a", "b", "c"):
        (bench.source_path / name).write_text(name)
    bench.ledger.add_steps([await bench.copy_of(name) for name in (b"a", b"b", b"c")])
    (bench.source_path / "b").unlink()
    await bench.transfer().run(MAKING)
    assert sorted(os.listdir(bench.target_path)) == ["a", "c"]
    assert [each.path for each in bench.report.failures] == ["b"]


async def test_fail_fast_takes_nothing_more(bench):
    for number in range(50):
        (bench.source_path / f"{number:02}").write_text("x")
    steps = [await bench.copy_of(b"%02d" % number) for number in range(50)]
    bench.ledger.add_steps(steps)
    (bench.source_path / "00").unlink()
    transfer = bench.transfer(options=Options(fail_fast=True))
    await transfer.run(MAKING)
    assert transfer.stopped
    assert bench.report.failed == 1
    assert len(os.listdir(bench.target_path)) < 49
    # What was not carried out may be taken again.
    assert len(bench.ledger.next_steps(MAKING, limit=100)) == 49 - bench.report.files_copied


async def test_a_full_destination_ends_copying_with_one_reason(bench):
    for number in range(20):
        (bench.source_path / f"{number:02}").write_text("x")
    bench.ledger.add_steps([await bench.copy_of(b"%02d" % number) for number in range(20)])
    calls = 0

    async def before(name, path):
        nonlocal calls
        await trio.lowlevel.checkpoint()
        if name == "write":
            calls += 1
            if calls > 5:
                raise Full("no space left")

    transfer = bench.transfer(target=Wrapped(bench.target, before))
    await transfer.run(MAKING)
    assert bench.report.files_copied == 5
    assert bench.report.failed == 15
    assert calls <= 7  # one for each worker that was on its way
    assert bench.report.reasons == {"the destination is full: no space left": 15}
    assert all(each.transient for each in bench.report.failures)


def _three_files():
    node = Node(b"f", NodeKind.FILE, 0)
    return [Step(StepKind.COPY, name, source_path=name, node=node) for name in (b"a", b"b", b"c")]


async def test_a_destination_that_is_away_is_waited_for(bench, autojump_clock):
    bench.ledger.add_steps(_three_files())
    target = Away(trio.current_time() + 90)
    await bench.transfer(target=target, source=target, keep=None, wait_s=120.0).run(MAKING)
    assert bench.report.failed == 0
    assert target.written == {b"a", b"b", b"c"}
    assert bench.report.retried > 3


async def test_waiting_for_a_destination_ends(bench, autojump_clock):
    bench.ledger.add_steps(_three_files())
    began_s = trio.current_time()
    target = Away(began_s + 1_000)
    await bench.transfer(target=target, source=target, keep=None, wait_s=60.0).run(MAKING)
    assert bench.report.failed == 3
    assert all(each.transient for each in bench.report.failures)
    assert trio.current_time() - began_s < 2 * (60 + 15)
    assert bench.ledger.retry_failed(attempts_max=5) == 3


async def test_a_source_that_changes_is_read_again(bench):
    (bench.source_path / "f").write_bytes(b"old" * 1000)
    bench.ledger.add_steps([await bench.copy_of(b"f")])
    changes = iter([b"newer" * 1000, b"newest"])

    async def before(name, path):
        await trio.lowlevel.checkpoint()
        if name == "read" and (content := next(changes, None)) is not None:
            (bench.source_path / "f").write_bytes(content)

    await bench.transfer(source=Wrapped(bench.source, before)).run(MAKING)
    assert bench.report.failed == 0
    assert (bench.target_path / "f").read_bytes() == b"newest"


async def test_a_source_that_always_changes_is_reported(bench):
    (bench.source_path / "f").write_bytes(b"x")
    bench.ledger.add_steps([await bench.copy_of(b"f")])
    count = 0

    async def before(name, path):
        nonlocal count
        await trio.lowlevel.checkpoint()
        if name == "read":
            count += 1
            (bench.source_path / "f").write_bytes(b"x" * (count + 2))

    await bench.transfer(source=Wrapped(bench.source, before)).run(MAKING)
    assert [each.path for each in bench.report.failures] == ["f"]
    assert os.listdir(bench.target_path) == []


async def test_what_changed_at_the_destination_is_not_overwritten(bench):
    (bench.source_path / "f").write_text("ours")
    (bench.target_path / "f").write_text("old")
    old = await bench.target.stat(b"f")
    bench.ledger.add_steps([await bench.copy_of(b"f", old=old)])
    (bench.target_path / "f").write_text("somebody's work")
    await bench.transfer().run(MAKING)
    assert (bench.target_path / "f").read_text() == "somebody's work"
    assert bench.report.failed == 1


@pytest.mark.parametrize("batches", [False, True])
async def test_what_was_done_before_a_crash_is_found(bench, batches):
    (bench.source_path / "f").write_text("ours")
    bench.ledger.add_steps([await bench.copy_of(b"f")])
    await bench.transfer(batches=batches).run(MAKING)
    again = await bench.target.stat(b"f")
    bench.ledger.add_steps([await bench.copy_of(b"f")])
    await bench.transfer(batches=batches).run(MAKING)
    assert bench.report.failed == 0
    assert await bench.target.stat(b"f") == again


async def test_verify_reads_the_destination_back(bench):
    content = random.Random(2).randbytes(2 * BLOCK_BYTES + 5)
    (bench.source_path / "f").write_bytes(content)
    bench.ledger.add_steps([await bench.copy_of(b"f")])
    spoilt = 0

    async def before(name, path):
        nonlocal spoilt
        await trio.lowlevel.checkpoint()
        if name == "read" and spoilt < 1:  # after the first writing
            spoilt += 1
            found = (bench.target_path / "f").stat()
            with (bench.target_path / "f").open("r+b") as file:
                file.seek(BLOCK_BYTES)
                file.write(b"spoilt")
            os.utime(bench.target_path / "f", ns=(found.st_atime_ns, found.st_mtime_ns))

    class Blind(Wrapped):
        """Tells no versions apart, as a remote without etags."""

        def __getattr__(self, name):
            found = super().__getattr__(name)
            if name != "read":
                return found

            async def read(path, node, offset, length):
                await before("read", path)
                now = await bench.target.stat(path)
                return await bench.target.read(path, now, offset, length)

            return read

    transfer = bench.transfer(options=Options(verify=True), target=Blind(bench.target, before))
    await transfer.run(MAKING)
    assert spoilt == 1
    assert (bench.target_path / "f").read_bytes() == content
    assert bench.report.failed == 0
    checksum = bench.notes[0][1].checksum
    assert (
        checksum.removeprefix("blake3:")
        == (await digest_of(bench.source, b"f", await bench.source.stat(b"f"), ahead=2)).hex()
    )


async def test_deletions_go_deepest_first(bench):
    (bench.target_path / "a" / "b").mkdir(parents=True)
    (bench.target_path / "a" / "b" / "f").write_text("x")
    steps = []
    for path, depth in ((b"a", 0), (b"a/b", 1), (b"a/b/f", 2)):
        old = await bench.target.stat(path)
        steps.append(Step(StepKind.DELETE, path, rank=-depth, old=old))
    bench.ledger.add_steps(steps)
    await bench.transfer().run_levels(StepKind.DELETE)
    assert os.listdir(bench.target_path) == []
    assert bench.report.deleted == 3


async def test_the_trash_keeps_what_is_in_it(bench):
    for content in ("one", "two"):
        (bench.target_path / "f").write_text(content)
        old = await bench.target.stat(b"f")
        bench.ledger.add_steps([Step(StepKind.TRASH, b"f", source_path=b".trash/f", old=old)])
        await bench.transfer().run((StepKind.TRASH,))
    kept = sorted(each.read_text() for each in (bench.target_path / ".trash").iterdir())
    assert kept == ["one", "two"]


async def test_steps_come_while_others_are_carried_out(bench):
    names = [b"%03d" % number for number in range(30)]
    for name in names:
        (bench.source_path / name.decode()).write_text("x")
    feed = Feed()

    async def plan():
        for name in names:
            bench.ledger.add_steps([await bench.copy_of(name)])
            feed.more()
        feed.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plan)
        await bench.transfer().run(MAKING, feed)
    assert sorted(os.listdir(bench.target_path)) == [name.decode() for name in names]


async def test_a_cancelled_run_gives_back_what_it_had_not_done(bench):
    for number in range(10):
        (bench.source_path / str(number)).write_text("x")
    bench.ledger.add_steps([await bench.copy_of(b"%d" % number) for number in range(10)])
    with trio.CancelScope() as scope:
        calls = 0

        async def before(name, path):
            nonlocal calls
            calls += name == "write"
            if calls == 6:
                scope.cancel()
            await trio.lowlevel.checkpoint()

        await bench.transfer(target=Wrapped(bench.target, before)).run(MAKING)
    left = bench.ledger.next_steps(MAKING, limit=100)
    done = {step.path for step, _ in bench.notes}
    assert done | {each.step.path for each in left} == {b"%d" % number for number in range(10)}
    assert not done & {each.step.path for each in left}
    assert len(left) >= 4


async def test_content_reads_ahead_and_in_any_order(bench):
    content = random.Random(3).randbytes(5 * BLOCK_BYTES + 3)
    (bench.source_path / "f").write_bytes(content)
    node = await bench.source.stat(b"f")
    asked = random.Random(4)
    async with source_content(bench.source, b"f", node, ahead=3) as read:
        for _ in range(50):
            offset = asked.randrange(len(content))
            length = asked.randrange(min(3 * BLOCK_BYTES, len(content) - offset) + 1)
            assert await read.read(offset, length) == content[offset : offset + length]


async def test_content_says_what_went_wrong_as_it_was(bench):
    (bench.source_path / "f").write_bytes(b"x" * (2 * BLOCK_BYTES))
    node = await bench.source.stat(b"f")
    (bench.source_path / "f").write_bytes(b"y")
    with pytest.raises(Changed):
        async with source_content(bench.source, b"f", node, ahead=3) as read:
            await read.read(0, BLOCK_BYTES)


def test_the_ledger_in_memory_hands_over_what_is_too_much():
    following = MemoryLedger()
    ledger = MemoryLedger(lambda: following, steps_max=10)

    class Numbered(MemoryLedger):
        pass

    ledger.add_steps(Step(StepKind.COPY, b"%02d" % n, size=n) for n in range(8))
    running = ledger.next_steps((StepKind.COPY,), limit=3)
    assert [each.step.path for each in running] == [b"00", b"01", b"02"]
    ledger.add_steps(Step(StepKind.COPY, b"%02d" % n, size=n) for n in range(8, 12))
    assert ledger.overflowed
    assert [each.step.path for each in following.next_steps((StepKind.COPY,), limit=99)] == [
        b"%02d" % n for n in range(3, 12)
    ]
    # What runs meanwhile stays here.
    ledger.give_back(each.number for each in running)
    assert len(ledger.next_steps((StepKind.COPY,), limit=99)) == 3


async def test_directories_are_made_without_metadata_of_others(bench):
    (bench.source_path / "d").mkdir(mode=0o755)
    folder = await bench.source.stat(b"d")
    bench.ledger.add_steps(
        [
            Step(StepKind.MKDIR, b"d", source_path=b"d", node=folder),
            Step(StepKind.DIRECTORY_METADATA, b"d", source_path=b"d", node=folder),
        ]
    )
    transfer = bench.transfer()
    await transfer.run(MAKING)
    assert (bench.target_path / "d").stat().st_mode & 0o777 == 0o700
    await transfer.run_levels(StepKind.DIRECTORY_METADATA)
    made = await bench.target.stat(b"d")
    assert (made.kind, made.mode, made.mtime_ns) == (
        NodeKind.DIRECTORY,
        0o755,
        folder.mtime_ns,
    )
    await bench.target.set_metadata(b"d", Metadata(mode=0o700))
