"""A server and clients as processes of their own: over loopback, through a bad network, and between network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from federation.certs import Authority, make
from federation.certs import main as certificates
from node_comm.grpc_server import Door, GrpcServer
from tests.mpi_helper import kill_tree
from tests.node_comm.test_star import free_port
from tests.system.conftest import ENVIRONMENT, Finished, command
from tests.system.proxy import Proxy
from tests.system.test_failure import faulty, wait_for_rows

CLIENTS = 5
#: All five are needed, so that every round is the serial run's, however often it has to be begun.
SETTINGS = [*faulty("none"), f"num_clients={CLIENTS}", f"trainer_config.min_clients={CLIENTS}", "trainer_config.max_rounds=12"]
SLOW = [*SETTINGS, "learner_config.delay=0.15"]


class Network:
    """A server, and clients by number; whatever still runs at the end is killed."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder, self.settings = folder, settings
        self.address = f"127.0.0.1:{free_port()}"
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, who: str, *options: str, address: str = "", before: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> None:
        """Start ``server``, or client ``0``."""
        is_server = who == "server"
        settings = [*self.settings, f"transport.address={address or self.address}", *([] if is_server else [f"client_id={who}"]),
                    *more]
        folder = self.folder / "run" if is_server else self.folder / f"client{who}"
        line = command(*options, folder=folder, settings=settings, mode="server" if is_server else "client")
        if is_server:
            line.remove("--quiet")
        log = (self.folder / f"{who}.log").open("a")
        self.processes[who] = subprocess.Popen([*before, *line], stdout=log, stderr=log, text=True, start_new_session=True,
                                               env={**os.environ, **ENVIRONMENT})
        log.close()

    def kill(self, who: str) -> None:
        self.processes[who].kill()
        self.processes[who].wait()

    def log(self, who: str) -> str:
        return (self.folder / f"{who}.log").read_text()

    def reach(self, rows: int) -> None:
        """Wait until so many rounds are recorded."""
        wait_for_rows(self.folder / "run", rows)

    def finish(self, seconds: float = 100) -> dict[str, int]:
        """Every process's exit status."""
        deadline = time.monotonic() + seconds
        statuses = {}
        for who, process in self.processes.items():
            try:
                statuses[who] = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"{who} is still running:\n{self.log(who)[-3000:]}\n--- server:\n{self.log('server')[-3000:]}")
        return statuses

    @property
    def result(self):
        return Finished(0, "", "", self.folder / "run", 0).result


@pytest.fixture
def network(tmp_path) -> Iterator[type[Network]]:
    made: list[Network] = []

    def start(settings: list[str]) -> Network:
        made.append(Network(tmp_path, settings))
        return made[-1]

    yield start
    for each in made:
        for process in each.processes.values():
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The serial run's result."""
    folder = tmp_path_factory.mktemp("serial")
    subprocess.run(command(folder=folder, settings=SETTINGS, mode="serial"), check=True, timeout=120)
    return Finished(0, "", "", folder, 0).result


def test_the_same_bits_as_one_process(network, expected):
    """Over loopback. Clients come in any order, and end with the run; all exit with 0."""
    net = network(SETTINGS)
    for who in ("3", "server", "0", "4", "1", "2"):
        net.start(who)
    assert set(net.finish().values()) == {0}, net.log("server")
    assert net.result == expected


def test_killed_and_started_again(network, expected):
    """S-LIFE-09, S-LIFE-10: a client, then the server, by kill -9, in the middle of a round; the others wait, and go on."""
    net = network(SLOW)
    for who in ("server", "0", "1", "2", "3", "4"):
        net.start(who)
    net.reach(2)
    net.kill("3")
    net.start("3")
    net.reach(4)
    net.kill("server")
    time.sleep(1.0)
    net.start("server", "--resume", "auto")
    assert set(net.finish().values()) == {0}, net.log("server")
    rows = net.result[2]
    assert [row["round"] for row in rows] == list(range(1, 13))
    assert (net.result[0], net.result[1]) == expected[:2]


def test_a_finished_run_waits_for_its_clients_no_longer_than_at_first(network):
    """S-LIFE-08, S-CKPT-08: who has come by then is told that it is over; the others need not come."""
    net = network([*SETTINGS, "trainer_config.connect_timeout=8"])
    subprocess.run(command(folder=net.folder / "run", settings=net.settings, mode="serial"), check=True, timeout=120)
    result = net.result
    net.start("0")
    net.start("server", "--resume", "auto")
    assert net.finish(60) == {"0": 0, "server": 0}, net.log("server")
    assert net.result == result
    assert "all 12 rounds are done" in net.log("server")


