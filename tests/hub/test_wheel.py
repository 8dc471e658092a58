from harness.streams import ListStream

from allim.hub.wheel import Wheel


def test_a_stream_is_due_when_its_slot_has_come_and_once() -> None:
    wheel, stream = Wheel(), ListStream()
    wheel.set(stream, 10.9)

    assert wheel.due(10.74) == []
    assert wheel.due(10.75) == [stream]
    assert wheel.due(11.0) == []


def test_the_longest_due_come_first_however_late_it_is_asked() -> None:
    wheel, first, second, third = Wheel(), ListStream(), ListStream(), ListStream()
    wheel.set(third, 30)
    wheel.set(first, 10)
    wheel.set(second, 20)

    assert wheel.due(25) == [first, second]
    assert wheel.due(1000) == [third]


def test_a_new_deadline_replaces_the_old() -> None:
    wheel, stream = Wheel(), ListStream()
    wheel.set(stream, 10)
    wheel.set(stream, 20)

    assert wheel.due(15) == []
    assert wheel.due(20) == [stream]


def test_a_deadline_may_be_brought_forward() -> None:
    wheel, stream = Wheel(), ListStream()
    wheel.set(stream, 20)
    wheel.set(stream, 10)

    assert wheel.due(10) == [stream]
    assert wheel.due(20) == []


def test_bringing_forward_never_puts_off() -> None:
    wheel, stream = Wheel(), ListStream()
    wheel.bring_forward(stream, 20)
    wheel.bring_forward(stream, 30)
    wheel.bring_forward(stream, 10)

    assert wheel.due(10) == [stream]
    assert wheel.due(30) == []


def test_a_forgotten_stream_is_never_due() -> None:
    wheel, gone, stays = Wheel(), ListStream(), ListStream()
    wheel.set(gone, 10)
    wheel.set(stays, 10)
    wheel.forget(gone)
    wheel.forget(gone)

    assert wheel.due(10) == [stays]


def test_forgetting_one_that_was_never_set_is_harmless() -> None:
    wheel, stream = Wheel(), ListStream()

    wheel.forget(stream)

    assert wheel.due(1e9) == []
