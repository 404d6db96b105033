"""A bad network between the engine and its servers: the job ends right, or says what failed.

Then a second run, over a good network, completes it. Faults come and go with what the job tells,
not with time.
"""

import random

import pytest

from syncer.context import Context
from syncer.engine import run_job
from syncer.events import Silence
from syncer.options import JobSpec, Mode, Options, Verb
from syncer.remotes.policy import RemotePolicy
from tests.servers.proxy import Cut, How, Proxy
from tests.syncer.pairs.places import File, Servers

KINDS = ("sftp", "s3")
TIME_NS = 1_700_000_000 * 10**9


HURRIED = RemotePolicy(
    deadline_s=3.0,
    attempt_timeout_s=1.0,
    write_timeout_s=1.5,
    backoff_s=0.05,
    backoff_max_s=0.2,
    breaker_failures=3,
    breaker_after_s=0.5,
    breaker_pause_s=0.05,
    breaker_pause_max_s=0.2,
    close_timeout_s=0.5,
)


class Net:
    """Servers behind proxies, and the contexts of users who reach them through those."""

    def __init__(self, servers, proxies, folder):
        self.servers = servers
        self.proxies = proxies
        self._folder = folder

    def url(self, kind, place):
        port, way = self.servers.ports[kind], self.proxies[kind].port
        return place.url.replace(f":{port}/", f":{way}/")

    def context(self, wait_s=30.0):
        return Context(
            state=self._folder / "state",
            cache=self._folder / "cache",
            audited=False,
            wait_s=wait_s,
            policy=HURRIED,
        )


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    with Servers(folder) as servers, pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            servers.start(kind)
        with (
            Proxy(servers.ports["sftp"]) as sftp,
            Proxy(servers.ports["s3"]) as s3,
        ):
            known = servers.home / ".ssh" / "known_hosts"
            host, *key = known.read_text().split()
            with known.open("a") as more:
                more.write(f"[127.0.0.1]:{sftp.port} {' '.join(key)}\n")
            servers.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{s3.port}"
            for name, value in servers.environment.items():
                patch.setenv(name, value)
            assert host == f"[127.0.0.1]:{servers.ports['sftp']}"
            yield Net(servers, {"sftp": sftp, "s3": s3}, folder)


@pytest.fixture(autouse=True)
def healed(net):
    yield
    for proxy in net.proxies.values():
        proxy.heal()


def content():
    chance = random.Random(1)
    sizes = [0, 1, 5_000, 70_000, 300_000] * 3 + [3_000_000]
    return {
        b"d%d/f%d" % (number % 3, number): File(chance.randbytes(size), TIME_NS)
        for number, size in enumerate(sizes)
    }


def is_temporary(path):
    return path.rpartition(b"/")[2].startswith(b".orbit-")


class Acting(Silence):
    """Does something when the job tells something: `acts` maps an event to what is done, once."""

    files = True

    def __init__(self, **acts):
        self.seen = []
        self._acts = acts

    def event(self, event):
        self.seen.append(event)
        act = self._acts.pop(event.event.replace(".", "_"), None)
        if act is not None:
            act()


class Ways:
    """A job in one direction between a local folder and a server that a proxy is in front of."""

    def __init__(self, net, kind, *, upwards):
        self.net = net
        self.kind, self.upwards = kind, upwards
        self.proxy = net.proxies[kind]
        self.local, self.far = net.servers.place("local"), net.servers.place(kind)
        self.source, self.target = (self.local, self.far) if upwards else (self.far, self.local)
        self.content = content()
        self.source.fill(self.content)

    async def run(self, tell=None, *, wait_s=30.0, **options):
        ends = [
            place.url if place is self.local else self.net.url(self.kind, place)
            for place in (self.source, self.target)
        ]
        spec = JobSpec(Verb.SYNC, *ends, Options(durable=False, **options))
        context = self.net.context(wait_s)
        try:
            return await run_job(spec, context, tell or Silence())
        finally:
            context.close()

    def arrived(self):
        """What is at the destination: nothing but whole files."""
        found = self.target.files()
        for path in [path for path in found if is_temporary(path)]:
            del found[path]
        for path, file in found.items():
            assert file.data == self.content[path].data, path
        return set(found)

    def complete(self):
        return self.arrived() == set(self.content)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["up", "down"])
def ways(net, kind, request):
    return Ways(net, kind, upwards=request.param)


def done(report):
    assert report.outcome == "done", report.failures
    assert report.failed == 0
    return True


