"""The workbench's routes: JSON in and out, pictures by their numbers, files that are sent in.

A client sends a path to open a folder, to look for one or to send files into it, and it is judged as everywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kohya_gui.parts.folders import Refused
from kohya_gui.workbench import told
from kohya_gui.workbench.arrival import Arrival
from kohya_gui.workbench.bench import Bench
from kohya_gui.workbench.remedies import Remedies
from kohya_gui.workbench.tasks import MOST_MASK, Tasks
from kohya_gui.workbench.told import Said
from kohya_gui.workbench.workbench import Answer, Closed, Conflict, Workbench
from trainer.config import in_labels
from trainer.ground.errors import DataError, TrainerError
from trainer.workbench.thumbnails import Shown, Thumbnails, view

MOST_BODY = 8 << 20
"""Bytes of a request's document."""

AT_ONCE = 2
"""Pictures that are made small at the same time: more would take the processor from the training."""

REFUSED, GONE, CLASHED, TOO_MUCH = 400, 404, 409, 413

_KEPT = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
_NEW = {"Cache-Control": "no-store"}


class Routes:
    """Answers requests for a workbench."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        remedies, self._tasks = Remedies(workbench), Tasks(workbench)
        tasks = self._tasks
        self._thumbnails = Thumbnails()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._general: Mapping[str, Callable[[Said], Answer]] = {
            "state": lambda said: workbench.state(told.text(said, "path")),
            "open": lambda said: workbench.open(told.text(said, "path")),
            "errand": lambda said: workbench.errands.standing.to_json(),
            "stop": self._stop,
            "browse": self._browse,
        }
        self._of_folder: Mapping[str, Callable[[Bench, Said], Answer]] = {
            "about": lambda bench, said: workbench.about(bench),
            "again": lambda bench, said: workbench.look_again(bench),
            "view": lambda bench, said: {"ids": bench.view(told.wanted(said))},
            "rows": lambda bench, said: {"rows": bench.rows(said.get("ids"))},
            "named": lambda bench, said: {"id": bench.named(told.whole(said, "folder"), told.text(said, "name"))},
            "tags": lambda bench, said: bench.tag_page(told.text(said, "find"), told.whole(said, "most") or 60),
            "caption": workbench.write_caption,
            "preview": workbench.preview,
            "plan": workbench.plan_page,
            "apply": workbench.apply,
            "drop": workbench.drop,
            "undo": workbench.undo,
            "redo": workbench.redo,
            "history": workbench.history,
            "settle": workbench.settle,
            "remark": workbench.remark,
            "use": workbench.use,
            "search": remedies.search,
            "findings": remedies.findings,
            "remedy": remedies.remedy,
            "captioners": tasks.captioners,
            "captioned": tasks.caption,
            "folder": tasks.rename_folder,
        }

    def routes(self) -> list[Route]:
        """Return them for the server."""
        return [
            Route("/workbench/upload", self._upload, methods=["POST"]),
            Route("/workbench/{act}", self._answer, methods=["POST"]),
            Route("/workbench/{token}/{act}", self._answer, methods=["POST"]),
            Route("/workbench/{token}/mask/{number:int}", self._mask, methods=["POST"]),
            Route("/workbench/{token}/{kind}/{number:int}", self._picture),
        ]

    # --- documents --------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Response:
        """Answer POST workbench/ACT and workbench/TOKEN/ACT with what the act returns, or with why it is refused."""
        body = await _body(request, MOST_BODY)
        if body is None:
            return _refused("This is too much for one request.", TOO_MUCH)
        return await run_in_threadpool(self._answered, dict(request.path_params), body)

    def _answered(self, asked: Mapping[str, str], body: bytes) -> Response:
        try:
            said = json.loads(body or b"{}")
            if not isinstance(said, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return _refused("This request is none of the page's own.", REFUSED)
        return _answer_with(lambda: self._do(asked, said))

    # --- what is sent -----------------------------------------------------------------------------------------------

    async def _mask(self, request: Request) -> Response:
        """Answer POST workbench/TOKEN/mask/NUMBER: the body is the mask as PNG, or nothing to take it away."""
        body, asked = await _body(request, MOST_MASK), request.path_params
        if body is None:
            return _refused("The mask is too large.", TOO_MUCH)

        def write() -> Answer:
            return self._tasks.write_mask(self._workbench.bench(asked["token"]), asked["number"], body)

        return await run_in_threadpool(_answer_with, write)

    async def _upload(self, request: Request) -> Response:
        """Answer POST workbench/upload?into=FOLDER&name=NAME: the body is a file."""
        into, name = (request.query_params.get(each, "") for each in ("into", "name"))
        arrival = await run_in_threadpool(self._begin, into)
        if isinstance(arrival, Response):
            return arrival
        try:
            async for part in request.stream():
                await run_in_threadpool(arrival.take, part)
            return await run_in_threadpool(lambda: _answer_with(lambda: arrival.end(name)))
        except DataError as refusal:
            return _refused(str(refusal), TOO_MUCH)
        except ClientDisconnect:
            return _refused("It was given up on the way.", REFUSED)
        finally:
            await run_in_threadpool(arrival.close)

    def _begin(self, into: str) -> Arrival | Response:
        try:
            return Arrival(self._workbench.folders, into)
        except (Refused, TrainerError) as refusal:
            return _refused(str(refusal), REFUSED)

    # --- acts -------------------------------------------------------------------------------------------------------

    def _do(self, asked: Mapping[str, str], said: Said) -> Answer:
        if "token" in asked:
            bench, act = self._workbench.bench(asked["token"]), self._of_folder.get(asked["act"])
            if act:
                return act(bench, said)
        elif general := self._general.get(asked["act"]):
            return general(said)
        raise DataError("There is no such thing in the workbench.", "Reload the page.")

    def _stop(self, said: Said) -> Answer:
        self._workbench.errands.stop()
        return self._workbench.errands.standing.to_json()

    def _browse(self, said: Said) -> Answer:
        """Return what lies in a folder that may be seen, to choose one."""
        folders = self._workbench.folders
        listing = folders.listing(str(folders.nearest(told.text(said, "at"))))
        return {
            "path": str(listing.path),
            "parent": str(listing.parent) if listing.parent else "",
            "folders": [{"name": name, "path": str(listing.path / name)} for name in listing.folders],
            "roots": [{"name": root.name or str(root), "path": str(root)} for root in folders.roots],
            "more": listing.more,
        }

    # --- pictures ---------------------------------------------------------------------------------------------------

    async def _picture(self, request: Request) -> Response:
        """Answer GET workbench/TOKEN/small/NUMBER, large/NUMBER and mask/NUMBER."""
        asked = dict(request.path_params)
        kinds: Mapping[str, Callable[[Bench, int], Shown]] = {
            "small": lambda bench, number: self._thumbnails.of(bench.entry(number).picture),
            "large": lambda bench, number: view(bench.entry(number).picture),
            "mask": self._tasks.read_mask,
        }
        make = kinds.get(asked["kind"])
        if make is None:
            return Response("There is no such picture.", GONE)

        def made() -> Shown:
            return make(self._workbench.bench(asked["token"]), asked["number"])

        try:
            async with self._room:
                if await request.is_disconnected():  # scrolled past meanwhile
                    return Response(status_code=GONE)
                shown = await run_in_threadpool(made)
        except TrainerError:
            return Response("The picture cannot be read.", GONE)
        kept = _NEW if asked["kind"] == "mask" else _KEPT
        return Response(shown.body, media_type=shown.media_type, headers=kept)


async def _body(request: Request, most: int) -> bytes | None:
    """Return what a request holds, None where that is more than `most` bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def _answer_with(act: Callable[[], Answer]) -> Response:
    """Return the answer of an act, or why it is refused."""
    try:
        return JSONResponse(act(), headers=_NEW)
    except Conflict as conflict:
        return JSONResponse({"refused": str(conflict), "row": conflict.row}, CLASHED, headers=_NEW)
    except Closed as closed:
        return JSONResponse({"refused": str(closed), "closed": True}, GONE, headers=_NEW)
    except (Refused, TrainerError) as refusal:
        return _refused(in_labels(str(refusal)), REFUSED)


def _refused(words: str, status: int) -> Response:
    return JSONResponse({"refused": words}, status, headers=_NEW)
