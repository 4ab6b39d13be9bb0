"""Starts child processes that end when the program tells them to, and not by a signal."""

from __future__ import annotations

import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(process: BaseProcess) -> None:
    """Start a process in which signals wait until it calls `receive_signals`, or
    `leave_signals_to_parent`: a terminal sends Ctrl-C to all processes.

    They are blocked, not ignored: one that comes meanwhile is not lost.
    """
    resource_tracker.ensure_running()  # it unblocks them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive_signals() -> None:
    """Receive signals, those that came since the process was started included."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def leave_signals_to_parent() -> None:
    """Do nothing on signals; but programs and processes that this one starts end by them as usual.

    Hence handlers: an ignored signal is ignored by every program that is started, too.
    """
    for number in SIGNALS:
        signal.signal(number, _do_nothing)
    os.register_at_fork(after_in_child=_restore_handlers)
    receive_signals()


def _do_nothing(number: int, frame: Any) -> None:
    pass


def _restore_handlers() -> None:
    """In a forked process, which has inherited the handlers."""
    for number in SIGNALS:
        if signal.getsignal(number) is _do_nothing:
            usual = signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
            signal.signal(number, usual)
