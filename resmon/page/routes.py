"""The page's addresses. Requests change nothing; what they name is looked up and never becomes a path.

    /                     the page; what it shows stands in its query, so that it can be kept and sent
    /api/runs             the runs of this machine; match=, limit=
    /api/run?id=          one run and its figures (answers.Wish)
    /postmortem?id=       the post-mortem of a run that is over
    /runbooks/NAME        a runbook
    /static/...           what the browser needs, under names that change when it does

Whoever serves these tells browsers what holds for every answer (access/door.py), and leaves alone what one has set itself: its
policy, as the post-mortem is a document with one of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from resmon.page import answers as answers_
from resmon.page import runbooks
from resmon.page.answers import Answers, Wish
from resmon.page.listing import Listing
from resmon.page.postmortems import Postmortems
from resmon.page.shared import Shared
from resmon.page.sight import Sights

STATIC = Path(__file__).parent / "static"
PLOTS = Path(__file__).parent.parent / "plots"

# Nothing from elsewhere, no script and no style sheet that stands in a page. plotly sets attributes of style on what it draws.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# A post-mortem is one file; its own policy, which stands in it, lets no script run but those whose digests it names.
POSTMORTEM = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY}
# Threads that read and draw; /metrics has others, in which no page is waited for. Few, as each keeps the memory that it once took.
AT_ONCE = 2
MOST_AWAITED = 8  # post-mortems, which are made one after the other also for who has gone meanwhile
YEAR = "public, max-age=31536000, immutable"

KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


class Page:
    """The page over some directories; `looked_at` says, by the monotonic clock, when somebody last asked for something."""

    def __init__(self, listing: Listing) -> None:
        self._sights = Sights()
        self._answers = Answers(listing, self._sights)
        self._shared = Shared()
        self._postmortems = Postmortems(listing)
        self._threads = ThreadPoolExecutor(AT_ONCE, "page")
        self._patient = ThreadPoolExecutor(1, "postmortem")  # for what may take a minute
        self._awaited = 0  # post-mortems
        self.looked_at = float("-inf")
        self._static: dict[str, tuple[str, bytes, bytes | None]] = {}

    def close(self) -> None:
        for threads in (self._threads, self._patient):
            threads.shutdown(wait=False, cancel_futures=True)
        self._sights.close()
        self._postmortems.close()

    def routes(self) -> list[Route]:
        return [
            Route("/", self._index),
            Route("/api/runs", self._runs),
            Route("/api/run", self._run),
            Route("/postmortem", self._postmortem),
            Route("/runbooks/{name}", self._runbook),
            Route("/static/{name}", self._file),
        ]

    async def _apart(self, function: Callable[[], Any]) -> Any:
        """In one of the page's own threads."""
        self.looked_at = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _index(self, _: Request) -> Response:
        return HTMLResponse(await self._apart(_page), headers=HEADERS | {"cache-control": "no-cache"})

    async def _runs(self, request: Request) -> Response:
        query = request.query_params
        limit = query.get("limit", "")
        most = int(limit) if limit.isascii() and limit.isdecimal() and len(limit) < 9 else answers_.PAGE
        match = query.get("match", "")[:200]
        answer = await self._shared.of((match, most), partial(self._apart, partial(self._answers.runs, match, most)))
        return self._tagged(request, answer)

    async def _run(self, request: Request) -> Response:
        query = request.query_params
        id_, wish = query.get("id", ""), Wish.of(query)
        self.looked_at = time.monotonic()
        answer = await self._shared.of((id_, wish), partial(self._apart, partial(self._answers.run, id_, wish)))
        if answer is None:
            gone = "there is no such run any more: its folder was removed, or renamed, or this machine never had it"
            return JSONResponse({"error": gone}, 404, headers=HEADERS | {"cache-control": "no-store"})
        return self._tagged(request, answer)

    def _tagged(self, request: Request, answer: answers_.Answer) -> Response:
        headers = HEADERS | {"etag": answer.tag, "cache-control": "no-cache", "x-now": f"{answers_.now():.3f}"}
        if request.headers.get("if-none-match") == answer.tag:
            return Response(status_code=304, headers=headers)
        return Response(answer.body, media_type="application/json", headers=headers)

    async def _postmortem(self, request: Request) -> Response:
        if self._awaited >= MOST_AWAITED:
            headers = HEADERS | {"retry-after": "60", "cache-control": "no-store"}
            return PlainTextResponse("too many post-mortems are being made; try again in a minute\n", 503, headers=headers)
        wanted = partial(self._postmortems.page, request.query_params.get("id", ""))
        self._awaited += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._patient, wanted)
        finally:
            self._awaited -= 1
        if isinstance(made, str):
            return PlainTextResponse(f"{made}\n", 404, headers=HEADERS)
        return HTMLResponse(made, headers=HEADERS | {"content-security-policy": POSTMORTEM, "cache-control": "no-cache"})

    async def _runbook(self, request: Request) -> Response:
        text = await self._apart(partial(runbooks.page, request.path_params["name"]))
        if text is None:
            return PlainTextResponse("there is no such runbook\n", 404, headers=HEADERS)
        return HTMLResponse(text, headers=HEADERS)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            found = await self._apart(partial(_static, name))
            if found is None:
                return PlainTextResponse("there is no such file\n", 404, headers=HEADERS)
            self._static[name] = found
        kind, body, packed = self._static[name]
        headers = HEADERS | {"cache-control": YEAR if name.startswith("plotly-") else "no-cache", "vary": "accept-encoding"}
        headers["etag"] = f'"{hashlib.blake2b(packed or body, digest_size=12).hexdigest()}"'
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, headers=headers | {"content-encoding": "gzip", "content-type": kind})
        return Response(gzip.decompress(packed) if packed is not None else body, headers=headers | {"content-type": kind})


@cache
def _page() -> str:
    text = (STATIC / "page.html").read_text(encoding="utf-8")
    # Style sheets that plotly.js writes into the page, unless they are there: those of maps, which nobody draws here.
    ids = re.findall(r'getElementById\("([0-9a-f]{64})"\)', _plotly().read_text(encoding="utf-8"))
    return text.replace("{plotly}", _version()).replace("{ids}", "".join(f'<template id="{each}"></template>' for each in ids))


def _plotly() -> Path:
    """plotly.js as the package plotly brings it, without importing that."""
    spec = find_spec("plotly")
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec is not None else Path()
    return folder / "package_data" / "plotly.min.js"


def _version() -> str:
    """The name under which plotly.js is served: it changes with the file, so that browsers may keep it."""
    found = _plotly().stat()
    return f"plotly-{hashlib.sha256(f'{found.st_size} {found.st_mtime_ns}'.encode()).hexdigest()[:12]}.js"


def _static(name: str) -> tuple[str, bytes, bytes | None] | None:
    """Kind, content and, of what is large, the packed content only."""
    if name == _version():
        # Five megabytes, of which a third is sent and kept.
        return KINDS[".js"], b"", gzip.compress(_plotly().read_bytes(), 6)
    files = {path.name: path for folder in (STATIC, PLOTS) for path in folder.iterdir() if path.suffix in KINDS}
    path = files.get(name)
    return None if path is None else (KINDS[path.suffix], path.read_bytes(), None)
