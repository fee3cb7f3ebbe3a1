"""A Hugging Face hub on loopback that has one data set, for `datasets` to load by its name."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

COMMIT = "a" * 40


class Hub:
    """Serves the files below `folder` as the data set `name`, inside `with`. requests: `GET /path` of each."""

    refusal = 404, "EntryNotFound"
    """What it says of what it does not give."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                found = hub.answer(self.path)
                self.send_response(hub.refusal[0] if found is None else 200)
                data, headers = found or (b"", {"X-Error-Code": hub.refusal[1]})
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, address: str) -> tuple[bytes, dict[str, str]] | None:
        """Content and headers; None for what is not there."""
        path, _, query = address.partition("?")
        about = f"/api/datasets/{self.name}"
        if path == about or path.startswith(f"{about}/revision/"):
            return self._json(
                {
                    "id": self.name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
                    "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in self._files()],
                }
            )  # fmt: skip
        if path.startswith(f"{about}/tree/"):
            _, _, inside = path.removeprefix(f"{about}/tree/").partition("/")
            found = self._tree(f"{inside}/" if inside else "", recursive="recursive=true" in query.lower())
            return self._json(found) if found or not inside else None
        if path.startswith(f"/datasets/{self.name}/resolve/"):
            _, _, inside = path.removeprefix(f"/datasets/{self.name}/resolve/").partition("/")
            if inside in self._files():
                data = (self.folder / inside).read_bytes()
                return data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return None

    def _files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def _tree(self, prefix: str, *, recursive: bool) -> list[dict[str, object]]:
        names = [name for name in self._files() if name.startswith(prefix)]
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in names if "/" in name[len(prefix) :]}
        files = [name for name in names if recursive or "/" not in name[len(prefix) :]]
        return [
            *({"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)),
            *({"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
              for name in files),
        ]  # fmt: skip

    def _json(self, value: object) -> tuple[bytes, dict[str, str]]:
        return json.dumps(value).encode(), {"Content-Type": "application/json"}