def test_a_server_that_does_not_come_back(network):
    """S-LIFE-10: the clients give up after their patience, say so, and exit with 1."""
    net = network(SLOW)
    net.start("server")
    net.start("0", more=("transport.patience=2",))
    deadline = time.monotonic() + 30
    while "client_0 (rank 1) is here" not in net.log("server") and time.monotonic() < deadline:
        time.sleep(0.05)
    net.kill("server")
    del net.processes["server"]
    assert net.finish(40) == {"0": 1}
    assert "within 2 s" in net.log("0")


def test_a_server_that_answers_nothing(network):
    """S-LIFE-08: one that takes the connection, and what the client says: it gives up after its patience, with 1 and a line."""
    net = network(SETTINGS)

    async def serve() -> None:
        server = await GrpcServer.open(Door(address=net.address))
        net.start("0", more=("transport.patience=2",))
        assert await asyncio.to_thread(net.finish, 40) == {"0": 1}
        await server.close()

    asyncio.run(serve())
    said = net.log("0")
    assert said.startswith("Timeout: server has not answered the introduction of client_0 within 2 s: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("who", ["0", "server"])
def test_signals(network, expected, who):
    """SIGTERM: a client takes its leave, with 75, and may come back; the server writes a checkpoint, and its clients wait."""
    net = network(SLOW)
    for name in ("server", "0", "1", "2", "3", "4"):
        net.start(name)
    net.reach(3)
    net.processes[who].send_signal(signal.SIGTERM)
    assert net.processes[who].wait(30) == 75
    net.start(who, *(["--resume"] if who == "server" else []))
    assert set(net.finish().values()) == {0}, net.log("server")
    assert net.result[:2] == expected[:2]


@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_the_server_is_not_there(network, received):
    """As when one comes in the middle of the run: 75, and a line that says so."""
    net = network(SETTINGS)
    host, _, port = net.address.partition(":")
    with socket.create_server((host, int(port))) as door:
        door.settimeout(60)
        net.start("0")
        door.accept()[0].close()
    net.processes["0"].send_signal(received)
    assert net.finish(20) == {"0": 75}
    assert net.log("0") == f"stopped by {received.name}; the server goes on without this client, which may come back\n"


def test_through_a_bad_network(network, expected):
    """S-LIFE-10: delays, losses, a thin line, and connections that are cut in the middle of an upload; the digest of the serial
    run, with no client lost."""
    net = network(SLOW)
    with Proxy(net.address, delay=0.02, bytes_per_second=2_000_000, cuts=(30_000, 90_000), loses=12) as proxy:
        net.start("server")
        for who in ("0", "1", "2", "3", "4"):
            net.start(who, address=proxy.address if who in "01" else net.address)
        assert set(net.finish().values()) == {0}, net.log("server")
        assert proxy.cut == 2
    assert net.result == expected
    assert "goes on where its connection was cut" in net.log("server")
    assert "is gone: its connection was lost" not in net.log("server")


#: Rules that need something of the network: state that clients keep, rows; with packed updates, and all of it zipped.
PACKED = {
    "scaffold in topk": ["components.aggregator=federated.aggregator.scaffold", "trainer_config.compression.codec=topk",
                         "trainer_config.compression.fraction=0.2"],
    "median in int8": ["components.aggregator=federated.aggregator.median", "trainer_config.compression.codec=int8"],
    "scaffold": ["components.aggregator=federated.aggregator.scaffold"],
}


@pytest.mark.parametrize("rule", PACKED)
def test_what_clients_keep_and_what_is_packed(network, tmp_path, rule):
    """The bits and the rows of the serial run; a client that is killed in between has its state given back."""
    settings = ["components.model=model.numpy.linear", "learner_config.client_lr=0.05", "tracker=none", f"num_clients={CLIENTS}",
                f"trainer_config.min_clients={CLIENTS}", "trainer_config.max_rounds=8", *PACKED[rule]]
    subprocess.run(command(folder=tmp_path / "serial", settings=settings, mode="serial"), check=True, timeout=120)
    net = network([*settings, "transport.compression=zstd", "transport.resume_seconds=1"])
    for who in ("server", "0", "1", "2", "3", "4"):
        net.start(who)
    if rule == "scaffold":
        net.reach(3)
        net.kill("3")
        net.start("3")
    assert set(net.finish().values()) == {0}, net.log("server")
    expected = Finished(0, "", "", tmp_path / "serial", 0).result
    assert net.result[:2] == expected[:2]
    assert rule == "scaffold" or net.result[2] == expected[2]


CLIPPING = ["components.aggregator=federated.aggregator.norm_clipping", "aggregator_config.clip_norm=0.01"]
#: By default, and by what only the server does with the mean.
WRITTEN_OUT = [*CLIPPING, "aggregator_config.weighting=samples", "aggregator_config.server_lr=0.25"]


@pytest.mark.parametrize(("servers", "clients", "word"), [
    (CLIPPING, [], "aggregator"), (CLIPPING, [*CLIPPING[:1], "aggregator_config.clip_norm=1.0"], "aggregator"),
    ([], CLIPPING, "aggregator"), (["trainer_config.local_parameters=[bias]"], [], "local_parameters"),
    (["components.aggregator=federated.aggregator.feddyn"], [], "federated.learner.feddyn"),
    (CLIPPING, [*CLIPPING, "aggregator_config.weighting=uniform"], "aggregator"), ([], ["num_clients=3"], "num_clients")],
    ids=["no clipping", "another clip_norm", "clipping alone", "local parameters", "no FedDyn", "another weighting",
         "another partition"])
def test_a_client_that_would_do_something_else_is_refused(network, servers, clients, word):
    """Updates are weighed, and arrays kept back, where they are trained: it would go unnoticed in a sum."""
    net = network(["components.model=model.numpy.linear", "tracker=none", "num_clients=2", "trainer_config.max_rounds=2",
                   "trainer_config.connect_timeout=30"])
    net.start("server", more=tuple(servers))
    net.start("0", more=tuple(clients))
    net.start("1", more=tuple(WRITTEN_OUT if servers == CLIPPING else servers))
    assert net.processes["0"].wait(60) == 1, net.log("server")
    assert f"differs from the server in {word}: " in net.log("0")
    net.start("0", more=tuple(servers))
    assert net.finish() == {"server": 0, "0": 0, "1": 0}, net.log("server")
    settings = [*net.settings, *servers]
    subprocess.run(command(folder=net.folder / "serial", settings=settings, mode="serial"), check=True, timeout=120)
    assert net.result[:2] == Finished(0, "", "", net.folder / "serial", 0).result[:2]


def test_a_client_may_have_the_learner_alone(network):
    """Who names the learner that the server's rule needs, and no aggregator, does its part; so does one of FedProx's."""
    for rule, learner in (("feddyn", "feddyn"), ("fedavg", "fedprox")):
        common = ["components.model=model.numpy.linear", "tracker=none", "num_clients=1", "trainer_config.max_rounds=2"]
        net = network(common)
        net.folder = net.folder / rule
        net.folder.mkdir()
        servers = [f"components.aggregator=federated.aggregator.{rule}"]
        clients = [f"components.learner=federated.learner.{learner}"]
        net.start("server", more=tuple(servers))
        net.start("0", more=tuple(clients))
        assert net.finish() == {"server": 0, "0": 0}, net.log("server")
        subprocess.run(command(folder=net.folder / "serial", settings=[*common, *servers, *clients], mode="serial"), check=True,
                       timeout=120)
        assert net.result[:2] == Finished(0, "", "", net.folder / "serial", 0).result[:2]


def test_with_certificates_tokens_and_a_list(network, expected, tmp_path):
    """Mutual TLS; who is not on the list, or has another token, is refused with status 1 and the reason at both ends."""
    make(tmp_path / "certs", ["localhost"], [f"client_{index}" for index in range(7)])
    certs = tmp_path / "certs"

    def tls(name: str) -> list[str]:
        return [f"transport.tls.ca={certs}/ca.pem", f"transport.tls.cert={certs}/{name}.pem",
                f"transport.tls.key={certs}/{name}.key"]

    net = network(SETTINGS)
    net.address = net.address.replace("127.0.0.1", "localhost")
    listed = ",".join(f"client_{index}" for index in range(6))
    net.start("server", more=(*tls("server"), f"transport.clients=[{listed}]", "transport.token=open sesame",
                              "transport.tokens={client_1: own}"))
    wrong = {"5": ("transport.token=guess", "token is wrong"), "6": ("transport.token=open sesame", "not on the list")}
    for who, (token, _) in wrong.items():
        net.start(who, more=(*tls(f"client_{who}"), token, "num_clients=7", "data.partitioner=iid"))
    for who in wrong:
        assert net.processes.pop(who).wait(60) == 1
    for who in ("0", "1", "2", "3", "4"):
        net.start(who, more=(*tls(f"client_{who}"), "transport.token=" + ("own" if who == "1" else "open sesame")))
    assert set(net.finish().values()) == {0}, net.log("server")
    for who, (_, reason) in wrong.items():
        assert reason in net.log(who)
        assert reason in net.log("server")
    assert "sesame" not in net.log("server") + net.log("0") + (tmp_path / "run" / "config.yaml").read_text()
    assert net.result == expected


def test_certificates_that_do_not_do(network, tmp_path):
    """S-SEC-04: clients of another authority, expired, and without a certificate end with 1 and the reason, which stands in the
    server's log too; the others train on."""
    folder = tmp_path / "certs"
    make(folder, ["localhost"], [f"client_{index}" for index in range(8)])
    make(tmp_path / "others", ["localhost"], ["client_5"])
    certificate, key = Authority("of old").sign("client_6", days=-1)
    (folder / "old.pem").write_bytes(certificate)
    (folder / "old.key").write_bytes(key)

    def tls(cert: str | None) -> tuple[str, ...]:
        files = () if cert is None else (f"transport.tls.cert={cert}.pem", f"transport.tls.key={cert}.key")
        return f"transport.tls.ca={folder}/ca.pem", *files

    net = network([*SETTINGS, "num_clients=8", "trainer_config.max_rounds=3"])
    net.address = net.address.replace("127.0.0.1", "localhost")
    net.start("server", more=tls(f"{folder}/server"))
    guilty = {"5": (f"{tmp_path}/others/client_5", "does not take the certificate"),
              "6": (f"{folder}/old", "has expired on"), "7": (None, "this client has none")}
    for who, (cert, _) in guilty.items():
        net.start(who, more=tls(cert))
    for who, (_, reason) in guilty.items():
        assert net.processes.pop(who).wait(60) == 1
        assert reason in net.log(who)
    for who in ("0", "1", "2", "3", "4"):
        net.start(who, more=tls(f"{folder}/client_{who}"))
    # The server waits for all eight, as nobody has said that three will never come.
    net.start("5", more=tls(f"{folder}/client_5"))
    net.start("6", more=tls(f"{folder}/client_6"))
    net.start("7", more=tls(f"{folder}/client_7"))
    assert set(net.finish().values()) == {0}, net.log("server")
    for reason in ("unable to get local issuer certificate", "PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        assert reason in net.log("server")


@pytest.mark.parametrize(("arguments", "said"), [
    (["--server", "nödé"], "--server: 'nödé'"),
    (["--server", "node1", ""], "--server: ''"),
    (["--server", "node1", "--clients", "müller"], "--clients: 'müller'"),
    (["--server", "node1", "--clients", "a" * 65], "--clients: 'aaa"),
    (["--server", "node1", "--clients", "99999999999"], "--clients: 99999999999; give at most"),
    (["--server", "node1", "--days", "0"], "--days: 0"),
    (["--server", "node1", "--days", "99999999"], "--days: 99999999"),
    (["--server", "node1", "-o", "file/below"], "file/below cannot be written: Not a directory"),
])
def test_certificates_that_cannot_be_made(tmp_path, monkeypatch, capsys, arguments, said):
    """Status 2, what was given, and no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert certificates(["make", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "certs").exists()


def test_the_settings_for_an_address_of_ipv6(tmp_path, capsys):
    assert certificates(["make", "--server", "fd00::7", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count('address: "[fd00::7]:9000"') == 2


def test_a_certificate_for_a_host_with_a_long_name(tmp_path):
    """As clouds give them: the 64 characters of a common name are not enough, and clients look at the other names."""
    host = "node1." + 3 * "a-long-name-of-a-department." + "example.org"
    make(tmp_path, [host], ["client_0"])
    found = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [host]


def test_the_second_server_on_a_port(network):
    """S-COMM-10: exits at once, with the address."""
    net = network(SETTINGS)
    net.start("server")
    deadline = time.monotonic() + 30
    while not (net.folder / "run" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(command(folder=net.folder / "second", mode="server", settings=[
        *SETTINGS, f"transport.address={net.address}"]), capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **ENVIRONMENT})
    assert second.returncode == 1
    assert f"cannot listen on {net.address}" in second.stderr
    assert net.processes["server"].poll() is None


# Between network namespaces


def _cannot() -> str:
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    if shutil.which("ip") is None:
        return "no ip here: apt-get install iproute2"
    name = f"fedtry{os.getpid()}"
    try:
        for words in (["netns", "add", name], ["-n", name, "link", "add", "br0", "type", "bridge"],
                      ["-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1"]):
            tried = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
            if tried.returncode:
                return f"no network namespaces here: {tried.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Namespaces with an address each, 10.99.0.1 upwards, on one bridge; their links are called veth0 inside."""
    names = [f"fed{os.getpid()}n{index}" for index in range(count)]
    bridge = f"fedbr{os.getpid()}"[:15]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        ip("netns", "add", names[0] + "b")
        ip("-n", names[0] + "b", "link", "add", bridge, "type", "bridge")
        ip("-n", names[0] + "b", "link", "set", bridge, "up")
        for index, name in enumerate(names):
            ip("netns", "add", name)
            outside = f"v{index}"
            ip("-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", outside, "netns", names[0] + "b")
            ip("-n", names[0] + "b", "link", "set", outside, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"10.99.0.{index + 1}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in [*names, names[0] + "b"]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_between_machines(network, expected, tmp_path):
    """Six addresses, mutual TLS, and a link that is down for 5 s: the digest of the serial run."""
    if reason := _cannot():
        pytest.skip(reason)
    make(tmp_path / "certs", ["10.99.0.1"], [f"client_{index}" for index in range(CLIENTS)])
    net = network([*SLOW, f"transport.tls.ca={tmp_path}/certs/ca.pem"])
    with namespaces(CLIENTS + 1) as names:
        def tls(name: str) -> tuple[str, str]:
            return f"transport.tls.cert={tmp_path}/certs/{name}.pem", f"transport.tls.key={tmp_path}/certs/{name}.key"

        net.start("server", address="10.99.0.1:9000", before=("ip", "netns", "exec", names[0]), more=tls("server"))
        for index in range(CLIENTS):
            net.start(str(index), address="10.99.0.1:9000", before=("ip", "netns", "exec", names[index + 1]),
                      more=tls(f"client_{index}"))
        net.reach(3)
        subprocess.run(["ip", "-n", names[2], "link", "set", "veth0", "down"], check=True)
        threading.Timer(5.0, lambda: subprocess.run(["ip", "-n", names[2], "link", "set", "veth0", "up"], check=True)).start()
        assert set(net.finish(120).values()) == {0}, net.log("server")
    assert net.result[:2] == expected[:2]


def test_a_cut_that_is_longer_than_the_deadline(network):
    """S-LIFE-08, S-LIFE-10: the client behind it is left out of the rounds that it misses, it alone, and is back afterwards."""
    if reason := _cannot():
        pytest.skip(reason)
    net = network([*SLOW, "trainer_config.min_clients=4", "trainer_config.round_timeout=1.5", "trainer_config.max_rounds=40",
                   "transport.insecure=true"])
    with namespaces(CLIENTS + 1) as names:
        for index, who in enumerate(("server", "0", "1", "2", "3", "4")):
            net.start(who, address="10.99.0.1:9000", before=("ip", "netns", "exec", names[index]))
        net.reach(3)
        subprocess.run(["ip", "-n", names[2], "link", "set", "veth0", "down"], check=True)
        time.sleep(6.0)
        subprocess.run(["ip", "-n", names[2], "link", "set", "veth0", "up"], check=True)
        assert set(net.finish(120).values()) == {0}, net.log("server")
    samples = [row["num_samples"] for row in net.result[2]]
    assert len(samples) == 40
    assert samples[0] == samples[-1] == max(samples)
    assert 2 <= sum(count < max(samples) for count in samples) <= 20
    assert len(set(samples)) == 2, samples
    assert "client_1 has not answered within round_timeout=1.5 s" in net.log("server")
    for who in ("0", "2", "3", "4"):
        assert f"client_{who} has not" not in net.log("server")
