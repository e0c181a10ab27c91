"""A Ctrl-C that something swallows still stops the command."""

from __future__ import annotations

import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


def in_a_library_that_tries_things() -> None:
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _heard() -> Iterator[None]:
    """Ctrl-C is not ignored, as a shell's background jobs hand on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("interrupted", [in_a_callback, in_a_finalizer, in_a_library_that_tries_things])
def test_an_interrupt_that_is_swallowed_is_raised_again(interrupted: Callable[[], None]) -> None:
    def work() -> None:
        with interrupts_kept():
            interrupted()
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.usefixtures("_heard")
def test_what_an_interrupt_leaves_to_tidy_up_is_not_interrupted() -> None:
    tidied = []

    @contextmanager
    def tidy(name: str) -> Iterator[None]:
        try:
            yield
        finally:
            time.sleep(0.3)
            tidied.append(name)

    def work() -> None:
        with interrupts_kept(), tidy("outer"), tidy("inner"):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise RuntimeError("what a library makes of it") from error

    with pytest.raises(RuntimeError):
        work()
    assert tidied == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_heard")
def test_an_impatient_second_interrupt_is_raised_at_once() -> None:
    def work() -> None:
        with interrupts_kept():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_exceptions_that_python_drops_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("of a finalizer")

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(str(dropped.exc_value)))
    with interrupts_kept():
        Broken()
    assert reported == ["of a finalizer"]
