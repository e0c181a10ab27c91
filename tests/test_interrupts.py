"""A Ctrl-C that falls into a finalizer or a weak reference's callback still stops the command."""

from __future__ import annotations

import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from autosparse.cli.interrupts import interrupts_kept


class Thing:
    pass


class Final:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def in_a_callback() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def in_a_finalizer() -> None:
    Final()


@pytest.fixture
def _heard() -> Iterator[None]:
    """Ctrl-C is not ignored, as a shell's background jobs hand on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("interrupted", [in_a_callback, in_a_finalizer])
def test_an_interrupt_that_python_drops_is_raised_again(interrupted: Callable[[], None]) -> None:
    def work() -> None:
        with interrupts_kept():
            interrupted()
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_other_exceptions_that_python_drops_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("of a finalizer")

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(str(dropped.exc_value)))
    with interrupts_kept():
        Broken()
    assert reported == ["of a finalizer"]
