"""Linux's own initiator in a guest: one boot, many steps (see `guest/steps.sh`)."""

import os
import time

import guest
from targets import Chap, Lun

MIB = 1 << 20
SIZE = 256 * MIB
GROWN = 384 * MIB
# Longer than a stop of any daemon takes to be noticed, shorter than the initiator's patience.
OUTAGE_SECONDS = 3


def test_linux_initiator(lab):
    """Discovery, login, digests, CHAP, file system, reservations, growth, restarts, logout."""
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "sg_persist", "busybox")
    image = lab.image("guest.img", SIZE)
    target = lab.target([Lun(path=image)])
    credentials = Chap("guest-user", "guest-secret-1", ("target-user", "target-secret-1"))
    with_chap = lab.target([Lun(size=64 * MIB)], chap=credentials)

    def used_bytes():
        os.sync()
        return image.stat().st_blocks * 512

    def grow():
        if not hasattr(target, "resize"):
            raise NotImplementedError(f"{target.kind} cannot grow a LUN in use")
        target.resize(0, GROWN)
        return GROWN

    def crash():
        target.kill()
        time.sleep(OUTAGE_SECONDS)
        target.start()
        return "killed and started"

    def terminate():
        target.check_end(target.stop())
        time.sleep(OUTAGE_SECONDS)
        target.start()
        return "stopped and started"

    variables = {
        "PORTAL": target.address, "NAME": target.name, "GROWN": GROWN,
        "CHAP_PORTAL": with_chap.address, "USER": credentials.user, "SECRET": credentials.secret,
        "MUTUAL_USER": credentials.mutual[0], "MUTUAL_SECRET": credentials.mutual[1],
    }
    requests = {"used-bytes": used_bytes, "grow": grow, "crash": crash, "terminate": terminate}
    guest.Guest(lab, variables, requests).run(seconds=900)
