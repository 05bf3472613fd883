"""Linux guests on vhost-user-scsi, under QEMU 7.2 and a newer one (see `guest/vhost*.sh`)."""

import itertools
import os
import signal
import time

from harness import check
from targets import Lun
from vhost_guest import Controller, VhostGuest, installed, newer
from vhost_target import VhostVscsi

MIB = 1 << 20
SIZE = 256 * MIB
GROWN = 384 * MIB
ADDED = 32 * MIB
# What QEMU's device is told besides, one controller each; `guest/vhost-variants.sh` counts on it.
VARIANTS = (
    "num_queues=4,packed=on",
    "num_queues=4,packed=on,event_idx=off,indirect_desc=off",
    "num_queues=4,event_idx=off",
    "num_queues=4,indirect_desc=off",
    "num_queues=4,disable-legacy=on,iommu_platform=on",
    "num_queues=1,disable-modern=on",
    "num_queues=4,in_order=on",
    "num_queues=4,in_order=on,packed=on",
)
VARIABLES = {"SIZE": SIZE, "GROWN": GROWN, "ADDED": ADDED}


def test_qemu_7(lab):
    """File system, 4 queues, hot-plug, resize, resets, reservations over both fabrics."""
    lab.requires_vscsi("vhost-user")
    lab.requires_program("qemu-system-x86_64", "fio", "sg_persist", "sg_reset", "busybox")
    image = lab.image("guest.img", SIZE)
    target = lab.target([Lun(path=image)], make=VhostVscsi)
    _boot(lab, installed(), ["vhost.sh"], target, _requests(target, image))


def test_qemu_11(lab):
    """The same, every way to drive a ring, and a daemon that is killed under I/O."""
    lab.requires_vscsi("vhost-user")
    lab.requires_program("fio", "sg_persist", "sg_reset", "busybox")
    image = lab.image("guest.img", SIZE)
    spare = [Lun(path=lab.image(f"spare-{number}.img", 64 * MIB))
             for number in range(len(VARIANTS))]
    target = lab.target([Lun(path=image)], make=VhostVscsi, spare=spare)
    files = ["vhost.sh", "vhost-variants.sh", "vhost-restart.sh"]
    _boot(lab, newer(), files, target, _requests(target, image))


def test_migration(lab):
    """A guest moves under I/O from one daemon to another one on the same image."""
    lab.requires_vscsi("vhost-user")
    lab.requires_program("fio", "sg_persist", "sg_reset", "busybox")
    image = lab.image("guest.img", SIZE)
    luns = [Lun(path=path, handover=True) for path in (image, lab.image("second.img", 128 * MIB))]
    state = lab.scratch / "state"
    source = lab.target(luns, make=VhostVscsi, state_dir=state)
    destination = lab.target(luns, make=VhostVscsi, state_dir=state)

    def migrate():
        info = guest.migrate([Controller(destination.sockets[0])])
        # Nothing of what follows may come from the old daemon.
        source.check_end(source.stop())
        passes = info["ram"]["dirty-sync-count"]
        check(passes > 2, f"memory was moved in {passes} passes: none while the guest ran")
        return (f"moved in {info['total-time']} ms and {passes} passes,"
                f" stopped for {info['downtime']} ms")

    requests = {**_requests(destination, image), "migrate": migrate}
    guest = VhostGuest(lab, newer(), ["vhost-migrate.sh"], VARIABLES, requests,
                       [Controller(source.sockets[0])])
    guest.run(seconds=300)


def _boot(lab, qemu, files, target, requests):
    options = ["num_queues=4", *VARIANTS]
    controllers = [Controller(*pair) for pair in zip(target.sockets, options)]
    guest = VhostGuest(lab, qemu, files, VARIABLES, requests, controllers)
    requests.update(_restarts(target, guest))
    guest.run(seconds=600)


def _requests(target, image):
    """What a guest may ask for; see `host` in `guest/lib.sh`."""

    def used_bytes():
        os.sync()
        return image.stat().st_blocks * 512

    def add(lun):
        target.control("lun", "add", "--ram", ADDED, "--lun", lun, *of_target)

    def remove(lun):
        target.control("lun", "rm", lun, *of_target)

    def grow():
        target.control("lun", "resize", 0, GROWN, *of_target)

    of_target = ("--target", target.name)
    return {"used-bytes": used_bytes, "add": add, "remove": remove, "grow": grow,
            "iscsi": target.over_iscsi}


def _restarts(target, guest):
    """What a guest may ask for besides: the end of its daemon and a new one."""
    started = 0.0
    # The moment between taking a command and its end is short: it is looked for.
    delays = itertools.cycle((0.001, 0.002, 0.0005, 0.004))

    def kill():
        # Commands pile up, and the daemon dies with the first of them in hand.
        os.kill(target.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(target.pid, signal.SIGCONT)
        time.sleep(next(delays))
        target.kill()
        counts = guest.in_flight()
        return f"{counts['split']} {counts['packed']}"

    def start():
        nonlocal started
        started = time.monotonic()
        target.start(wait=False)

    def moved():
        return round((time.monotonic() - started) * 1000)

    return {"kill": kill, "start": start, "moved": moved}
