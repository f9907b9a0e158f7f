"""The check mixed into an ordinary service: it tells, and never hurts."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from shoal.cloud.middleware import ReleaseMiddleware
from shoal.cloud.plans import CohortPlan, PlanTable
from shoal.cloud.problems import Problem
from shoal.core.errors import InputError
from shoal.wire.codes import ErrorCode
from shoal.wire.notices import DesiredTask, FileRef
from shoal.wire.profile import format_profile_header, profile_digest


def shop() -> Starlette:
    async def pieces():
        for piece in ("a", "b", "c"):
            yield piece

    async def broken(_):
        raise RuntimeError("the shop's own defect")

    return Starlette(
        routes=[
            Route("/", lambda _: PlainTextResponse("hello", headers={"x-own": "1"})),
            Route("/stream", lambda _: StreamingResponse(pieces())),
            Route("/broken", broken),
        ]
    )


def get(app, path: str = "/", **headers: str) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            return await client.get(path, headers=named)

    return asyncio.run(go())


def test_a_request_with_both_headers_gets_the_notice() -> None:
    ref = FileRef(sha256=bytes(32), size=1, path="p")
    table = PlanTable()
    table.rebuild(
        [CohortPlan(cohort=3, epoch=9, base=[DesiredTask(task="t", version=2, package=ref)])], 9
    )
    app = ReleaseMiddleware(
        shop(),
        lambda profile, token: (
            None
            if (found := table.check(profile.decode(), token.decode())) is None
            else ".".join(map(str, found))
        ),
    )
    behind = format_profile_header(1, 3, profile_digest([("t", 1)]))
    settled = format_profile_header(9, 3, profile_digest([("t", 2)]))
    device = "ab" * 16
    for path, text in (("/", "hello"), ("/stream", "abc")):
        answer = get(app, path, Shoal_Profile=behind, Shoal_Device=device)
        assert answer.headers["shoal-notice"] == "9.3.0" and answer.text == text
        answer = get(app, path, Shoal_Profile=settled, Shoal_Device=device)
        assert "shoal-notice" not in answer.headers and answer.text == text
    assert get(app, "/", Shoal_Profile=behind, Shoal_Device=device).headers["x-own"] == "1"


@pytest.mark.parametrize(
    "error",
    [
        Problem(ErrorCode.UNAUTHENTICATED, "forged"),
        InputError("malformed"),
        RuntimeError("a defect of ours"),
    ],
)
def test_whatever_the_check_does_the_business_request_goes_on(error: Exception) -> None:
    def check(profile: bytes, token: bytes) -> str | None:
        raise error

    app = ReleaseMiddleware(shop(), check)
    answer = get(app, "/", Shoal_Profile="x", Shoal_Device="y")
    assert answer.status_code == 200 and answer.text == "hello"
    assert "shoal-notice" not in answer.headers
    assert app.failed == {type(error).__name__: 1}


def test_requests_without_both_headers_are_not_checked() -> None:
    asked: list[bytes] = []
    app = ReleaseMiddleware(shop(), lambda profile, token: asked.append(profile))
    for headers in ({}, {"Shoal_Profile": "x"}, {"Shoal_Device": "y"}):
        assert get(app, "/", **headers).text == "hello"
    assert asked == []
    assert get(app, "/missing").status_code == 404


def test_the_shops_own_errors_stay_its_own() -> None:
    app = ReleaseMiddleware(shop(), lambda profile, token: "1.1.0")
    answer = get(app, "/broken", Shoal_Profile="x", Shoal_Device="y")
    assert answer.status_code == 500 and answer.headers["shoal-notice"] == "1.1.0"


def test_it_mounts_without_the_rest_of_the_cloud() -> None:
    code = (
        "import sys, shoal.cloud.middleware\n"
        "print(sorted({'sqlalchemy', 'litestar', 'tuf', 'celpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
