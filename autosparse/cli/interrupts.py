"""Ctrl-C that always arrives."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 0.1  # seconds from one reminder to the next


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt again where it was swallowed.

    Python cannot raise anything out of a finalizer or a weak reference's callback: it reports that as unraisable and
    goes on. And some libraries catch whatever is raised, such as while they try what can be imported. So now and then
    a Ctrl-C falls into a hole, and the command would not stop. Until the block ends it is therefore raised again
    whenever none is under way; ``finally`` clauses are left in peace.

    Does nothing outside of the main thread, and where Ctrl-C is ignored or another's.
    """
    main = threading.current_thread()
    if main is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    heard, done, reminded = threading.Event(), threading.Event(), threading.Event()

    def remind() -> None:
        heard.wait()
        while not done.wait(_AGAIN):
            reminded.set()
            signal.pthread_kill(main.ident or 0, signal.SIGINT)  # wakes it from a system call, too

    def handler(number: int, frame: FrameType | None) -> None:
        if reminded.is_set():
            reminded.clear()
            if done.is_set() or _under_way():
                return
        heard.set()
        signal.default_int_handler(number, frame)

    usual = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            usual(dropped)

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        done.set()
        heard.set()
        reminder.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = usual


def _under_way() -> bool:
    """Whether a KeyboardInterrupt is being handled, such as by a ``finally`` clause, or became another exception."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
