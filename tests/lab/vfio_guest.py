"""A Linux guest whose disks come over vfio-user, under the newer QEMU: 7.2 does not speak it."""

import json

import guest
import qemu11

# Where the function sits on the PCI bus; `guest/vhost-lib.sh` looks there.
SLOT = 0x10


def device(socket, **options):
    """QEMU's arguments for the function behind a socket; guest memory must be shared."""
    place = {"type": "unix", "path": str(socket)}
    return ["-device", json.dumps({"driver": "vfio-user-pci", "socket": place, **options})]


class VfioGuest(guest.Guest):
    """`kernel_options` are appended to the kernel's command line, `machine` to QEMU's machine."""

    CPUS = 4
    MEBIBYTES = 768

    def __init__(self, lab, files, variables, requests, socket, *, arguments=(), machine="",
                 kernel_options="", shared=True):
        self.BOOT_OPTIONS = kernel_options
        memory = f"memory-backend-memfd,id=memory,size={self.MEBIBYTES}M,share=on"
        backed = ["-object", memory] if shared else []
        machine += ",memory-backend=memory" if shared else ""
        super().__init__(lab, ["vhost-lib.sh", *files], variables, requests,
                         [*backed, *arguments, *device(socket, addr=f"{SLOT:x}.0")],
                         machine=machine, qemu=qemu11.command(), env=qemu11.environment(),
                         boots=guest.newer_kernel())
