"""A Linux guest whose disks come over vhost-user-scsi, under QEMU 7.2 or a newer one."""

import dataclasses
import os
import pathlib
import time

import guest
import qemu11
from harness import Failed, check_equal
from qmp import Qmp

# Where the first controller sits on the PCI bus; the others follow.
FIRST_SLOT = 0x10
# QEMU's usual entries in a queue; six queues of a split ring take this much to log.
QUEUE_SIZE = 128
BIGGEST_SPLIT = 6 * 2112


@dataclasses.dataclass(frozen=True)
class Controller:
    """One virtio-scsi device: the backend's socket and more options of QEMU's device."""

    socket: pathlib.Path
    options: str = "num_queues=4"


@dataclasses.dataclass(frozen=True)
class Qemu:
    """Which QEMU, how it spells that the backend's socket is tried again, and what it boots."""

    words: tuple[str, ...]
    env: dict
    reconnect: str
    kernel: guest.Kernel


def installed():
    """QEMU and kernel of the release that runs here: 7.2 and 6.1 on Debian 12.

    Before 8.2 a socket that is tried again is not there yet when the device wants it.
    """
    return Qemu(("qemu-system-x86_64",), {}, "", guest.kernel())


def newer():
    """Both of trixie-backports: a QEMU that survives the end of its backend, a kernel that uses
    rings in order."""
    return Qemu(tuple(qemu11.command()), qemu11.environment(), ",reconnect-ms=200",
                guest.newer_kernel())


class VhostGuest(guest.Guest):
    """Guest memory is shared with the backend, and every machine has a QMP socket."""

    # Memory that only the backend writes must not be cleared by the guest's CPUs first: they tell
    # QEMU by that what has to move with the guest.
    BOOT_OPTIONS = "init_on_alloc=0"
    CPUS = 4
    MEBIBYTES = 768

    def __init__(self, lab, qemu, files, variables, requests, controllers):
        self._qemu_kind = qemu
        self._controllers = controllers
        memory = f"memory-backend-memfd,id=memory,size={self.MEBIBYTES}M,share=on"
        super().__init__(lab, ["vhost-lib.sh", *files], variables, requests,
                         ["-object", memory], machine=",memory-backend=memory",
                         qemu=qemu.words, env=qemu.env, boots=qemu.kernel)

    def start(self, *more):
        """Starts a machine on the controllers' sockets as they are now."""
        words = ["-qmp", f"unix:{self._qmp_path(len(self._running))},server=on,wait=off"]
        for number, controller in enumerate(self._controllers):
            words += ["-chardev", f"socket,id=c{number},path={controller.socket}"
                      + self._qemu_kind.reconnect, "-device",
                      f"vhost-user-scsi-pci,id=v{number},chardev=c{number},"
                      f"addr={FIRST_SLOT + number:#x},{controller.options}"]
        return super().start(*words, *more)

    def migrate(self, controllers, seconds=120):
        """Moves the running guest to a new machine on other sockets; returns what QEMU says."""
        socket = self._lab.scratch / f"migration-{len(self._running)}.sock"
        source = Qmp(self._qmp_path(len(self._running) - 1))
        self._controllers = controllers
        self.start("-incoming", f"unix:{socket}")
        # The destination listens once its devices have found their backends.
        Qmp(self._qmp_path(len(self._running) - 1)).close()
        # Slow enough for the guest to write and read while its memory moves.
        source.execute("migrate-set-parameters", max_bandwidth=100 << 20, downtime_limit=200)
        source.execute("migrate", uri=f"unix:{socket}")
        deadline = time.monotonic() + seconds
        ends = ("completed", "failed")
        while (info := source.execute("query-migrate")).get("status") not in ends:
            if time.monotonic() > deadline:
                raise Failed(f"the migration takes longer than {seconds} s: {info}")
            time.sleep(0.05)
        check_equal(info["status"], "completed", f"the migration ({info.get('error-desc', '')})")
        source.execute("quit")
        source.close()
        return info

    def in_flight(self):
        """How many commands the regions say to be in flight, on split rings and on packed ones."""
        counts = {"split": 0, "packed": 0}
        for link in pathlib.Path(f"/proc/{self._running[-1].pid}/fd").iterdir():
            try:
                region = (os.readlink(link).startswith("/memfd:vscsi-inflight")
                          and link.read_bytes())
            except FileNotFoundError:  # closed since: a connection
                continue
            if not region:
                continue
            # Of each queue (vhost-user specification, "Inflight I/O tracking"): a header and
            # the entries, each with its mark in the first byte.
            kind, header, entry = ("packed", 32, 32) if len(region) > BIGGEST_SPLIT else (
                "split", 16, 16)
            part = -(-(header + entry * QUEUE_SIZE) // 64) * 64
            for start in range(2 * part, len(region), part):
                entries = region[start + header:start + header + entry * QUEUE_SIZE]
                counts[kind] += sum(entries[::entry])
        return counts

    def _qmp_path(self, number):
        return self._lab.scratch / f"qmp-{number}.sock"
