"""Random histories of all operations, told to the mount and to the machine's own filesystem alike.

After every step both must have answered the same and look the same; again after restarts and
kills. What a kill leaves is a state that the mount was in since it was last synced: a prefix of
the history.
"""

import itertools
import os
import random
import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.mount.posix import needs_root
from tests.mount.world import OPERATIONS, World

pytestmark = needs_root
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def no_umask():
    """With default ACLs the umask counts on this mount, and should not."""
    before = os.umask(0)
    yield
    os.umask(before)


steps = st.sampled_from(sorted(OPERATIONS)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*map(st.sampled_from, OPERATIONS[name])))
)


def short(seen):
    """A tree as shown in failures: contents by their length and beginning."""
    return {
        name: tuple(v[:20] + b"... %d" % len(v) if isinstance(v, bytes) else v for v in entry)
        for name, entry in seen.items()
    }


# What histories begin with: in an empty tree most steps would find nothing.
BEGINNING = (
    ("mkdir", ("d", 0o755)),
    ("mkdir", ("e", 0o2755)),
    ("mkdir", ("d/f", 0o1777)),
    ("create", ("x", 0o644)),
    ("create", ("d/x", 0o4755)),
    ("create", ("d/f/x", 0o600)),
    ("write", ("x", 0, 70_000, 1)),
    ("write", ("d/x", (4 << 20) - 5, 10_000, 2)),
    ("link", ("d/f/x", "e/x")),
    ("symlink", ("../x", "d/f/y")),
    ("open", (0, "x", os.O_RDWR)),
    ("open", (1, "d/x", os.O_RDWR)),
)


class Pair:
    """The same tree on both filesystems."""

    def __init__(self, daemon, machine):
        number = next(_numbers)
        self.daemon = daemon
        self.mount, self.reference = (World(f / f"h{number}") for f in (daemon.mount, machine))
        for world in (self.mount, self.reference):
            world.root.mkdir()
        for operation, arguments in BEGINNING:
            self.apply(operation, arguments)

    def apply(self, operation, arguments):
        """One step on both sides."""
        wanted = self.reference.apply(operation, arguments)
        found = self.mount.apply(operation, arguments)
        assert found == wanted, (operation, arguments)

    def compare(self):
        """Both look the same."""
        found, wanted = self.mount.seen(), self.reference.seen()
        assert found == wanted, (short(found), short(wanted))

    def close(self):
        """Close all handles on both sides."""
        for world in (self.mount, self.reference):
            world.close_all()

    def remove(self):
        """The end of this pair."""
        self.close()
        for world in (self.mount, self.reference):
            shutil.rmtree(world.root)


def machine_of(daemon, machine):
    """The Hypothesis state machine for one daemon and one reference folder."""
    endings = itertools.cycle((daemon.restart, daemon.crash))

    class Histories(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.pair = Pair(daemon, machine)

        @rule(step=steps)
        def step(self, step):
            self.pair.apply(*step)

        @rule()
        def flush(self):
            daemon.flush()

        @invariant()
        def looks_the_same(self):
            self.pair.compare()

        def teardown(self):
            try:
                self.pair.close()
                daemon.flush()
                next(endings)()
                self.pair.compare()
                daemon.check_clean()
            finally:
                self.pair.remove()

    return Histories


def tell(daemon, machine, *, examples: int, length: int) -> None:
    """Run so many histories of such a length."""
    run_state_machine_as_test(
        machine_of(daemon, machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    daemon.expect_quiet("clearing a dead mount")


def test_histories_are_the_same_on_both_filesystems(own, machine):
    tell(own, machine, examples=12, length=40)


@pytest.mark.soak
def test_many_histories_are_the_same_on_both_filesystems(own, machine):
    tell(own, machine, examples=1_000, length=100)


def tell_one(daemon, machine, seed: int, length: int) -> None:
    """One long history, with restarts and kills in between; what is missing is made again now and
    then.
    """
    rng = random.Random(seed)
    pair = Pair(daemon, machine)
    for number in range(1, length + 1):
        operation = rng.choice(sorted(OPERATIONS))
        pair.apply(operation, tuple(rng.choice(choices) for choices in OPERATIONS[operation]))
        pair.compare()
        if number % 20 == 0:
            for step in BEGINNING:
                pair.apply(*step)
        if number % 200 == 0:
            pair.close()
            daemon.flush()
            rng.choice((daemon.restart, daemon.crash))()
            pair.compare()
            daemon.check_clean()
    pair.remove()
    daemon.check_clean()
    daemon.expect_quiet("clearing a dead mount")


@pytest.mark.parametrize("seed", range(2))
def test_long_histories_are_the_same_on_both_filesystems(own, machine, seed):
    tell_one(own, machine, seed, 600)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 120))
def test_very_long_histories_are_the_same_on_both_filesystems(own, machine, seed):
    tell_one(own, machine, seed, 10_000)


# --- kills at any time ---------------------------------------------------------------------------

# Steps that are one request of the kernel each: only then is every state between two steps a
# prefix.
ATOMIC = (
    "create", "mkdir", "mkfifo", "symlink", "link", "unlink", "rmdir", "rename", "chmod", "chown",
    "truncate", "write", "append", "set_attribute", "remove_attribute",
)  # fmt: skip


def without_times(seen):
    """Times of written files arrive in a request of their own."""
    return {name: (*entry[:4], *entry[5:]) for name, entry in seen.items()}


def tell_and_kill(daemon, seed: int, rounds: int) -> None:
    """Kill at a random step, again and again: what is there is a state since the last sync."""
    rng = random.Random(seed)
    world = World(daemon.mount / f"k{seed}")
    world.root.mkdir()
    for step in BEGINNING[:-2]:
        world.apply(*step)
    world.chmod("d/x", 0o755)
    daemon.flush()
    for _ in range(rounds):
        states = [without_times(world.seen())]
        for _ in range(rng.randrange(1, 60)):
            operation = rng.choice(ATOMIC)
            arguments = tuple(rng.choice(choices) for choices in OPERATIONS[operation])
            if operation in ("create", "mkdir", "mkfifo", "chmod"):
                arguments = (*arguments[:-1], arguments[-1] & 0o777)  # no bits that writing takes
            world.apply(operation, arguments)
            states.append(without_times(world.seen()))
            if rng.random() < 0.05:
                daemon.flush()
                states = states[-1:]
        daemon.crash()
        found = without_times(world.seen())
        assert found in states, short(found)
        daemon.check_clean()


@pytest.mark.parametrize("seed", range(4))
def test_what_a_kill_leaves_is_a_prefix_of_the_history(new_daemon, seed):
    daemon = new_daemon(config="[write]\ncommit_interval_s = 0.05\n").start()
    tell_and_kill(daemon, seed, rounds=6)
    daemon.expect_quiet("clearing a dead mount")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 140))
def test_what_many_kills_leave_is_a_prefix_of_the_history(new_daemon, seed):
    daemon = new_daemon(config="[write]\ncommit_interval_s = 0.05\n").start()
    tell_and_kill(daemon, seed, rounds=30)
    daemon.expect_quiet("clearing a dead mount")
