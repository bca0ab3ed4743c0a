"""A plug-in whose members fail in a test longer than the training, each in its way, while a file `bad` is beside it."""

import ctypes
import os
import sys
import time
from pathlib import Path

from pezoo import Encoding, UserError, register

HERE = Path(__file__).parent


def _member(name, act):
    class Member(Encoding):
        def embed(self, x, positions):
            if x.shape[1] > 16 and (HERE / "bad").exists():
                act()
            return x

    register(name, title="Fails in a long test")(Member)


def _throw(error):
    raise error


def _recurse():
    _recurse()


def _print():
    print("x" * 100_000)
    os.write(1, b"{\n" * 100_000)


_member("raises", lambda: _throw(ValueError("a bug")))
_member("recurses", _recurse)
_member("mistaken", lambda: _throw(UserError("my mistake")))
_member("interrupts", lambda: _throw(KeyboardInterrupt()))
_member("leaves", lambda: sys.exit(3))
_member("gone", lambda: os._exit(7))
_member("aborts", os.abort)
_member("crashes", lambda: ctypes.string_at(0))
_member("hungry", lambda: _throw(MemoryError("no room")))
_member("hangs", lambda: time.sleep(3600))
_member("prints", _print)
