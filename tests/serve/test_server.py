"""A real Granian with two workers: kills, reloads under load, metrics of all workers, a graceful end."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from bench.http_load import Load, closed_loop, get, post, steady

ROOT = Path(__file__).resolve().parents[2]
START = (
    "from serve.run import main; from smartrouter.core.settings import Settings;"
    "main(Settings.load(), target='fakes:worker_app')"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Service:
    """A running service in a folder of its own."""

    def __init__(self, home):
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SMARTROUTER_", "PROMETHEUS_"))}
        environment |= {
            "SMARTROUTER_HOME": str(home),
            "SMARTROUTER_PORT": str(self.port),
            "SMARTROUTER_PARAMS": str(ROOT / "params"),
            "SMARTROUTER_DEADLINE_MS": "5000",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        }
        self.log = open(home / "server.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", START], env=environment, stdout=self.log, stderr=self.log, cwd=home
        )
        limit = time.monotonic() + 60
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                if call(f"{self.url}/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((home / "server.log").read_text()[-3000:])

    def workers(self):
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=20)
        self.log.close()
        return code

    def rows(self, query):
        with closing(sqlite3.connect(self.home / "store.db")) as connection:
            return connection.execute(query).fetchall()


@contextmanager
def running(home):
    service = Service(home)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory, write_champion):
    """One service for the tests that leave it whole."""
    home = tmp_path_factory.mktemp("service")
    write_champion(home, "1")
    with running(home) as found:
        yield found


@pytest.fixture
def own_service(tmp_path, promote):
    """A service of its own for a test that ends it."""
    promote("1")
    with running(tmp_path) as found:
        yield found


def bodies():
    body = {
        "transaction_id": "tx-{id}",
        "merchant_id": "volaris",
        "order": {"amount": 2450.0, "currency": "MXN"},
        "card": {"bin": "415231", "brand": "VISA"},
    }
    return [json.dumps(body).encode()]


def load(service, first=0, seen=None):
    return Load(("127.0.0.1", service.port), post(f"{service.url}/api/v1/ml/predict", bodies(), first=first), 200, seen)


def test_promotion_under_load_drops_no_request(service, write_champion):
    """Requests run while the champion changes four times; each is answered, and the new versions are used."""
    versions = set()

    def note(answer):
        place = answer.find(b'"version":"') + 11
        versions.add(answer[place : place + 1].decode())

    def change():
        for version in ("2", "3", "4", "5"):
            time.sleep(0.8)
            write_champion(service.home, version)

    changing = threading.Thread(target=change)
    changing.start()
    report = steady(load(service, seen=note), rate=100, seconds=5)
    changing.join()
    assert report.errors == 0 and report.statuses == {"200": 500}
    assert {"1", "5"} <= versions and len(versions) >= 3
    assert service.rows("SELECT count(*) FROM predictions") == [(500,)]
    assert len(service.workers()) == 2


def test_acknowledged_feedback_survives_kill_9_of_workers(service):
    """Clients post feedback while workers are killed: whatever got its 202 is in the store, and the service is back."""
    acknowledged, stop = [], threading.Event()

    def post_all(name):
        number = 0
        while not stop.is_set():
            event = {"prediction_id": "p-none", "event_id": f"{name}-{number}", "processor": "MIT", "status": "error"}
            try:
                if call(f"{service.url}/api/v1/ml/feedback", event)[0] == 202:
                    acknowledged.append(event["event_id"])
                    number += 1
            except OSError:
                time.sleep(0.05)  # and the same event again

    posting = [threading.Thread(target=post_all, args=(name,)) for name in "abc"]
    for thread in posting:
        thread.start()
    for _ in range(6):
        time.sleep(0.5)
        for pid in service.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
    ready = wait_until_ready(service)
    time.sleep(0.5)
    stop.set()
    for thread in posting:
        thread.join()
    kept = [name for (name,) in service.rows("SELECT json_extract(body, '$.event_id') FROM feedback")]
    assert len(acknowledged) > 30
    assert set(acknowledged) <= set(kept) and len(kept) == len(set(kept))
    assert service.rows("PRAGMA integrity_check") == [("ok",)]
    assert ready


def wait_until_ready(service):
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        try:
            if call(f"{service.url}/ready")[0] == 200:
                return True
        except OSError:
            time.sleep(0.1)
    return False


def test_metrics_add_up_over_workers_also_after_a_kill(service):
    before = predictions(service)
    report = closed_loop(load(service, first=10**6), in_flight=8, seconds=1.0)
    assert report.errors == 0
    assert {predictions(service) for _ in range(6)} == {before + report.requests}  # whichever worker answers
    os.kill(service.workers()[0], signal.SIGKILL)
    time.sleep(0.3)
    assert predictions(service) == before + report.requests


def predictions(service):
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            text = call(f"{service.url}/metrics")[1]
            break
        except OSError:
            time.sleep(0.1)
    lines = [line for line in text.splitlines() if line.startswith("smartrouter_requests_total") and "predict" in line]
    return sum(int(float(line.split()[-1])) for line in lines)


def test_a_stop_finishes_what_has_begun(own_service):
    """SIGTERM while requests are on their way: every connection ends with an answer or was never accepted."""
    statuses = []

    def go():
        statuses.append(closed_loop(load(own_service), in_flight=8, seconds=1.5).statuses)

    thread = threading.Thread(target=go)
    thread.start()
    time.sleep(0.7)
    code = own_service.stop()
    thread.join(timeout=20)
    assert code == 0
    ((stored,),) = own_service.rows("SELECT count(*) FROM predictions")
    assert statuses[0]["200"] == stored > 0  # nothing was decided without an answer, nor answered without a record


def interrupt(service):
    """What a terminal does at Ctrl-C: SIGINT to parent and workers alike."""
    for pid in [service.process.pid, *service.workers()]:
        os.kill(pid, signal.SIGINT)
    assert service.process.wait(timeout=20) == 0


def test_ctrl_c_loses_no_acknowledged_event(own_service):
    acknowledged = []

    def post_until_it_ends():
        with suppress(OSError, HTTPException):
            while True:
                event = {"prediction_id": "p-none", "event_id": f"e-{len(acknowledged)}", "processor": "MIT"}
                if call(f"{own_service.url}/api/v1/ml/feedback", event | {"status": "error"})[0] == 202:
                    acknowledged.append(event["event_id"])

    posting = threading.Thread(target=post_until_it_ends)
    posting.start()
    limit = time.monotonic() + 20
    while len(acknowledged) < 10 and time.monotonic() < limit:
        time.sleep(0.05)
    interrupt(own_service)
    posting.join(timeout=20)
    kept = {name for (name,) in own_service.rows("SELECT json_extract(body, '$.event_id') FROM feedback")}
    assert acknowledged and set(acknowledged) <= kept


def test_ctrl_c_ends_all_and_no_worker_has_to_be_killed(own_service):
    """Without a request on its way; Granian may hold one that it accepts at that very moment until it is killed."""
    event = {"prediction_id": "p-none", "event_id": "e-1", "processor": "MIT", "status": "error"}
    assert call(f"{own_service.url}/api/v1/ml/feedback", event)[0] == 202
    interrupt(own_service)
    assert "refused to gracefully stop" not in (own_service.home / "server.log").read_text()


def test_a_killed_service_comes_back_with_all_it_knew(tmp_path, promote):
    promote("1")
    with running(tmp_path) as service:
        answers: list[bytes] = []
        closed_loop(load(service, seen=answers.append), in_flight=4, seconds=0.5)
        for pid in [service.process.pid, *service.workers()]:
            os.kill(pid, signal.SIGKILL)
        service.process.wait()
    with running(tmp_path) as service:
        status, again = call(
            f"{service.url}/api/v1/ml/predict", json.loads(bodies()[0].replace(b"{id}", b"000000000000"))
        )
        first = next(a for a in answers if b'"transaction_id":"tx-000000000000"' in a)
        assert status == 200 and again.encode() == first.split(b"\r\n\r\n", 1)[1]
        assert service.rows("SELECT count(*) FROM predictions")[0][0] >= len(answers)


def test_raw_nonsense_on_the_socket_harms_nobody(service):
    for nonsense in (b"\x00" * 1000, b"GET\r\n\r\n", b"POST /api/v1/ml/predict HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=5) as sock:
            sock.sendall(nonsense)
            sock.settimeout(2)
            with suppress(OSError):
                sock.recv(1000)
    large = b"x" * (300 * 1024)
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as sock:
        head = b"POST /api/v1/ml/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n")
        assert sock.recv(1000).split()[1] == b"413"
    report = closed_loop(Load(("127.0.0.1", service.port), get(f"{service.url}/health")), in_flight=4, seconds=0.3)
    assert report.errors == 0


def test_an_outage_is_seen_by_all_workers_and_outlives_their_deaths(own_service):
    def pay(name):
        card = {"bin": str(415000 + zlib.crc32(name.encode()) % 900), "brand": "VISA"}
        body = json.loads(bodies()[0]) | {"transaction_id": name, "card": card}
        return json.loads(call(f"{own_service.url}/api/v1/ml/predict", body)[1])

    def first(answered):
        return answered["ranking"][0]["processor"]

    dead, number = first(pay("tx-0")), 0
    while first(answered := pay(f"tx-{(number := number + 1)}")) == dead:
        event = {"prediction_id": answered["prediction_id"], "event_id": "e1", "processor": dead, "status": "error"}
        assert call(f"{own_service.url}/api/v1/ml/feedback", event)[0] == 202
        assert number < 40
    told = time.monotonic()
    seen = []
    while time.monotonic() < told + 2:  # a look each 40 ms: what comes later than a second is not being slow
        seen.append((time.monotonic() - told, first(pay(f"tx-after-{len(seen)}")) == dead))
    assert len(seen) > 20 and not any(wrong for at, wrong in seen if at > 1.0)
    for pid in own_service.workers():
        os.kill(pid, signal.SIGKILL)
    assert wait_until_ready(own_service)
    assert first(pay("tx-reborn")) != dead
    rows = own_service.rows("SELECT key, after FROM transitions")
    assert rows == [(dead, "down")]
