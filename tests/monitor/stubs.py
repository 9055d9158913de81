"""What alert tests share: a service on this machine that may be down, and rows of transitions."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from smartrouter.feedback.tables import TRANSITIONS

NOON = 1_767_268_800.0  # 1 January 2026, 12:00 UTC


class Stub:
    """Takes JSON while `up`, and remembers what it took and what it refused."""

    def __init__(self):
        self.up, self.took, self.refused = True, [], []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (stub.took if stub.up else stub.refused).append(said)
                self.send_response(202 if stub.up else 503)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def change(
    store,
    after,
    at=0.0,
    before="up",
    key="WORLDPAY",
    incident=None,
    why="technical alarm",
    closes=False,
    merchant="volaris",
    **evidence,
):
    """Write a transition, `at` seconds after noon."""
    incident = f"{key}@{NOON:.3f}" if incident is None else incident
    row = {"merchant_id": merchant, "key": key, "incident": incident, "before": before, "after": after}
    row |= {"why": why, "at": NOON + at, "evidence": json.dumps(evidence), "closes": closes}
    with store.engine.begin() as connection:
        connection.execute(TRANSITIONS.insert(), row)
