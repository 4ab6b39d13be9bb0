"""A run's protection: from another process in its directory, and from signals half-way."""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pronk.errors import UserError
from pronk.storage.files import cannot_write

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTING = 3.0  # seconds that a start may take from one `check_signals` to the next
RETRY = 0.1  # seconds after which an interrupt that was lost is repeated


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock the run's directory; raises UserError if another process trains in it."""
    try:
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise cannot_write(run_dir, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in '{run_dir}'; wait for it, or give another"
                " --run-dir."
            ) from None
        yield


class Signals:
    """Holds back SIGINT, SIGTERM and SIGHUP, so that what was learnt can be saved.

    number: the first one that came; 0 if none did. patience: seconds after which it raises
    KeyboardInterrupt in the main thread; None: never. A second SIGINT raises it in any case.

    An exception raised by a handler can get lost, in a callback of the garbage collector for
    example, or end the process, in code of JAX that expects none. Therefore the code that starts a
    run calls `check` between its steps; only if it has not for `patience` seconds is
    KeyboardInterrupt raised without it.
    """

    def __init__(self, patience: float | None = None):
        self.number = 0
        self.patience = patience
        self.ending = False
        self._noticed = False  # by whoever asked, or by an exception
        self._handlers: dict[int, Any] = {}
        self._hook: Any = None

    def install(self) -> None:
        """Handle the signals; SIGHUP and SIGTERM only where they were not ignored, as by nohup."""
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN or number == signal.SIGINT:  # `&` in a script ignores it
                self._handlers[number] = before
                signal.signal(number, self._handle)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable

    def uninstall(self) -> None:
        """Restore the handlers from before."""
        self.patience = None
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = self._hook

    def is_set(self) -> bool:
        """Whether a signal has come."""
        self._noticed = self.number != 0
        return self._noticed

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come. Takes back handlers that a library has set:
        Ray does when it is imported, and JAX where several learners meet."""
        for number in self._handlers:
            signal.signal(number, self._handle)
        if self.is_set():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def within(self, patience: float | None) -> Iterator[None]:
        """Another patience within the context."""
        before, self.patience = self.patience, patience
        try:
            if patience == 0:
                self.check()
            yield
        finally:
            self.patience = before

    def end(self) -> None:
        """There is nothing left to do but to end the process: a further signal ends it at once."""
        self.patience, self.ending = None, True

    def deliver(self) -> None:
        """Hand the signal that came to the handler from before, which may raise; the default one
        of SIGTERM and SIGHUP is SystemExit, so that the program's own `finally` is executed."""
        if not self.number:
            return
        handler = self._handlers[self.number]
        if callable(handler):
            handler(self.number, None)
        elif self.number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + self.number)

    def _handle(self, number: int, _: Any) -> None:
        again, self.number = self.number != 0, self.number or number
        if number == signal.SIGHUP:
            _leave_terminal()
        if again and self.ending:
            os._exit(128 + self.number)
        if (again and number == signal.SIGINT) or self.patience == 0:
            self._noticed = True
            raise KeyboardInterrupt
        if not again and self.patience is not None:
            _thread.start_new_thread(self._insist, (self.patience,))

    def _insist(self, seconds: float) -> None:
        time.sleep(seconds)
        if self.patience is not None and not self._noticed:
            # As a second SIGINT, which also ends a wait, as `_thread.interrupt_main` does not.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _unraisable(self, unraisable: Any) -> None:
        """Repeat a KeyboardInterrupt that was lost."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt) and self.number:
            self._noticed = False
            _thread.start_new_thread(self._insist, (RETRY,))
        else:
            self._hook(unraisable)


def _leave_terminal() -> None:
    """What is printed from now on goes nowhere, if the terminal is gone."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if device and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


_active: Signals | None = None


def handle_signals() -> Signals:
    """Hold back signals until the process ends, as a command does before it imports anything
    heavy."""
    global _active
    if _active is None:
        _active = Signals(STARTING)
        _active.install()
    return _active


@contextlib.contextmanager
def catch_signals() -> Iterator[Signals]:
    """Hold back signals within the context; then the program's own handlers get the one that came,
    by default as KeyboardInterrupt or SystemExit.

    Within a command, or within another such context, that one handles the signals. In threads other
    than the main one, signals are left alone.
    """
    global _active
    if threading.current_thread() is not threading.main_thread():
        yield Signals()
        return
    if _active is not None:
        with _active.within(None):
            yield _active
        if _active.patience == 0:
            _active.check()
        return
    _active = signals = Signals()
    signals.install()
    error: BaseException | None = None
    try:
        yield signals
    except BaseException as raised:
        error = raised
        raise
    finally:
        _active = None
        signals.uninstall()
        if not (signals.number == signal.SIGINT and isinstance(error, KeyboardInterrupt)):
            signals.deliver()


def run_command(run: Callable[[], None], *, saves: bool, own_process: bool) -> None:
    """Call `run`; KeyboardInterrupt becomes a message and an exit status.

    saves: whether `run` saves after a signal; otherwise it ends at once. own_process: whether the
    process does nothing else, so that its signals are handled until it ends.
    """
    signals = handle_signals() if own_process else Signals()
    try:
        with signals.within(STARTING if saves else 0):
            run()
    except KeyboardInterrupt:
        signals.end()
        print("pronk: interrupted", file=sys.stderr)
        status = 128 + (signals.number or signal.SIGINT)
        if own_process:
            _exit_now(status)
        sys.exit(status)
    finally:
        signals.end()


def _exit_now(status: int) -> NoReturn:
    """End the process without the interpreter's own end, in which threads that compute or compile
    would abort it. Processes and memory are released with their contexts before."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def check_signals() -> None:
    """Raise KeyboardInterrupt if a signal has come. Called between the steps of a start, while
    there is nothing to save."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.check()
