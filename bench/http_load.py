"""A load generator cheap enough to share two cores with the server it measures: one process, raw sockets, epoll.

    python -m bench.http_load http://127.0.0.1:8000/api/v1/ml/predict --body payment.json --in-flight 20 --seconds 15
    python -m bench.http_load http://127.0.0.1:8000/api/v1/ml/predict --body payment.json --rate 345 --seconds 15

In the closed loop a connection sends its next request when its answer has come. At a steady rate requests are due at
fixed times whatever the server does, and latency counts from when a request was due, so a stall is charged to every
request that it delayed. `{id}` in the body is replaced by a growing number.
"""

import argparse
import errno
import json
import re
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
MOST_CONNECTIONS = 400

Requests = Iterator[bytes]  # whole HTTP/1.1 requests, ready to send


@dataclass(frozen=True)
class Report:
    """What one run saw; latencies in ms."""

    requests: int
    seconds: float
    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int]  # HTTP status, or what went wrong on the wire
    errors: int  # anything but the expected status
    generator_us: float  # CPU of this generator a request


class Connection:
    """One keep-alive connection with at most one request on its way."""

    __slots__ = ("buffer", "due", "need", "sock")

    def __init__(self, address: tuple[str, int]):
        self.sock = socket.create_connection(address, timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.buffer, self.need, self.due = b"", 0, 0.0

    def send(self, request: bytes, due: float) -> None:
        """Send a request; ours fit into the socket's buffer, so this does not block."""
        self.buffer, self.need, self.due = b"", 0, due
        sent = self.sock.send(request)
        while sent < len(request):
            select.select([], [self.sock], [], 1.0)
            sent += self.sock.send(request[sent:])

    def receive(self) -> bytes | None:
        """The whole answer once it is there, else None; raises ConnectionError when the server closed."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError("closed")
        self.buffer = self.buffer + data if self.buffer else data
        if not self.need:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            found = LENGTH.search(self.buffer, 0, end)
            self.need = end + 4 + (int(found.group(1)) if found else 0)
        return self.buffer if len(self.buffer) >= self.need else None


class Load:
    """One run against one address."""

    def __init__(
        self,
        address: tuple[str, int],
        requests: Requests,
        expect: int = 200,  # any other status counts as an error
        seen: Callable[[bytes], None] | None = None,  # gets every expected answer
    ):
        self.address, self.requests, self.seen = address, requests, seen
        self.expect = str(expect).encode()
        self.latencies, self.statuses = array("d"), Counter[str]()
        self.poll = select.epoll()
        self.busy: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()

    def open(self) -> Connection:
        """A new idle connection."""
        connection = Connection(self.address)
        self.poll.register(connection.sock.fileno(), select.EPOLLIN)
        return connection

    def reopen(self) -> bool:
        """Send on a new connection in place of a broken one; False when the server takes none now."""
        try:
            self.start(self.open(), time.perf_counter())
        except OSError:
            self.statuses["refused"] += 1
            time.sleep(0.01)
            return False
        return True

    def start(self, connection: Connection, due: float) -> None:
        """Send the next request on an idle connection."""
        try:
            connection.send(next(self.requests), due)
            self.busy[connection.sock.fileno()] = connection
        except OSError as error:
            self.fail(connection, error)

    def fail(self, connection: Connection, error: OSError) -> None:
        """Count a broken connection."""
        self.statuses[errno.errorcode.get(error.errno or 0, type(error).__name__)] += 1
        self.busy.pop(connection.sock.fileno(), None)
        self.poll.unregister(connection.sock.fileno())
        connection.sock.close()

    def collect(self, timeout: float) -> list[Connection]:
        """Wait for answers; return the connections that are idle again."""
        done = []
        for descriptor, _ in self.poll.poll(timeout):
            connection = self.busy.get(descriptor)
            if connection is None:
                continue
            try:
                answer = connection.receive()
            except OSError as error:
                self.fail(connection, error)
                continue
            if answer is None:
                continue
            self.latencies.append((time.perf_counter() - connection.due) * 1000)
            status = answer[9:12]
            self.statuses[status.decode()] += 1
            if status == self.expect and self.seen is not None:
                self.seen(answer)
            del self.busy[descriptor]
            done.append(connection)
        return done

    def finish(self, started: float, cpu: float) -> Report:
        """Wait for what is on its way, close and sum up."""
        limit = time.perf_counter() + 10
        while self.busy and time.perf_counter() < limit:
            self.collect(0.05)
        self.statuses["no answer"] += len(self.busy)
        seconds = time.perf_counter() - started
        for connection in [*self.busy.values(), *self.idle]:
            connection.sock.close()
        self.poll.close()
        ordered = sorted(self.latencies)
        count = len(ordered)
        p50, p95, p99 = (ordered[min(int(count * q), count - 1)] if count else 0.0 for q in (0.50, 0.95, 0.99))
        good = self.statuses[self.expect.decode()]
        statuses = {name: n for name, n in self.statuses.items() if n}
        return Report(
            requests=count,
            seconds=round(seconds, 2),
            rps=round(count / seconds, 1),
            p50_ms=round(p50, 2),
            p95_ms=round(p95, 2),
            p99_ms=round(p99, 2),
            max_ms=round(ordered[-1], 2) if count else 0.0,
            statuses=statuses,
            errors=sum(statuses.values()) - good,
            generator_us=round((time.process_time() - cpu) / max(count, 1) * 1e6, 1),
        )


def closed_loop(load: Load, in_flight: int, seconds: float) -> Report:
    """Keep `in_flight` requests on their way for `seconds`."""
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(in_flight):
        load.start(load.open(), time.perf_counter())
    end = started + seconds
    while time.perf_counter() < end:
        for connection in load.collect(0.1):
            load.start(connection, time.perf_counter())
        while len(load.busy) < in_flight and load.reopen():  # replace what broke
            pass
    return load.finish(started, cpu)


def steady(load: Load, rate: float, seconds: float, warm: int = 20) -> Report:
    """Send `rate` requests a second, evenly, for `seconds`, over as many connections as it takes."""
    load.idle.extend(load.open() for _ in range(warm))
    started, cpu = time.perf_counter(), time.process_time()
    sent, total = 0, int(rate * seconds)
    while sent < total:
        due = started + sent / rate
        wait = due - time.perf_counter()
        if wait > 0:
            load.idle.extend(load.collect(wait if wait > 0.0005 else 0.0))
            continue
        if not load.idle and len(load.busy) < MOST_CONNECTIONS:
            load.idle.append(load.open())
        if load.idle:
            load.start(load.idle.popleft(), due)
            sent += 1
        else:
            load.idle.extend(load.collect(0.01))
    return load.finish(started, cpu)


def post(url: str, bodies: list[bytes], headers: dict[str, str] | None = None, first: int = 0) -> Requests:
    """Endless POST requests; `{id}` in a body becomes a number of 12 digits."""
    parts = urlsplit(url)
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    ready = []
    for body in bodies:
        before, mark, after = body.partition(b"{id}")
        length = len(before) + len(after) + (12 if mark else 0)
        head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n{extra}\r\n"
        )
        ready.append((head.encode() + before, bool(mark), after))
    number = first
    while True:
        head, mark, after = ready[number % len(ready)]
        yield b"%s%012d%s" % (head, number, after) if mark else head + after
        number += 1


def get(url: str) -> Requests:
    """Endless GET requests."""
    parts = urlsplit(url)
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    while True:
        yield request


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def main() -> None:
    """Parse the command line and print a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, help="JSON file; without one: GET")
    parser.add_argument("--key", default="", help="X-API-Key")
    parser.add_argument("--in-flight", type=int, default=20)
    parser.add_argument("--rate", type=float, help="steady rate instead of the closed loop")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--first", type=int, default=int(time.time()), help="first number for {id}")
    options = parser.parse_args()
    headers = {"X-API-Key": options.key} if options.key else {}
    bodies = [options.body.read_bytes()] if options.body else []
    requests = post(options.url, bodies, headers, options.first) if bodies else get(options.url)
    load = Load(address_of(options.url), requests)
    if options.rate:
        report = steady(load, options.rate, options.seconds)
    else:
        report = closed_loop(load, options.in_flight, options.seconds)
    print(json.dumps(report.__dict__, indent=1))


if __name__ == "__main__":
    main()
