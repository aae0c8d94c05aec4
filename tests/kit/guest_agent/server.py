"""A guest agent that serves one key over a Unix socket, as ECI's does.

`GET /vm/metadata?key=spot_termination_time`: 404 with `404 page not found` while the state file is missing or
empty; otherwise 200 with its text in double quotes. Everything else is 404. The file is read at each request, so
writing it schedules a reclamation, and removing it withdraws the reclamation.

Standard library only, one file: it is copied into a ConfigMap and runs in a pod on every spot node.
"""

import argparse
import json
import signal
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SOCKET = "/run/eci-guest-agent.sock"
STATE = "/run/eci-guest-agent/termination"
NOT_FOUND = b"404 page not found"


class Handler(BaseHTTPRequestHandler):
    """One request; `state` is the file that says what is scheduled."""

    protocol_version = "HTTP/1.1"
    state: Path

    def do_GET(self) -> None:
        scheduled = self._scheduled()
        if scheduled is None:
            self._answer(404, "text/plain", NOT_FOUND)
        else:
            self._answer(200, "application/json; charset=utf-8", json.dumps(scheduled).encode())

    def _scheduled(self) -> str | None:
        address = urlsplit(self.path)
        if address.path != "/vm/metadata" or parse_qs(address.query).get("key") != ["spot_termination_time"]:
            return None
        try:
            return self.state.read_text().strip() or None
        except FileNotFoundError:
            return None

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: it is asked every second."""


class Server(socketserver.ThreadingUnixStreamServer):
    """Listens at `socket`, in the place of whatever socket was there before: that one is dead from then on."""

    daemon_threads = True

    def __init__(self, socket: Path, state: Path) -> None:
        new = socket.with_name(socket.name + ".new")
        new.unlink(missing_ok=True)
        super().__init__(str(new), type("BoundHandler", (Handler,), {"state": state}))
        new.chmod(0o666)
        new.rename(socket)


def main() -> None:
    parser = argparse.ArgumentParser(description="A simulated ECI guest agent")
    parser.add_argument("--socket", type=Path, default=Path(SOCKET))
    parser.add_argument("--state", type=Path, default=Path(STATE))
    options = parser.parse_args()
    options.state.parent.mkdir(parents=True, exist_ok=True)
    with Server(options.socket, options.state) as server:
        # As process 1 of a container it gets no signal that it does not ask for.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever()


if __name__ == "__main__":
    main()
