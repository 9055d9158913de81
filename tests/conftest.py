"""What every test shares: a clean environment and one small simulated warehouse a session."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["PLOTLY_RENDERER"] = "json"  # figures are built and serialised, no browser is opened
for _name in [name for name in os.environ if name.startswith("SMARTROUTER_")]:
    del os.environ[_name]  # a developer's own settings must not change what the tests see

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("house")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with warehouse.duckdb and truth/ of a simulated merchant: 12,000 attempts in 40 days."""
    from smartrouter.world.publish import build

    folder = tmp_path_factory.mktemp("world")
    files = {"merchant_file": ROOT / "params/merchants/volaris.yaml", "world_file": ROOT / "params/world/volaris.yaml"}
    build(folder / "warehouse.duckdb", folder / "truth", days=40, attempts=12_000, seed=7, **files)
    return folder


@pytest.fixture(scope="session")
def small_warehouse(small_world: Path) -> str:
    """The URL of the small simulated warehouse."""
    return f"duckdb:///{small_world / 'warehouse.duckdb'}"


class RedisServer:
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
        while self.process.poll() is None and not self.answers():
            time.sleep(0.01)
        return self

    def answers(self):
        """Whether it takes commands; its socket is there some time before."""
        from redis import ConnectionError

        client = self.client()
        try:
            return client.ping()
        except ConnectionError:
            return False
        finally:
            client.close()

    def client(self):
        """A client of it."""
        from redis import Redis

        return Redis.from_url(self.url, decode_responses=True)

    def stop(self):
        """Kill it, as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_of_all(tmp_path_factory):
    """One server a session, emptied by whoever uses it."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_of_all):
    """The URL of an empty Redis."""
    client = redis_of_all.client()
    client.flushall()
    client.close()
    return redis_of_all.url


@pytest.fixture
def redis_server(tmp_path):
    """A server of the test's own."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path).start()
    yield server
    if server.process.poll() is None:
        server.stop()


POSTGRES = Path("/usr/lib/postgresql")  # where Debian's package puts its programs, by version


class PostgresServer:
    """A PostgreSQL of our own on a free port of 127.0.0.1, which keeps nothing."""

    def __init__(self, programs):
        self.programs, self.folder = programs, Path(tempfile.mkdtemp(prefix="smartrouter-postgres-"))
        self.user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://tests@127.0.0.1:{self.port}/postgres"
        self.process = None

    def start(self):
        """Make an empty cluster and start it."""
        if self.user:
            shutil.chown(self.folder, self.user)
        place = ["-D", str(self.folder / "data")]
        made = ["-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        quiet = {"user": self.user, "cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([self.programs / "initdb", *place, *made], check=True, **quiet)
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen([self.programs / "postgres", *place, *given], **quiet)
        while self.process.poll() is None and not self.answers():
            time.sleep(0.05)
        return self

    def answers(self):
        """Whether it takes connections."""
        import psycopg

        try:
            psycopg.connect(self.url.replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            return False
        return True

    def empty(self):
        """Drop all tables."""
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def stop(self):
        """End it, whoever is connected."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def postgres_of_all():
    """One server a session, emptied by whoever uses it."""
    found = sorted(POSTGRES.glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(found[-1].parent)
    try:
        yield server.start()
    finally:  # also where the start fails half way
        server.stop()


@pytest.fixture
def empty_store(request, tmp_path):
    """The URL of an empty database: empty_store("sqlite") or empty_store("postgresql")."""

    def find(kind):
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'store.db'}"
        server = request.getfixturevalue("postgres_of_all")
        server.empty()
        return server.url

    return find


@pytest.fixture
def open_store():
    """Bring a database to this release and open it; closed at the end."""
    from smartrouter.feedback.store import Store, upgrade

    made = []

    def open_at(url):
        upgrade(url)
        made.append(Store(url))
        return made[-1]

    yield open_at
    for store in made:
        store.close()
