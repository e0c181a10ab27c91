"""Ctrl-C that always arrives."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LATER = 0.02  # seconds, by when the callback that swallowed the interrupt has returned


def _interrupt() -> None:
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # wakes it from a system call, too


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt again where Python drops it.

    Python cannot raise anything out of a finalizer or a weak reference's callback: it reports that as unraisable and
    goes on. Libraries run so many of them that now and then a Ctrl-C falls into one, and the command would not stop.
    """
    usual = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            usual(dropped)
            return
        again = threading.Timer(_LATER, _interrupt)  # at once, it would be raised in here and dropped again
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual
