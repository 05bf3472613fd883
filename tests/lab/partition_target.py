"""The CRQ server of vmm-glue under a pseries machine: the bridge, and the guest that uses it."""

import os
import pathlib
import socket
import subprocess

import pseries_guest
import qemu11
import targets
from harness import check, wait_until

SLOF = "usr/share/qemu/slof.bin"
BINARY = pathlib.Path(targets.Vscsi.binary).with_name("pseries-bridge")


class PartitionGuest(pseries_guest.PseriesGuest):
    """A machine with a virtual SCSI adapter that the bridge serves.

    It is started stopped; the bridge lets it run. `luns` are paths or "ram=BYTES" by "TARGET:LUN".
    """

    def __init__(self, lab, files, variables, requests, luns, boots, name="", bridge=()):
        self._sockets = {kind: lab.scratch / f"{name}{kind}.sock"
                         for kind in ("gdb", "qtest", "control")}
        self._luns, self._options = luns, bridge
        self._bridge = None
        devices = ["-device", f"spapr-vscsi,reg={pseries_guest.UNIT:#x}", "-S",
                   "-chardev", f"socket,id=gdb,path={self._sockets['gdb']},server=on,wait=off",
                   "-gdb", "chardev:gdb",
                   "-qtest", f"unix:{self._sockets['qtest']},server=on,wait=off",
                   "-qtest-log", "none"]
        own = {"control": self.control, "stats": self.stats, "full": lambda: self.stat("full"),
               "busy": lambda: self.stat("busy")}
        super().__init__(lab, files, variables, {**own, **requests}, devices, boots, name)

    def start(self, *more):
        """Starts the machine and what serves it."""
        machine = super().start(*more)
        for kind in ("gdb", "qtest"):
            wait_until(self._sockets[kind].exists, 30, f"no socket {self._sockets[kind]}")
        with open(self._logs / "bridge.log", "ab") as log:
            self._bridge = subprocess.Popen(
                [str(word) for word in self._bridge_command(machine.pid)], stderr=log,
                stdin=subprocess.DEVNULL)
        return machine

    def _bridge_command(self, pid):
        words = [BINARY, "--gdb", self._sockets["gdb"], "--qtest", self._sockets["qtest"],
                 "--control", self._sockets["control"], "--memory", _memory_of(pid),
                 "--unit", f"{pseries_guest.UNIT:x}", "--kernel", self.image, *self._options]
        for place, disk in self._luns.items():
            words += ["--lun", f"{place}:{disk}"]
        return words

    def control(self, word):
        """Asks the bridge for something."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._sockets["control"]))
            control.sendall(f"{word}\n".encode())
            answer = control.makefile().readline().strip()
        check(not answer.startswith("unknown"), f"the bridge says {answer}")
        return answer

    def stats(self):
        """The server's counters in words."""
        return self.control("stats")

    def stat(self, name):
        """One of them."""
        return dict(word.split("=") for word in self.stats().split())[name]

    def _kill(self):
        super()._kill()
        if self._bridge:
            self._bridge.kill()
            self._bridge.wait()

    def _tail(self):
        log = self._logs / "bridge.log"
        told = log.read_text(errors="replace").splitlines()[-20:] if log.exists() else []
        return [*super()._tail(), *told]


class FirmwareGuest(PartitionGuest):
    """One that SLOF boots from the LUN 0:0, through the same server."""

    def _boot(self):
        return []

    def _bridge_command(self, pid):
        return [*super()._bridge_command(pid), "--firmware", qemu11.tree() / SLOF]


def _memory_of(pid):
    """The file of the machine's memory."""
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("/memfd:memory-backend"):
            return entry
    check(False, "QEMU has no memfd")
