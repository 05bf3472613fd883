"""Watches a target while a test mistreats it.

`Guard` keeps another session reading and writing on a LUN of its own and, at the end, checks that
this session noticed nothing, that the daemon lives, and that its memory and log stayed small.
"""

import random
import struct
import threading
import time

from harness import check
from initiator import Closed, Session

MIB = 1 << 20
BUSY = 0x08
# Answers of BUSY in a row that are taken.
MOST_BUSY = 1000


class Guard:
    """A context manager around the mistreatment. The last LUN of the target is the bystander's."""

    # Longest time that one of the bystander's commands may take on a busy machine of two cores.
    STALL_SECONDS = 5.0

    def __init__(self, target, *, memory=64 * MIB, log=256 << 10):
        self._target = target
        self._memory_limit = memory
        self._log_limit = log
        self._lun = target.lun_number(len(target.luns) - 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._error = None
        self._longest = 0.0
        self.commands = 0
        self.peak_growth = 0

    def __enter__(self):
        self._session = Session(self._target, initiator="iqn.2026-11.net.example:bystander")
        self._session.clear_attentions(self._lun)
        self._memory = self._target.resident_bytes()
        self._log = len(self._target.log())
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self._stop.set()
        self._thread.join(30)
        if kind is not None:
            return
        check(self._target.alive(), f"the target died:\n{self._target.log()[-2000:]}")
        self.note_memory()
        check(self._error is None, f"the bystander's I/O was disturbed: {self._error}")
        check(self.commands > 0, "the bystander got nothing done")
        check(self._longest < self.STALL_SECONDS,
              f"the bystander waited {self._longest:.1f} s for a command")
        check(self.peak_growth < self._memory_limit,
              f"memory grew by {self.peak_growth >> 20} MiB, more than {self._memory_limit >> 20}")
        grown = len(self._target.log()) - self._log
        check(grown < self._log_limit, f"the log grew by {grown} bytes")
        # The door is still open for those who behave.
        with Session(self._target) as fresh:
            check(fresh.login_status == 0, f"login refused afterwards: {fresh.login_status:#06x}")
            fresh.clear_attentions(self._lun)
            check(fresh.read(self._lun, 0, 1).status == 0, "a fresh session cannot read")

    def note_memory(self):
        """Records how much the daemon grew; called at the moments when it may be largest."""
        growth = self._target.resident_bytes() - self._memory
        self.peak_growth = max(self.peak_growth, growth)

    def _work(self):
        dice = random.Random(1)
        busy = 0
        try:
            while not self._stop.is_set():
                lba = dice.randrange(0, 8192)
                pattern = struct.pack(">Q", self.commands) * 512
                started = time.monotonic()
                written = self._session.write(self._lun, lba, pattern)
                back = self._session.read(self._lun, lba, 8)
                self._longest = max(self._longest, time.monotonic() - started)
                # A random CDB can reach this LUN and, with NACA set, establish an ACA condition,
                # which ends with its session.
                busy = busy + 1 if BUSY in (written.status, back.status) else 0
                if 0 < busy < MOST_BUSY:
                    continue
                if written.status or back.status or back.data != pattern:
                    self._error = (f"LBA {lba}: write status {written.status:#x}, "
                                   f"read status {back.status:#x} sense {back.sense_key:#08x}")
                    return
                self.commands += 2
                time.sleep(0.002)
        except (Closed, Exception) as error:  # whatever it is, it is what the test looks for
            self._error = repr(error)
