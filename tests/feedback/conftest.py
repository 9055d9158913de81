"""A real Redis for the tests of what is shared between hosts."""

import shutil
import subprocess
import time

import pytest
import redis


class Server:
    """A redis-server of our own behind a socket, which can be stopped and started again."""

    def __init__(self, folder):
        self.folder, self.socket = folder, folder / "redis.sock"
        self.url, self.process = f"unix://{self.socket}", None

    def start(self):
        """Start it; what its append-only file holds is there again."""
        self.socket.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)
        client.close()
        return self

    def stop(self):
        """Kill it, as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_of_all(tmp_path_factory):
    """One server a session, emptied by whoever uses it."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_of_all):
    """The URL of an empty Redis."""
    client = redis.Redis.from_url(redis_of_all.url)
    client.flushall()
    client.close()
    return redis_of_all.url


@pytest.fixture
def redis_server(tmp_path):
    """A server of the test's own."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    server = Server(tmp_path).start()
    yield server
    if server.process.poll() is None:
        server.stop()
