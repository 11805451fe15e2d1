"""What a watcher reads: figures in Prometheus' format, and a sign of health."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from federation.errors import ConfigError
from federation.infra.monitor import Monitor


def get(monitor: Monitor, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor.port}{path}", timeout=10) as answer:
        return answer.read().decode()


def test_figures_of_a_run():
    """Read by Prometheus' own parser."""
    monitor = Monitor("127.0.0.1:0", lambda: 3)
    for number in (1, 2):
        monitor.record({"round": number, "accuracy": 0.5 * number, "clients_failed": 1, "bytes_down": 100, "bytes_up": 10,
                        "failures": {"a": "late"}, "seconds": {"fit": 2.5}})
    found = {(sample.name, *sample.labels.values()): sample.value
             for family in text_string_to_metric_families(get(monitor, "/metrics")) for sample in family.samples}
    assert found["federation_round",] == 2
    assert found["federation_rounds_total",] == 2
    assert found["federation_clients",] == 3
    assert found["federation_clients_failed_total",] == 2
    assert found["federation_bytes_down_total",] == 200
    assert found["federation_metric", "accuracy"] == 1.0
    assert found["federation_seconds", "fit"] == 2.5
    assert json.loads(get(monitor, "/health")) == {"round": 2, "clients": 3}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(monitor, "/else")
    monitor.close()


def test_a_phase_of_an_earlier_round_is_none_of_the_last():
    """As that of an evaluation every fifth round: phases add up to the round."""
    monitor = Monitor("127.0.0.1:0", lambda: 3)
    monitor.record({"round": 1, "accuracy": 0.5, "seconds": {"fit": 2.5, "evaluate": 9.0}})
    monitor.record({"round": 2, "seconds": {"fit": 2.0}})
    figures = get(monitor, "/metrics")
    assert 'federation_seconds{phase="fit"} 2.0' in figures
    assert 'phase="evaluate"' not in figures
    assert 'federation_metric{name="accuracy"} 0.5' in figures
    monitor.close()


def test_an_address_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="cannot listen on"):
            Monitor(f"127.0.0.1:{other.getsockname()[1]}", lambda: 0)


def test_a_watcher_that_says_nothing_holds_nobody_up():
    """Neither the next watcher nor the end of the run waits for one that has connected and asks for nothing."""
    monitor = Monitor("127.0.0.1:0", lambda: 3)
    with socket.create_connection(("127.0.0.1", monitor.port)):
        assert json.loads(get(monitor, "/health")) == {"round": 0, "clients": 3}
        ending = threading.Thread(target=monitor.close, daemon=True)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()


def test_an_address_of_ipv6():
    with socket.socket(socket.AF_INET6) as other:
        try:
            other.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    monitor = Monitor("[::1]:0", lambda: 3)
    with urllib.request.urlopen(f"http://[::1]:{monitor.port}/health", timeout=10) as answer:
        assert json.load(answer) == {"round": 0, "clients": 3}
    monitor.close()
