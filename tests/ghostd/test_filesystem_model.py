"""The filesystem against the model of POSIX, on a real folder, step by step.

Unlike the crash tests it runs as the daemon does on a real disk: a second database connection for
reading, WAL with shared memory. A failure comes shrunk to the fewest steps.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockstore.disk import OsDisk
from ghostd.filesystem import AttributeChanges
from tests.ghostd.history import Driver, Op, Reenters, burst, differences, propose, seen
from tests.ghostd.model import Model
from tests.ghostd.world import ROOT, Clock, World, recover, run

pytestmark = pytest.mark.usefixtures("small_scale")

RANDOMS = st.randoms(use_true_random=False)


class FilesystemMachine(RuleBasedStateMachine):
    """One state folder, one model, and the lives of the filesystem."""

    @initialize(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3]))
    def start(self, seed: int, share: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ghostfs-model-"))
        self.clock = Clock()
        self.share = share
        self.seed = seed
        self._open()
        model = Model(0)
        root = self.world.tree.inode(1)
        model.nodes[1].atime, model.nodes[1].mtime = root.atime_ns, root.mtime_ns
        model.nodes[1].ctime = root.ctime_ns
        self.driver = Driver(model, self.clock)
        self._attach()

    def _open(self) -> None:
        self.threads = Reenters(self.seed, self.share, overlap=True)
        self.world = World(
            OsDisk(),
            self.folder,
            clock=self.clock,
            threads=self.threads,
            inodes_max=40,
            segments_max=2,
        )

    def _attach(self) -> None:
        self.driver.restart()
        self.driver.attach(self.world)
        self.threads.driver = self.driver

    def _do(self, step: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self.world.running():
                await step()

        run(main, self.seed)

    # --- what users do -------------------------------------------------------------------------

    @rule(rng=RANDOMS, count=st.integers(1, 6))
    def act(self, rng: random.Random, count: int) -> None:
        async def step() -> None:
            for _ in range(count):
                await self.driver.apply(propose(rng, self.driver.model))

        self._do(step)

    @rule(rng=RANDOMS)
    def work_on_one_file(self, rng: random.Random) -> None:
        self._do(lambda: burst(self.driver, rng))

    @rule(rng=RANDOMS)
    def many_names(self, rng: random.Random) -> None:
        """More than the cache of inodes holds."""

        async def step() -> None:
            parent = self.driver.model.next_node
            name = b"many-%d" % parent
            await self.driver.apply(Op("create", (1, name, 0o40755, ROOT, 0, None)))
            for number in range(rng.randint(1, 50)):
                if not self.driver.model.nodes[parent].nlink:
                    return
                name = b"%d" % number
                await self.driver.apply(Op("create", (parent, name, 0o100644, ROOT, 0, None)))

        self._do(step)

    @rule(size=st.sampled_from([0, 10_000, 200_000]))
    def resize_everything(self, size: int) -> None:
        async def step() -> None:
            for number, node in list(self.driver.model.nodes.items()):
                if node.mode & 0o170000 == 0o100000 and number in self.driver.model.nodes:
                    await self.driver.apply(Op("setattr", (number, AttributeChanges(size=size))))

        self._do(step)

    # --- what the daemon does ------------------------------------------------------------------

    @rule()
    def sync(self) -> None:
        self._do(self.driver.sync)

    @rule()
    def copy(self) -> None:
        self._do(self.driver.copy)

    @rule()
    def collect(self) -> None:
        self._do(self.driver.collect)

    @rule()
    def check(self) -> None:
        self._do(self.world.check)

    @rule()
    def restart(self) -> None:
        self._stop()
        self._open()
        self._attach()

    @rule()
    def lose_the_namespace_and_recover(self) -> None:
        self.threads.driver = None
        self._do(self.driver.sync)
        self._do(self.driver.copy)
        self._stop()
        self._recover()
        self._attach()

    def _recover(self) -> None:
        for path in self.folder.glob("namespace.db*"):
            path.unlink()
        recover(OsDisk(), self.folder)
        self._open()

    @rule()
    def lose_the_namespace_after_a_collection(self) -> None:
        """What the collection's own copy names was kept, whatever was done meanwhile."""
        self._do(self.driver.collect)
        promised = self.driver.copied
        self._stop()
        self._recover()
        states = self.driver.states
        found = run(lambda: seen(self.world), self.seed)
        for state in reversed(states[promised:]):
            state.restart()
            if state.image() == found:
                self.driver.model = state.clone()
                break
        else:
            raise AssertionError(differences(found, states[promised].image()))
        self._attach()

    def _stop(self) -> None:
        """A clean stop: what is open is closed, and everything is committed."""
        self.threads.driver = None

        async def step() -> None:
            for number in list(self.driver.model.handles):
                await self.driver.apply(Op("release", (number,)))
            await self.driver.sync()

        self._do(step)
        self.world.close()

    @invariant()
    def shows_what_the_model_shows(self) -> None:
        if hasattr(self, "driver"):
            self._do(self.driver.compare)

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        try:
            self._do(self.world.check)
        finally:
            self.world.close()
            shutil.rmtree(self.folder)


TestFilesystem = FilesystemMachine.TestCase
TestFilesystem.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.soak
def test_filesystem_for_longer() -> None:
    class Longer(FilesystemMachine.TestCase):  # type: ignore[name-defined,misc]
        settings = settings(
            max_examples=1_500,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

    Longer("runTest").runTest()
