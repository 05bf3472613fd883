"""The kernel's own target with backstores that the program serves (`guest/tcmu.sh`)."""

from harness import Skip
from tcmu_guest import TcmuGuest


def test_loopback(lab):
    """tcm_loop: file system, sg tools, resets, restarts under I/O, resize, removal; two devices."""
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "sg_persist", "sg_unmap", "busybox")
    if lab.target_kind != "vscsi":
        raise Skip("only vscsi is a handler of the kernel's backstores")
    TcmuGuest(lab, ["tcmu.sh"]).run(seconds=600)
