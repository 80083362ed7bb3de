"""A thread that works behind: order, bounded memory, and no error that goes unnoticed."""

import threading
import time

import pytest

from masp.runtime.background import Background


def test_everything_is_done_in_order():
    done = []
    background = Background(done.append, depth=3)
    for item in range(200):
        background.put(item)
    background.close()
    assert done == list(range(200))


def test_no_more_than_depth_wait():
    gate, taken = threading.Semaphore(0), []
    background = Background(lambda item: (gate.acquire(), taken.append(item)), depth=2)
    for item in range(3):  # one in hand, two waiting
        background.put(item)
    late = threading.Thread(target=background.put, args=(3,))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    gate.release()
    late.join(5)
    assert not late.is_alive() and taken == [0]
    gate.release(4)
    background.close()
    assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [1, 5])
def test_an_error_reaches_whoever_hands_over_items(depth):
    done = []

    def work(item):
        if item == 2:
            raise OSError("full")
        done.append(item)

    background = Background(work, depth)
    with pytest.raises(OSError, match="full"):
        for item in range(1000):
            background.put(item)
            time.sleep(0.001)
    assert done == [0, 1]  # nothing after the failure
    with pytest.raises(OSError, match="full"):
        background.close()
    background.stop(drop=True)


def test_stopping_drops_what_waits_or_does_it():
    for drop, expected in ((True, [0]), (False, [0, 1, 2])):
        gate, done = threading.Event(), []
        background = Background(lambda item, gate=gate, done=done: (gate.wait(), done.append(item)), depth=5)
        for item in range(3):
            background.put(item)
        time.sleep(0.05)
        threading.Timer(0.05, gate.set).start()
        background.stop(drop=drop)
        assert done == expected
        background.stop(drop=True)  # a second time does nothing
