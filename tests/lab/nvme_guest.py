"""A Linux guest with an emulated IOMMU and an NVMe controller, which the target drives by VFIO."""

import dataclasses

import guest
from harness import check
from qmp import Qmp
from targets import Vscsi

PROGRAMS = ("blkdiscard", "sg_sync")
MODULES = ("nvme", "vfio-pci", "vfio_iommu_type1", "iommufd", "iscsi_tcp")
# Larger than what the guest writes, so that an address is never reached by accident.
SIZE = 256 << 20


@dataclasses.dataclass(frozen=True)
class Nvme:
    """One emulated controller with one namespace on an image."""

    image: str
    options: str = ""


class NvmeGuest(guest.Guest):
    """The controller sits in a slot that can be unplugged (device `ssd`), under QMP."""

    # On a busy machine the emulated timer can be too late for the kernel's test of it, which panics
    # when interrupts are remapped.
    BOOT_OPTIONS = "intel_iommu=on no_timer_check"
    MEBIBYTES = 1280
    KIT = guest.Kit(PROGRAMS, MODULES)

    def __init__(self, lab, files, variables, nvme, *, requests=None, programs=(), **options):
        self._qmp = lab.scratch / "qmp.sock"
        arguments = [
            # Before the devices that it translates for.
            "-device", "intel-iommu,intremap=on,caching-mode=on",
            "-device", "pcie-root-port,id=bay,chassis=1",
            "-drive", f"file={nvme.image},if=none,id=ssd-image,format=raw,discard=unmap",
            "-device", f"nvme,id=ssd,bus=bay,serial=lab-1,drive=ssd-image{nvme.options}",
            "-qmp", f"unix:{self._qmp},server=on,wait=off",
        ]
        requests = {"unplug": self._unplug, **(requests or {})}
        extras = [(Vscsi.binary, "/x/vscsi"), *programs]
        super().__init__(lab, files, variables, requests, arguments,
                         machine=",kernel-irqchip=split", extras=extras, **options)

    def _unplug(self):
        qmp = Qmp(self._qmp)
        try:
            qmp.execute("device_del", id="ssd")
        finally:
            qmp.close()
        check(self._qmp.exists(), "QMP is gone")
        return "asked"
