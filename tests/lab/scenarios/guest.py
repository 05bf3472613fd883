"""Linux's own initiator in a guest: one boot, many steps (see `guest/iscsi.sh`)."""

import os
import time

import guest
import qemu
from targets import Chap, Lun

MIB = 1 << 20
SIZE = 256 * MIB
GROWN = 384 * MIB
# Longer than a stop of any daemon takes to be noticed, shorter than the initiator's patience.
OUTAGE_SECONDS = 3


def test_linux_initiator(lab):
    """Discovery, login, digests, CHAP, file system, reservations, growth, restarts; then QEMU's."""
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

    for_qemu = lab.target([Lun(size=64 * MIB), Lun(path=lab.image("passed.img", 64 * MIB))])
    no_qemu_disks = qemu.no_iscsi_in_system()
    devices = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]
    if not no_qemu_disks:
        devices += ["-device", "virtio-scsi-pci"]
        for number, device in enumerate(("scsi-hd", "scsi-block")):
            drive = f"file={for_qemu.url(number)},format=raw,if=none,cache=none,id=disk{number}"
            devices += ["-drive", drive, "-device",
                        f"{device},drive=disk{number},scsi-id={number}"]

    variables = {
        "PORTAL": target.address, "NAME": target.name, "GROWN": GROWN,
        "CHAP_PORTAL": with_chap.address, "USER": credentials.user, "SECRET": credentials.secret,
        "MUTUAL_USER": credentials.mutual[0], "MUTUAL_SECRET": credentials.mutual[1],
        "NO_QEMU_DISKS": no_qemu_disks,
    }
    requests = {"used-bytes": used_bytes, "grow": grow, "crash": crash, "terminate": terminate}
    guest.Guest(lab, ["iscsi.sh"], variables, requests, devices).run(seconds=900)