@pytest.mark.soak
async def test_far_away_and_narrow(ways):
    ways.proxy.change(delay_s=0.02, bytes_per_s=20e6)
    assert done(await ways.run(verify=True))
    assert ways.complete()


@pytest.mark.parametrize(
    "how", [How.RESET, How.CLOSE, pytest.param(How.STALL, marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("sent", [True, False], ids=["sending", "receiving"])
async def test_connections_that_break(ways, how, sent):
    times = 1 if how is How.STALL else 3  # silence is waited out each time
    after = 9_000 if sent is ways.upwards else 400  # where the files go, and the other way
    before = ways.proxy.counts
    ways.proxy.change(cut=Cut(how, after=after, up=sent, times=times))
    assert done(await ways.run())
    assert (ways.proxy.counts - before).cuts
    assert ways.complete()


@pytest.mark.parametrize("sent", [True, False], ids=["sending", "receiving"])
async def test_bits_that_flip(net, sent):
    """Of SFTP: a plain HTTP link to S3 has no checksum that would tell of a flipped bit."""
    ways = Ways(net, "sftp", upwards=sent)
    ways.proxy.change(cut=Cut(How.GARBLE, after=60_000, up=sent, times=3))
    assert done(await ways.run())
    assert ways.complete()


async def test_bits_that_flip_on_the_way_to_s3(net):
    """Their hash is signed with the request, which this server takes on trust: read them back."""
    ways = Ways(net, "s3", upwards=True)
    before = ways.proxy.counts
    ways.proxy.change(cut=Cut(How.GARBLE, after=100_000, up=True, times=2))
    assert done(await ways.run(verify=True))
    assert (ways.proxy.counts - before).cuts == 2
    assert ways.complete()


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
async def test_a_server_that_is_busy(net, status, upwards):
    ways = Ways(net, "s3", upwards=upwards)
    before = ways.proxy.counts
    ways.proxy.answer(6, status, {"Retry-After": "0"})
    report = await ways.run()
    assert (ways.proxy.counts - before).answered == 6
    assert done(report)
    assert ways.complete()


async def test_a_server_that_is_restarted(ways):
    def away():
        ways.proxy.change(refuse=True)
        ways.proxy.reset_connections()

    tell = Acting(file_copied=away, file_retried=ways.proxy.heal)
    report = await ways.run(tell, parallel=2)
    assert any(each.event == "file.retried" for each in tell.seen)
    assert report.retried
    assert done(report)
    assert ways.complete()


async def test_a_network_that_swallows_everything_for_a_while(ways):
    tell = Acting(
        file_copied=lambda: ways.proxy.change(black_hole=True), file_retried=ways.proxy.heal
    )
    report = await ways.run(tell, parallel=2)
    assert report.retried
    assert done(report)
    assert ways.complete()


@pytest.mark.parametrize(
    ("kind", "upwards"),
    [
        ("sftp", True),
        *(pytest.param(*each, marks=pytest.mark.soak)
          for each in (("sftp", False), ("s3", True), ("s3", False))),
    ],
)  # fmt: skip
async def test_a_server_that_stays_away_is_told_and_a_second_run_completes(net, kind, upwards):
    ways = Ways(net, kind, upwards=upwards)
    extra = File(b"what the source has no more", TIME_NS)
    ways.target.fill({b"extra": extra})
    ways.content[b"extra"] = extra

    def away():
        ways.proxy.change(refuse=True)
        ways.proxy.reset_connections()

    report = await ways.run(
        Acting(file_copied=away), parallel=16, wait_s=0.2, mode=Mode.MIRROR, delete_max=99
    )
    assert report.outcome == "partly"
    arrived = ways.arrived()
    assert b"extra" in arrived  # nothing is deleted after failures
    failed = {each.path.encode() for each in report.failures}
    # What was not acknowledged before the cut may be there all the same.
    assert set(ways.content) - arrived <= failed
    assert all(each.transient for each in report.failures if each.path), report.failures
    ways.proxy.heal()
    report = await ways.run(mode=Mode.MIRROR, delete_max=99)
    assert done(report)
    del ways.content[b"extra"]
    assert ways.complete()


async def test_a_server_that_was_never_there(ways):
    ways.proxy.change(refuse=True)
    report = await ways.run(wait_s=0.2)
    assert (report.outcome, report.exit_code) == ("failed", 2)
    assert report.failures
    assert ways.target.files() == {}
