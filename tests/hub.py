"""A stand-in for the Hugging Face Hub on this machine: one person's repositories, as its client asks for them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest

TOKEN = "hf_secretsecretsecret"


class Hub:
    """What the stand-in has and was asked.

    Attributes:
        files: contents by their names, by the repository.
        private: whether a repository is.
        forbidden: repositories that nobody may write to.
        asked: method and path of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.forbidden: set[str] = set()
        self.asked: list[str] = []


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: object, status: int = 200, **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, status: int, code: str = "") -> None:
            self.answer({"error": "no"}, status, **({"X_Error_Code": code} if code else {}))

        def handle_one(self) -> None:
            path = unquote(urlparse(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked.append(f"{self.command} {path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.refuse(401)
            elif path == "/api/whoami-v2":
                self.answer({"name": "me", "type": "user", "orgs": [], "auth": {}})
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in hub.forbidden:
                    return self.refuse(403)
                if name in hub.files:
                    return self.refuse(409)
                hub.private[name] = bool(asked.get("private", asked.get("visibility") == "private"))
                hub.files[name] = {".gitattributes": b""}
                self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
            elif path.startswith("/api/models/"):
                self.of_repository("/".join(path.split("/")[3:5]), path.split("/")[5:], body)
            else:
                name, _, file = path[1:].partition("/resolve/main/")
                content = hub.files.get(name, {}).get(file)
                if content is None:
                    return self.refuse(404, "EntryNotFound" if name in hub.files else "RepoNotFound")
                tag = hashlib.sha1(content).hexdigest()
                self.answer(content, ETag=f'"{tag}"', X_Repo_Commit="0" * 40)
            return None

        def of_repository(self, name: str, rest: list[str], body: bytes) -> None:
            if name not in hub.files:
                self.refuse(404, "RepoNotFound")
            elif rest[:1] == ["preupload"]:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self.answer({"files": modes})
            elif rest[:1] == ["commit"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"
                self.answer({"commitUrl": url, "commitOid": "0" * 40})
            else:
                siblings = [{"rfilename": file} for file in hub.files[name]]
                known = {"_id": "1", "id": name, "modelId": name, "private": hub.private[name], "sha": "0" * 40}
                self.answer({**known, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

        do_GET = do_HEAD = do_POST = handle_one

    return Handler


@contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """The Hub of this process, inside; somebody is logged in, and what is downloaded lies in `home`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
