"""As much of a W&B server as an online run needs, on this machine's loopback."""

import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """What a W&B server was told.

    Args:
        dies_after: pieces of a run's stream after which it fails whatever is asked.

    Attributes:
        url: where it listens.
        runs: the variables of each ``UpsertBucket``, by run name.
        streamed: the lines of each file that was streamed, by file name.
        exit_codes: those that ended a stream.
        preempted: whether a run has said that it is being preempted.
        operations: names of the queries, in their order.
        views: the variables of each ``upsertView``: reports.
        sweep: the configuration of the sweep, YAML.
        points: what the agent of the sweep is told to run, parameters by name, one run each.
    """

    def __init__(self, dies_after: float = math.inf) -> None:
        self.dies_after = dies_after
        self.runs: dict[str, dict[str, Any]] = {}
        self.streamed: dict[str, list[Any]] = {}
        self.exit_codes: list[int] = []
        self.preempted = False
        self.operations: list[str] = []
        self.views: list[dict[str, Any]] = []
        self.sweep = ""
        self.points: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                # W&B also posts bodies that are not JSON: counts of its own use.
                content = json.loads(body) if body.strip().startswith(b"{") else {}
                self._answer(server.answer(self.path, content))

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self._answer({})

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(200 if server.dies_after >= 0 else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def listening(self) -> Iterator["WandbServer"]:
        """Answers while the context lasts."""
        thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answers a GraphQL query or a piece of a run's stream."""
        if "file_stream" in path:
            self.dies_after -= 1
            for name, chunk in (body.get("files") or {}).items():
                self.streamed.setdefault(name, []).extend(map(json.loads, _json(chunk["content"])))
            self.preempted |= bool(body.get("preempting"))
            if body.get("complete"):
                self.exit_codes.append(body.get("exitcode", 0))
            return {}
        query, variables = body.get("query", ""), body.get("variables") or {}
        found = re.search(r"(?:query|mutation) (\w+)", query)
        operation = found.group(1) if found else ""
        self.operations.append(operation)
        return {"data": self._data(operation, variables)}

    def _data(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], {})
            run.update({k: v for k, v in variables.items() if v is not None})
            project = {"name": variables.get("project"), "entity": {"name": "team"}}
            bucket = {
                "id": "cnVu",
                "name": variables["name"],
                "displayName": variables.get("displayName"),
                "description": None,
                "config": variables.get("config"),
                "sweepName": None,
                "historyLineCount": 0,
                "project": project,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{name}"}
                for name in variables.get("files", [])
            ]
            return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {
                "viewer": {
                    "id": "dXNlcg",
                    "entity": "team",
                    "username": "user",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "ProjectInternalId":
            return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
        if operation == "GetProjects":
            page = {"endCursor": "", "hasNextPage": False}
            return {"models": {"edges": [], "pageInfo": page}}
        if operation == "upsertView":
            self.views.append(variables)
            project = {"id": "cHJv", "name": variables["projectName"], "entityName": "team"}
            known = ("name", "displayName", "description", "spec")
            view = {"id": "dmlldw", "project": project, **{key: variables[key] for key in known}}
            return {"upsertView": {"view": view, "inserted": True}}
        return self._of_a_sweep(operation, variables)

    def _of_a_sweep(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertSweep":
            self.sweep = variables["config"]
            project = {"id": "cHJv", "name": variables["projectName"], "entity": {"name": "team"}}
            sweep = {"name": "sweep1", "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            return {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "YWdlbnQ"}}}
        if operation == "Heartbeat":
            is_running = any(json.loads(variables["runState"]).values())
            commands = json.dumps([] if is_running else [self._next()])
            return {"agentHeartbeat": {"agent": {"id": "YWdlbnQ"}, "commands": commands}}
        return {}

    def _next(self) -> dict[str, Any]:
        """A run after the other, and then the end."""
        if not self.points:
            return {"type": "exit"}
        point = {name: {"value": value} for name, value in self.points.pop(0).items()}
        run_id = f"point{len(self.points)}"
        return {"type": "run", "run_id": run_id, "program": "cli.py", "args": point}


def _json(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("{")]
