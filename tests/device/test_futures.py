"""The light future behaves as the library's, also when threads race."""

from __future__ import annotations

import asyncio
import concurrent.futures as library
import threading
import time
from typing import Any

import pytest

from shoal.device.container.futures import RunFuture


@pytest.fixture(params=[RunFuture, library.Future])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_result_is_there_for_all_who_ask(make: Any) -> None:
    future = make()
    assert not future.done()
    assert not future.cancelled()
    assert not future.running()
    with pytest.raises(library.TimeoutError):
        future.result(timeout=0.01)
    future.set_result(5)
    assert future.done()
    assert (future.result(), future.result(timeout=0)) == (5, 5)
    assert future.exception() is None
    with pytest.raises(library.InvalidStateError):
        future.set_result(6)
    assert not future.cancel()
    assert "finished" in repr(future)


def test_a_result_set_before_anybody_looks(make: Any) -> None:
    future = make()
    future.set_result(None)
    assert future.done()
    assert future.result() is None
    with pytest.raises(library.InvalidStateError):
        future.set_result(1)


def test_callbacks_come_before_and_after(make: Any) -> None:
    seen: list[str] = []
    future = make()
    future.add_done_callback(lambda one: seen.append(f"before {one.result()}"))
    future.set_result(1)
    future.add_done_callback(lambda one: seen.append(f"after {one.result()}"))
    assert seen == ["before 1", "after 1"]


def test_cancelling(make: Any) -> None:
    future = make()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    with pytest.raises(library.InvalidStateError):
        future.set_result(1)
    with pytest.raises(library.CancelledError):
        future.result()


def test_an_exception_is_raised(make: Any) -> None:
    future = make()
    future.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        future.result()
    assert isinstance(future.exception(), KeyError)


def test_waiting_for_many(make: Any) -> None:
    futures = [make() for _ in range(5)]
    threading.Timer(0.05, lambda: [one.set_result(n) for n, one in enumerate(futures)]).start()
    assert {one.result() for one in library.as_completed(futures, timeout=10)} == set(range(5))
    done, left = library.wait(futures, timeout=10)
    assert (len(done), len(left)) == (5, 0)


def test_it_can_be_awaited(make: Any) -> None:
    async def main() -> int:
        future = make()
        threading.Timer(0.02, future.set_result, [7]).start()
        return await asyncio.wait_for(asyncio.wrap_future(future), 10)

    assert asyncio.run(main()) == 7


def test_no_attribute_is_made_up() -> None:
    with pytest.raises(AttributeError):
        RunFuture().nothing  # noqa: B018


def test_no_wake_up_is_lost_when_threads_race() -> None:
    """One thread finishes while others begin to wait, call back or cancel."""
    rounds = 3000
    futures: list[RunFuture[int]] = [RunFuture() for _ in range(rounds)]
    got: list[int] = []
    called: list[int] = []
    start = threading.Barrier(4)

    def finish() -> None:
        start.wait()
        for number, future in enumerate(futures):
            future.set_result(number)

    def wait() -> None:
        start.wait()
        got.extend(future.result(timeout=30) for future in futures)

    def call_back() -> None:
        start.wait()
        for future in futures:
            future.add_done_callback(lambda one: called.append(one.result()))

    def look() -> None:
        start.wait()
        for future in futures:
            while not future.done():
                time.sleep(0)

    threads = [threading.Thread(target=one) for one in (finish, wait, call_back, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert got == list(range(rounds))
    assert sorted(called) == list(range(rounds))
