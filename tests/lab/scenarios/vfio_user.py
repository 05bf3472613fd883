"""A vfio-user function under QEMU 11: Linux guests (see `guest/vfio.sh`), and SeaBIOS."""

import json
import os
import random
import re
import subprocess

import firmware
import qemu11
from harness import check, check_equal, wait_until
from qmp import Qmp
from targets import Lun
from vfio_guest import VfioGuest, device
from vhost_target import VhostVscsi

MIB = 1 << 20
SIZE = 256 * MIB
GROWN = 384 * MIB
ADDED = 32 * MIB
# Bytes that each of 4 jobs verifies in blocks of 4 KiB.
EACH = 2 * MIB


class VfioVscsi(VhostVscsi):
    """As for vhost-user, but the first socket speaks vfio-user."""

    protocol = "vfio_user"


def _boot(lab, interrupts, files=("vfio.sh",), each=EACH, **options):
    lab.requires_vscsi("vfio-user")
    lab.requires_program("fio", "sg_reset", "busybox")
    image = lab.image("guest.img", SIZE)
    target = lab.target([Lun(path=image)], make=VfioVscsi)
    of_target = ("--target", target.name)

    def add(lun):
        target.control("lun", "add", "--ram", ADDED, "--lun", lun, *of_target)

    def remove(lun):
        target.control("lun", "rm", lun, *of_target)

    def grow():
        target.control("lun", "resize", 0, GROWN, *of_target)

    requests = {"add": add, "remove": remove, "grow": grow}
    variables = {"SIZE": SIZE, "GROWN": GROWN, "ADDED": ADDED, "INTERRUPTS": interrupts,
                 "EACH": each}
    guest = VfioGuest(lab, files, variables, requests, target.sockets[0], **options)
    guest.run(seconds=300)


def test_msix(lab):
    """File system, 4 queues, hot-plug, resize, resets by driver and function."""
    _boot(lab, "msix", ["vfio.sh", "vfio-more.sh"])


def test_intx(lab):
    """The same disk with the interrupt pin alone."""
    _boot(lab, "intx", kernel_options="pci=nomsi")


def test_iommu(lab):
    """Behind an emulated IOMMU, every request has pages of its own mapped and unmapped."""
    _boot(lab, "msix", machine=",kernel-irqchip=split", each=EACH // 8,
          arguments=["-device", "intel-iommu,intremap=on,caching-mode=on"],
          kernel_options="intel_iommu=on iommu.strict=1")


def test_unshared_memory(lab):
    """All of the guest's memory goes through messages, since QEMU shares none of it."""
    _boot(lab, "msix", each=EACH // 8, shared=False, files=["vfio-unshared.sh"])


def test_seabios_boots_after_a_reset(lab):
    """The machine is reset while its firmware drives the function; then a boot sector runs."""
    lab.requires_vscsi("vfio-user")
    lab.requires_program("as", "ld")
    job = firmware.Job(first=1, stride=30_001, target=120_000)
    disk = firmware.boot_sector(lab, job) + random.Random(16).randbytes(64 * MIB - 512)
    image = lab.scratch / "boot.img"
    image.write_bytes(disk)
    target = lab.target([Lun(path=image)], make=VfioVscsi)
    qmp = lab.scratch / "qmp.sock"
    memory = "memory-backend-memfd,id=memory,size=512M,share=on"
    # The menu gives time to reset.
    command = [*qemu11.command(), "-machine", "q35,memory-backend=memory", "-accel", "tcg",
               "-cpu", "max", "-m", "512", "-object", memory, "-nodefaults", "-display", "none",
               "-boot", "menu=on,splash-time=3000", "-serial", "stdio",
               "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
               "-qmp", f"unix:{qmp},server=on,wait=off",
               *device(target.sockets[0], bootindex=1)]
    machine = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, **qemu11.environment()})
    try:
        monitor = Qmp(qmp)
        for _ in range(2):
            wait_until(lambda: _queues(target) == 1, 30, "the firmware uses the function")
            monitor.execute("system_reset")
            wait_until(lambda: _queues(target) == 0, 30, "the function is reset")
        output = machine.communicate(timeout=60)[0].decode(errors="replace")
    finally:
        machine.kill()
        machine.wait()
    said = dict(re.findall(r"LAB (\w+) ?([0-9A-F]*)", output))
    check("end" in said, f"it did not get to its end:\n{output[-2000:]}")
    check_equal(said["sum"], f"{job.sum(disk):08X}", "sum of the sectors read")
    check(image.read_bytes() == job.after(disk), "the image is not what was to be written")


def _queues(target):
    """How many queues of the first controller run."""
    sessions = json.loads(target.control("session", "list", "--json").stdout)
    return next(session["queues_running"] for session in sessions
                if session["transport"] == "vfio-user")
