"""The bus: order, slow listeners, waking."""

from __future__ import annotations

import threading

from shoal.cloud.bus import Bus


def test_topics_and_order() -> None:
    bus = Bus()
    with bus.subscribe(["a"]) as only_a, bus.subscribe() as everything:
        for number in range(5):
            bus.publish("ab"[number % 2], {"n": number})
        assert [m.payload["n"] for m in only_a.drain()] == [0, 2, 4]
        assert [m.seq for m in everything.drain()] == [1, 2, 3, 4, 5]


def test_a_slow_listener_loses_the_oldest_and_it_is_counted() -> None:
    bus = Bus()
    slow = bus.subscribe(maxsize=3)
    for number in range(10):
        bus.publish("t", {"n": number})
    assert [m.payload["n"] for m in slow.drain()] == [7, 8, 9]
    assert slow.dropped == 7


def test_get_waits_wakes_and_times_out() -> None:
    bus = Bus()
    listener = bus.subscribe()
    assert listener.get(timeout=0) is None
    threading.Timer(0.05, bus.publish, ("t", {"x": 1})).start()
    message = listener.get(timeout=10)
    assert message is not None and message.payload == {"x": 1}
    threading.Timer(0.05, listener.close).start()
    assert listener.get(timeout=10) is None
    bus.publish("t", {})
    assert listener.drain() == []


def test_every_listener_sees_one_order_under_threads() -> None:
    bus = Bus()
    listeners = [bus.subscribe(maxsize=10_000) for _ in range(3)]
    rang: list[int] = []
    loud = bus.subscribe(["t"], notify=lambda: rang.append(1))

    def work(who: int) -> None:
        for number in range(200):
            bus.publish("t", {"who": who, "n": number})

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [[m.seq for m in listener.drain()] for listener in listeners]
    assert seen[0] == seen[1] == seen[2] == list(range(1, 801))
    assert len(rang) == 800 == len(loud.drain())


def test_a_listener_that_cannot_be_woken_does_not_hurt_the_publisher() -> None:
    bus = Bus()

    def broken() -> None:
        raise RuntimeError("Event loop is closed")

    bus.subscribe(notify=broken)
    healthy = bus.subscribe()
    bus.publish("t", {"n": 1})
    bus.publish("t", {"n": 2})
    assert [m.payload["n"] for m in healthy.drain()] == [1, 2]
    assert len(bus._subscriptions) == 1
