"""Linux guests on a vfio-user function, under QEMU 11 (see `guest/vfio.sh`)."""

from targets import Lun
from vfio_guest import VfioGuest
from vhost_target import VhostVscsi

MIB = 1 << 20
SIZE = 256 * MIB
GROWN = 384 * MIB
ADDED = 32 * MIB


class VfioVscsi(VhostVscsi):
    """As for vhost-user, but the first socket speaks vfio-user."""

    protocol = "vfio_user"


def _boot(lab, interrupts, files=("vfio.sh",), **options):
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
    variables = {"SIZE": SIZE, "GROWN": GROWN, "ADDED": ADDED, "INTERRUPTS": interrupts}
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
    _boot(lab, "msix", machine=",kernel-irqchip=split",
          arguments=["-device", "intel-iommu,intremap=on,caching-mode=on"],
          kernel_options="intel_iommu=on iommu.strict=1")
