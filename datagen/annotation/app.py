"""The web application: the page, the next prompt of an annotator, and one request to save a judgement."""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from datagen.annotation.journal import Journal, Stale, name_of, read_judgement
from datagen.annotation.prompts import Prompt
from engine.base.errors import UserError
from engine.base.record_fields import BadField, text_of

PAGE_DIR = Path(__file__).parent / "page"
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/keys.js": "keys.js"}
MAX_BODY_BYTES = 8 << 20
_HEADERS = {
    # Nothing is loaded from elsewhere, whatever an answer holds.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Annotation:
    """Serves prompts to annotators, and saves what they judge."""

    def __init__(self, prompts: Sequence[Prompt], journal: Journal, seed: int, api_key: str | None = None):
        self._prompts, self._journal, self._seed, self._api_key = prompts, journal, seed, api_key
        self._index_of = {prompt.key: index for index, prompt in enumerate(prompts)}

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY_BYTES)
        app.add_routes([web.get(path, self._file) for path in FILES])
        app.add_routes([web.get("/api/prompt", self._prompt), web.post("/api/judge", self._judge)])
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler) -> web.StreamResponse:
        """Check the key of requests for data, and turn errors into {"error": sentence}."""
        try:
            if request.path.startswith("/api/") and not self._has_key(request):
                response = _error(401, "this address needs its key: open the whole link that annotate.py printed")
            else:
                response = await handler(request)
        except BadField as bad:
            response = _error(400, str(bad))
        except OSError as error:
            response = _error(507, f"the judgement was not saved ({error.strerror}): free some disk space, try again")
        except web.HTTPException as error:
            response = _error(error.status, f"{request.method} {request.path[:100]}: {error.reason}")
        response.headers.update(_HEADERS)
        return response

    def _has_key(self, request: web.Request) -> bool:
        given = request.headers.get("X-Key", "").encode("utf-8", "surrogateescape")
        return self._api_key is None or hmac.compare_digest(given, self._api_key.encode())

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE_DIR / FILES[request.path])

    async def _prompt(self, request: web.Request) -> web.Response:
        """Answer the prompt `at` (from 0), or the first that the annotator has not judged after it (`after`)."""
        annotator = name_of(request.query.get("annotator"))
        if "at" in request.query:
            return self._state(annotator, _number(request.query["at"], len(self._prompts)))
        start = _number(request.query.get("after", "-1"), len(self._prompts)) + 1
        order = [*range(start, len(self._prompts)), *range(start)]
        waiting = (i for i in order if not self._journal.revision(annotator, self._prompts[i].key))
        return self._state(annotator, next(waiting, None))

    async def _judge(self, request: web.Request) -> web.Response:
        """Save a judgement. 409 with the saved one if the page did not know of it: another tab was faster."""
        if request.content_type != "application/json":  # a page of another site cannot send this type unasked
            return _error(415, "send application/json")
        try:
            row = json.loads(await request.read())
        except ValueError:
            return _error(400, "the body is not JSON")
        if not isinstance(row, dict):
            return _error(400, "the body is not an object")
        index = self._index_of.get(text_of("'key'", row.get("key"), empty_is_allowed=False))
        if index is None:
            return _error(404, "this prompt is not in the file any more: load the page again")
        judgement = read_judgement(row, self._prompts[index].answers)
        try:
            self._journal.add(judgement)
        except Stale:
            return self._state(judgement.annotator, index, status=409)
        return self._state(judgement.annotator, index)

    def _state(self, annotator: str, index: int | None, status: int = 200) -> web.Response:
        """Answer a prompt as the annotator sees it, with the last judgement; only the progress if all are judged."""
        done = sum(bool(self._journal.revision(annotator, prompt.key)) for prompt in self._prompts)
        state: dict[str, Any] = {"annotator": annotator, "done": done, "total": len(self._prompts), "at": index}
        if index is not None:
            prompt = self._prompts[index]
            shown = prompt.order(annotator, self._seed)
            state |= {
                "key": prompt.key,
                "id": prompt.id,
                "turns": [turn.message for turn in prompt.turns],
                "shown": shown,
                "answers": [prompt.answers[k] for k in shown],
                "revision": self._journal.revision(annotator, prompt.key),
            }
            if last := self._journal.last.get((annotator, prompt.key)):
                ranks = [last.ranks[k] for k in shown] if last.ranks else None
                edits = [last.edits.get(k) for k in shown]
                state["judgement"] = {"kind": last.kind, "ranks": ranks, "edits": edits, "note": last.note}
        return web.json_response(state, status=status)


def _number(text: str, total: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise BadField(f"{text[:20]!r} is no number of a prompt") from None
    return min(max(number, -1), total - 1)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def check_page() -> None:
    """Raise UserError if the page's files are missing, as in a copy without its data files."""
    for name in FILES.values():
        if not (PAGE_DIR / name).is_file():
            raise UserError(f"{PAGE_DIR / name} is missing: install the package again")
