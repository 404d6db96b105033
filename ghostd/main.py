"""ghostd: mounts a GhostFS and serves it until it is stopped. The composition root."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pyfuse3
import structlog
import trio

from blockstore.disk import OsDisk
from blockstore.errors import OrbitError
from blockstore.options import FetchedOptions
from blockstore.store import BlockStore, StoreOptions
from ghostd import copies, fuse_loop
from ghostd.access_log import AccessLog
from ghostd.api import ApiServer
from ghostd.attached_paths import AttachedPaths
from ghostd.cache_keeper import PinnedBlocks, keep_cache
from ghostd.config import Config, load_config, show_config
from ghostd.configured import reconcile
from ghostd.control import DaemonControl, Pulse
from ghostd.cow_diff import Differ
from ghostd.cow_revert import Reverter
from ghostd.door_tree import DoorTree
from ghostd.facade import DaemonState
from ghostd.fetch_plan import Limits
from ghostd.filesystem import Filesystem
from ghostd.flusher import Flusher
from ghostd.fuse import Operations, supplementary_groups
from ghostd.invalidator import Invalidator
from ghostd.job_service import JobService
from ghostd.job_worker import WorkerOptions
from ghostd.keeper import SNAPSHOTS_FOLDER, Keeper
from ghostd.listings import ListingOptions
from ghostd.logs import configure_logging
from ghostd.mountpoint import MountRefused, attach, mounted_at, prepare, sync_kernel, tune, unmount
from ghostd.namespace import Namespace
from ghostd.notify import Notifier
from ghostd.projected import Projected, ProjectedOptions
from ghostd.projection_control import ProjectionControl
from ghostd.push_auto import AutoPush
from ghostd.push_release import Releaser
from ghostd.push_side import PushSide
from ghostd.push_watch import PushWatch
from ghostd.reader import Reader, ReadOptions
from ghostd.remotes import Remotes, policy_of
from ghostd.snapshot_remote import SCHEME as SNAPSHOT_SCHEME
from ghostd.snapshot_remote import SnapshotRemote, SnapshotUrl
from ghostd.snapshots import Snapshots
from ghostd.snapshots_control import SnapshotControl
from ghostd.snapshots_shown import ShownSnapshots
from ghostd.snapshots_writing import TreeTaker
from ghostd.stats_events import log_stats
from ghostd.threads import WorkerThreads
from ghostd.tree import Tree
from ghostd.trim import trim_when_quiet
from ghostd.warming import Works
from ghostd.writeback import Writeback, WritebackOptions
from orbit_socket import default_socket
from syncer.catalogue import SnapshotFolder
from syncer.remotes.errors import BadUrl
from syncer.remotes.remote import Remote

log = structlog.get_logger("ghostd")

_PR_SET_IO_FLUSHER = 57

_TICK_S = 0.25
_STATUS_S = 10.0
_PUSH_S = 10.0  # for what is still to be pushed when the daemon is stopped
_GRACE_S = 2.0  # for requests under way when a mount in use is stopped


class StateMissing(OrbitError):
    """The state folder has packs but no namespace."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ghostd", description="Mount a durable, deduplicating filesystem."
    )
    parser.add_argument("--mount", type=Path, metavar="DIR", help="an empty directory")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where everything is kept; made on first use"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML; default: $ORBIT_CONFIG, else none"
    )
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="control socket; default: $ORBIT_SOCKET or /run"
    )
    parser.add_argument(
        "--recover",
        action="store_true",
        help="bring a lost namespace.db back from its last copy in the packs, then exit",
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print the configuration in force, then exit"
    )
    parser.add_argument("--version", action="version", version=f"ghostd {version('orbit-ghostfs')}")
    found = parser.parse_args(argv)
    if not found.show_config:
        if found.state is None:
            parser.error("--state DIR is needed: the folder that keeps everything")
        if found.mount is None and not found.recover:
            parser.error("--mount DIR is needed: an empty directory to mount on")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the daemon; 0 after a clean stop, 1 after an error that is told on stderr."""
    arguments = _arguments(argv)
    try:
        config = load_config(arguments.config)
        if arguments.show_config:
            sys.stdout.write(show_config(config))
            return 0
        configure_logging(config.telemetry.level, config.telemetry.format)
        if arguments.recover:
            return _recover(arguments.state, config)
        _settle_interpreter()
        daemon = Daemon(
            arguments.mount, arguments.state, arguments.socket or default_socket(), config
        )
        trio.run(daemon.run)
    except OrbitError as error:
        sys.stderr.write(f"ghostd: {error}\n")
        return 1
    return 0


def _settle_interpreter() -> None:
    # Worker threads hold the GIL for up to this long while a request waits; 5 ms is the default.
    sys.setswitchinterval(0.0005)
    # Full collections over a large heap stop the world for tens of milliseconds and free nothing:
    # reference counts do the work here.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    os.umask(0o077)
    # Memory that we ask for must not wait for dirty pages that only we can write back (prctl(2)).
    # Root's privilege; without it the kernel's limit on dirty pages of FUSE mounts has to do.
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def _recover(state: Path, config: Config) -> int:
    disk = OsDisk()
    store = _open_store(state, config, disk)
    try:
        copy = copies.recover(state, store, disk, SnapshotFolder(state / SNAPSHOTS_FOLDER, disk))
    finally:
        store.close()
    sys.stdout.write(
        f"{state}: the namespace is back as of {copy.taken_ns // 10**9} s since 1970 "
        f"({copy.size_bytes:,} bytes); what was there is kept beside it as *.damaged-*. "
        "Start ghostd and run orbit-ctl check.\n"
    )
    return 0


def _open_store(state: Path, config: Config, disk: OsDisk) -> BlockStore:
    options = StoreOptions(
        compression=config.store.compression,  # type: ignore[arg-type]  # checked by the config
        level=config.store.level,
        pack_bytes_max=config.store.pack_bytes_max,
        cache_bytes_max=config.store.cache_bytes_max,
        fetched=FetchedOptions(
            bytes_max=config.remotes.cache_bytes_max,
            free_bytes_floor=config.remotes.cache_free_floor_bytes,
            codec=config.remotes.cache_compression,  # type: ignore[arg-type]  # likewise
        ),
    )
    return BlockStore.open(state, options, disk)


def _projected_options(config: Config) -> ProjectedOptions:
    remotes = config.remotes
    slots = max(2, remotes.connections_max)
    return ProjectedOptions(
        read_deadline_s=config.read.deadline_s,
        ahead_bytes_max=remotes.read_ahead_bytes_max,
        kernel_ahead_bytes=config.mount.read_ahead_kib << 10,
        listing=ListingOptions(remotes.listing_deadline_s, remotes.stale_wait_s),
        fetching=Limits(
            slots=slots,
            reserved_slots=max(1, slots // 4),
            request_bytes_max=remotes.request_bytes_max,
        ),
    )


class Daemon:
    """One run of ghostd."""

    def __init__(self, mount: Path, state: Path, socket: Path, config: Config) -> None:
        self._mount = mount
        self._state = state
        self._socket = socket
        self._config = config
        self._disk = OsDisk()
        self._threads = WorkerThreads()
        self._notifier = Notifier()
        self._pulse = Pulse()
        self._stop_wanted = trio.Event()

    async def run(self) -> None:
        """Mount, serve, and come back when unmounted or told to stop."""
        with ExitStack() as stack:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.callback(self._threads.close)
            self._mount = prepare(self._mount, self._state)
            self._open(stack)
            fuse_loop.install(lambda: self._threads.landed)
            self._attach()
            try:
                await self._serve()
            finally:
                await self._unmount()
            await self._finish()

    # --- opening -------------------------------------------------------------------------------

    def _open(self, stack: ExitStack) -> None:
        config = self._config
        store = self._store = _open_store(self._state, config, self._disk)
        stack.callback(store.close)
        if not Namespace.exists(self._state, self._disk) and store.stats().packs:
            raise StateMissing(
                f"{self._state} has packs but no namespace.db: it was lost or never finished. "
                f"Bring the tree back with: ghostd --recover --state {self._state}"
            )
        namespace = Namespace.open(self._state, self._disk)
        store.set_pinned(PinnedBlocks(namespace))
        # Its descriptor of the database file may be closed only after the database has been.
        keepers = stack.enter_context(ExitStack())
        stack.callback(namespace.close)
        tree = self._tree = Tree(
            namespace,
            generation=namespace.begin_generation(),
            inodes_max=config.memory.inodes_max,
            segments_max=config.memory.segments_max,
        )
        for ino in namespace.orphans():
            tree.reap(tree.inode(ino))
        writeback = self._writeback = Writeback(
            tree,
            store,
            namespace,
            self._threads,
            WritebackOptions(
                commit_interval_s=config.write.commit_interval_s,
                dirty_bytes_max=config.write.dirty_bytes_max,
                dirty_ops_max=config.write.dirty_ops_max,
                reserve_bytes=config.write.reserve_bytes,
            ),
        )
        self._invalidator = Invalidator()
        remotes = self._remotes = Remotes(
            config.remotes, config.read.deadline_s, [self._mount, self._state]
        )
        remotes.start()
        stack.callback(remotes.stop)
        log_access = None
        if config.remotes.access_log:
            access_log = AccessLog(Path(config.remotes.access_log).expanduser())
            stack.callback(access_log.close)
            log_access = access_log.add
        projected = self._projected = Projected(
            tree,
            writeback,
            store,
            self._threads,
            self._open_remote,
            self._invalidator.name,
            _projected_options(config),
            log_access=log_access,
        )
        self._works = Works(
            tree,
            writeback,
            store,
            self._threads,
            projected.listings,
            projected.fetcher,
            projected.projections.get,
        )
        self._reader = Reader(
            store,
            tree.content,
            self._threads,
            ReadOptions(config.read.read_ahead_bytes, config.read.deadline_s),
            projected.entangler,
        )
        watch = PushWatch()
        filesystem = self._filesystem = Filesystem(
            tree,
            writeback,
            self._reader,
            groups_of=supplementary_groups,
            takes_changes=projected.projections.takes_changes,
            orbit_xattr=projected.xattr,
            changed=watch.changed,
            closed=watch.closed,
        )
        paths = AttachedPaths(tree, self._threads)
        shown = self._shown = ShownSnapshots(projected, paths, self._invalidator.name)
        self._operations = Operations(
            filesystem,
            projected.listings,
            projected.files,
            attr_timeout_s=config.mount.attr_timeout_s,
            entry_timeout_s=config.mount.entry_timeout_s,
            hides=shown.hides,
        )
        self._keeper = Keeper(
            self._state,
            self._disk,
            store=store,
            namespace=namespace,
            tree=tree,
            writeback=writeback,
            threads=self._threads,
        )
        keepers.callback(self._keeper.close)
        snapshots = self._snapshots = Snapshots(
            self._keeper,
            self._keeper.records,
            TreeTaker(tree, writeback, store, namespace, self._threads),
            self._threads,
            mount=os.fsencode(self._mount),
            projected=shown.projected,
            hand_over=self._hand_over,
        )
        snapshots.changed.append(shown.changed)
        self._flusher = Flusher(self._sync_kernel, writeback.commit)
        waste_max = config.store.collect_waste_max
        self._releaser = Releaser(
            tree,
            writeback,
            store,
            self._threads,
            projected.entangler,
            projected.projections,
            watch,
            partial(self._keeper.collect, waste_max, dry_run=False),
            waste_max=waste_max,
        )
        self._jobs = JobService(
            self._state,
            self._mount,
            store,
            DoorTree(
                filesystem, projected.listings, self._invalidator, self._push_side(watch, paths)
            ),
            snapshots,
            self._threads,
            WorkerOptions(
                config.jobs.at_once,
                config.jobs.bandwidth,
                config.classes,
                config.jobs.audit_keep_days,
                config.remotes.credentials,
                policy_of(config.remotes, config.read.deadline_s),
            ),
        )
        stack.callback(self._jobs.close)
        self._keeper.holds.append(lambda: self._jobs.door.holds)
        self._auto_push = AutoPush(
            self._jobs,
            watch,
            projected.projections,
            paths,
            self._mount,
            config.remotes.push_delay_s,
        )
        self._control = DaemonControl(
            mount=self._mount,
            folder=self._state,
            keeper=self._keeper,
            reader=self._reader,
            flusher=self._flusher,
            requests=self._operations.counters,
            pulse=self._pulse,
            waste_max=waste_max,
            stop=self._stop_wanted.set,
            projections=ProjectionControl(
                projected,
                writeback,
                self._works,
                self._invalidator.name,
                self._invalidator.told,
                is_own=shown.is_shown,
                pushing=self._auto_push.state,
            ),
            snapshots=SnapshotControl(snapshots, store, self._threads, self._invalidator.told),
            jobs=self._jobs.control,
        )
        stack.callback(self._control.census.close)
        self._api = ApiServer(self._control, self._socket)
        self._api.start()
        stack.callback(self._api.stop)

    def _push_side(self, watch: PushWatch, paths: AttachedPaths) -> PushSide:
        """What a push asks of the namespace."""
        projected, tree = self._projected, self._tree
        differ = Differ(tree, self._writeback, self._threads, projected.projections.get)
        name = self._invalidator.name
        return PushSide(
            self._filesystem,
            projected.projections,
            projected.listings,
            Reverter(tree, self._writeback, projected.listings, differ, name),
            watch,
            paths,
            self._invalidator,
            pushed=self._releaser.pushed,
        )

    async def _open_remote(self, url: str, options: Mapping[str, str]) -> Remote:
        """A remote by its URL; snapshots are found here."""
        if not url.startswith(SNAPSHOT_SCHEME):
            return await self._remotes.open(url, options)
        if options:
            raise BadUrl(f"{url}: snapshots know no option {', '.join(sorted(options))}")
        parsed = SnapshotUrl.parse(url)
        return SnapshotRemote(parsed, self._snapshots, self._store, self._threads)

    def _attach(self) -> None:
        allow_other = self._config.mount.allow_other
        where = attach(self._mount, allow_other=allow_other)
        options = {"default_permissions", "fsname=orbit", "subtype=orbit"}
        if allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(self._operations, where, options)
        except RuntimeError as error:
            # libfuse has told the reason on stderr; pyfuse3 only knows that there was one.
            raise MountRefused(
                f"{self._mount} could not be mounted ({error}): is /dev/fuse there and open to "
                "you, and fuse3 installed? allow_other needs user_allow_other in /etc/fuse.conf"
            ) from error
        entry = mounted_at(self._mount)
        self._device = "" if entry is None else entry.device

    # --- serving -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._writeback.run)
            await nursery.start(self._reader.run)
            await nursery.start(self._projected.run)
            await nursery.start(self._works.run)
            nursery.start_soon(self._invalidator.run, self._projected.listings.awaited)
            nursery.start_soon(keep_cache, self._store, self._threads)
            nursery.start_soon(
                reconcile,
                self._projected.projections,
                self._filesystem,
                AttachedPaths(self._tree, self._threads),
                self._config.projections,
            )
            nursery.start_soon(self._flusher.run)
            nursery.start_soon(self._snapshots.run)
            if self._disk.exists(self._state / SNAPSHOTS_FOLDER):
                nursery.start_soon(self._shown.attach)
            nursery.start_soon(self._jobs.run)
            nursery.start_soon(self._auto_push.run)
            nursery.start_soon(self._releaser.run)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._copy_regularly)
            nursery.start_soon(self._get_ready)
            nursery.start_soon(trim_when_quiet, self._operations.counters.total)
            if self._config.telemetry.format == "json":
                nursery.start_soon(
                    log_stats, self._control, self._config.telemetry.stats_interval_s
                )
            async with trio.open_nursery() as serving:
                serving.start_soon(self._watch_signals, serving.cancel_scope)
                serving.start_soon(self._stop_when_wanted, serving.cancel_scope)
                await pyfuse3.main(max_tasks=self._config.mount.requests_max)
                serving.cancel_scope.cancel()
            self._notifier.stopping()
            self._control.state = DaemonState.STOPPING
            nursery.cancel_scope.cancel()

    async def _get_ready(self) -> None:
        # Asking the mount itself would make a thread of ours wait for our own answer; see
        # `sync_kernel`.
        await self._operations.begun.wait()
        mount = self._config.mount
        await trio.to_thread.run_sync(
            lambda: tune(
                self._mount,
                read_ahead_kib=mount.read_ahead_kib,
                max_background=mount.max_background,
            )
        )
        self._control.state = DaemonState.READY
        self._notifier.ready(f"mounted on {self._mount}")
        log.info("mounted", mount=str(self._mount), state=str(self._state))

    async def _hand_over(self) -> None:
        """`_sync_kernel` where it may have something: what is closed has been handed over."""
        if self._tree.open_files():
            await self._sync_kernel()

    async def _sync_kernel(self) -> None:
        await sync_kernel(self._mount, self._tree.open_files())

    async def _tick(self) -> None:
        watchdog = self._notifier.watchdog_interval_s
        last_alive = last_status = trio.current_time()
        while True:
            self._pulse.tick()
            now = trio.current_time()
            if watchdog is not None and now - last_alive >= watchdog:
                last_alive = now
                self._notifier.alive()
            if now - last_status >= _STATUS_S:
                last_status = now
                self._notifier.status(
                    f"mounted on {self._mount}; {self._tree.inode_count:,} inodes, "
                    f"{self._tree.unstored >> 20} MiB dirty"
                )
            with suppress(OrbitError):
                self._control.note_free_space()
            await trio.sleep(_TICK_S)

    async def _copy_regularly(self) -> None:
        while True:
            await trio.sleep(self._config.write.copy_interval_s)
            if self._keeper.copy_due:
                await self._copy()

    async def _copy(self) -> None:
        try:
            await self._keeper.copy_namespace()
        except OrbitError as error:
            log.warning("the namespace was not copied into the packs", error=str(error))

    # --- stopping ------------------------------------------------------------------------------

    async def _watch_signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._stop_wanted.is_set():
                    log.warning("told to stop again: not waiting for open files")
                    pyfuse3.terminate()
                    scope.cancel()
                    return
                self._stop_wanted.set()

    async def _stop_when_wanted(self, scope: trio.CancelScope) -> None:
        """Take in what the kernel holds, then unmount: that ends the FUSE loop.

        A mount in use is detached, and requests that wait for a remote are given up.
        """
        await self._stop_wanted.wait()
        log.info("stopping")
        self._control.state = DaemonState.STOPPING
        self._notifier.stopping()
        try:
            await self._sync_kernel()
        except OrbitError as error:
            log.warning("the kernel could not hand over its dirty pages", error=str(error))
        await self._auto_push.drain(_PUSH_S)
        if await trio.to_thread.run_sync(lambda: unmount(self._mount, lazy=False)):
            return
        log.warning("the mount is in use; it is detached, and open files see errors")
        await trio.to_thread.run_sync(lambda: unmount(self._mount, lazy=True))
        pyfuse3.terminate()
        await trio.sleep(_GRACE_S)  # the loop waits for every request that it has taken
        scope.cancel()

    async def _unmount(self) -> None:
        """Take away what is left of our own mount, after an error; never somebody else's."""
        entry = mounted_at(self._mount)
        if entry is not None and entry.device == self._device:
            await trio.to_thread.run_sync(lambda: unmount(self._mount, lazy=True))
        pyfuse3.close(unmount=False)

    async def _finish(self) -> None:
        with trio.CancelScope(shield=True):
            await self._writeback.commit_once()
            if self._keeper.copy_due:
                await self._copy()
        log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
