"""An NVMe controller behind VFIO, driven by the target in a Linux guest (`guest/nvme.sh`)."""

import pathlib

import ubuntu
from nvme_guest import SIZE, Nvme, NvmeGuest
from targets import Vscsi


def test_container(lab):
    """By a group in a container; the initiator is open-iscsi in the same guest."""
    _run(lab, "container")


def test_iommufd(lab):
    """By a device file and iommufd, with a kernel that has it."""
    _run(lab, "iommufd", boots=ubuntu.kernel())


def _run(lab, interface, **options):
    lab.requires_vscsi("NVMe backend")
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "blkdiscard", "busybox")
    image = lab.image("ssd.img", SIZE)
    example = pathlib.Path(Vscsi.binary).parent / "examples/guest_memory"
    machine = NvmeGuest(lab, ["nvme.sh"], {"INTERFACE": interface}, Nvme(image),
                        programs=[(str(example), "/x/guest_memory")], **options)
    machine.run(seconds=400)
