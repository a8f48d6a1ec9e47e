"""A W&B service on loopback that knows as much of the real one's API as a run needs. Nothing leaves the machine."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "1", "entity": "someone", "username": "someone", "email": "a@example.org", "flags": "{}"}
VIEWER |= {"teams": {"edges": []}}


class Service:
    """What a project holds: runs by id, each with its history, summary, config and how it ended.

    Args:
        status: the answer to every request instead, e.g. 401.
        silent: take requests and never answer.
    """

    def __init__(self, status: int = 200, silent: bool = False) -> None:
        self.status, self.silent = status, silent
        self.runs: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.requests = 0
        self.url = ""
        self.over = threading.Event()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            name = variables["name"]
            run = self.runs.setdefault(name, {"history": [], "summary": {}, "exit": [], "attempts": 0})
            run["attempts"] += 1
            run |= {key: value for key, value in variables.items() if value is not None}
            bucket = {"id": name, "name": name, "displayName": name, "description": None, "config": "{}"}
            bucket |= {"sweepName": None, "historyLineCount": len(run["history"])}
            bucket["project"] = {"id": "p", "name": variables["project"], "entity": {"id": "1", "name": "someone"}}
            return {"upsertBucket": {"bucket": bucket, "inserted": run["attempts"] == 1}}
        if "RunResumeStatus" in query:
            return {"model": self._resumed(self.runs.get(variables["name"]), variables)}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "ArtifactType" in query:
            return {"project": {"artifact": {"artifactType": {"name": "run_table"}}}}
        if "CreateArtifact " in query:
            given = variables["input"]
            self.artifacts.append(given)
            sequence = {"id": "s", "latestArtifact": None}
            kept = {"id": str(len(self.artifacts)), "state": "COMMITTED", "digest": given["digest"]}
            return {"createArtifact": {"artifact": kept | {"artifactSequence": sequence}}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": "7"}}
        if "GetProjects" in query:
            page = {"endCursor": None, "hasNextPage": False}
            node = {"id": "p", "name": "cl-run", "entityName": "someone", "createdAt": "", "isBenchmark": False}
            node |= {"entity": {"id": "1", "name": "someone"}, "user": None}
            return {"models": {"edges": [{"node": node, "cursor": ""}], "pageInfo": page}}
        if "upsertView" in query:
            self.reports.append(variables)
            project = {"id": "p", "name": "cl-run", "entityName": "someone"}
            view = {"id": "r", "name": variables["name"], "displayName": variables["displayName"], "project": project}
            view |= {"type": "runs", "description": variables["description"], "spec": variables["spec"], "user": None}
            view |= {"updatedAt": "2026-01-01T00:00:00Z", "createdAt": "2026-01-01T00:00:00Z", "previewUrl": None}
            view |= {"entityName": "someone", "coverUrl": None}
            return {"upsertView": {"view": view, "inserted": True}}
        if "Viewer" in query:
            return {"viewer": VIEWER}
        self.unknown.append(query.split("(")[0].strip())
        return {}

    def _resumed(self, run: dict[str, Any] | None, variables: dict[str, Any]) -> dict[str, Any]:
        model = {"id": "p", "name": variables["project"], "entity": {"id": "1", "name": "someone"}, "bucket": None}
        if run is not None:
            model["bucket"] = {
                "id": variables["name"], "name": variables["name"], "summaryMetrics": json.dumps(run["summary"]),
                "displayName": variables["name"], "logLineCount": 0, "historyLineCount": len(run["history"]),
                "eventsLineCount": 0, "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
                "eventsTail": "[]", "config": run.get("config", "{}"), "tags": [], "notes": None,
                "wandbConfig": '{"t": 1}',
            }  # fmt: skip
        return model

    def file_stream(self, run_id: str, content: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(run_id, {"history": [], "summary": {}, "exit": [], "attempts": 0})
        for name, chunk in (content.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if name.endswith(("jsonl", "json")) else []
            if name == "wandb-history.jsonl":
                run["history"][chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run["summary"] |= lines[-1]
        if content.get("complete"):
            run["exit"].append(content.get("exitcode"))
        return {}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service.requests += 1
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if service.silent:
                    service.over.wait(60)
                    return
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                answer: dict[str, Any] = {}
                if service.status != 200:
                    answer = {"errors": [{"message": "user is not logged in"}]}
                elif self.path == "/graphql":
                    asked = json.loads(body)
                    answer = {"data": service.graphql(asked["query"], asked.get("variables") or {})}
                elif self.path.endswith("/file_stream"):
                    answer = service.file_stream(self.path.split("/")[-2], json.loads(body))
                content = json.dumps(answer).encode()
                self.send_response(service.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Runs the service; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), service.handler())
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield service.url
    finally:
        service.over.set()
        server.shutdown()
        server.server_close()
