"""Linux's ibmvscsi driver in a pseries guest on the CRQ server of vmm-glue."""

import hashlib
import os
import shutil

import partition_target
import prep
import pseries_guest

MIB = 1 << 20
BLOCK = 512
# What the server says that it is.
LINUX, VIO_SERVER = 2, 3
SIZE, SMALL = 96 * MIB, 16 * MIB


def guest_with(lab, boots, files, luns, mebibytes, kind=partition_target.PartitionGuest,
               server=VIO_SERVER):
    """A guest that runs these files of steps, with an image at 0:0 and these LUNs."""
    image = lab.image("partition-0.img", SIZE)

    def image_md5(mebibytes):
        os.sync()
        with open(image, "rb") as file:
            data = file.read(int(mebibytes) * MIB)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    luns = {"0:0": image, **luns}
    return kind(
        lab, ["pseries-lib.sh", "partition-lib.sh", *files],
        {"SIZE": SIZE, "LUNS": " ".join(luns), "MEBIBYTES": mebibytes, "OS": server},
        {"image-md5": image_md5}, luns, boots,
        bridge=["--request-limit", "600", "--os-type", server])


def test_ibmvscsi(lab):
    """Login, MADs, scan, data, aborts, resets, events under I/O, a full queue, H_FREE_CRQ."""
    luns = {"0:1": lab.image("partition-1.img", SIZE),
            **{f"{target}:0": f"ram={SMALL}" for target in range(1, 9)},
            "9:3": f"ram={SMALL}", "9:31": f"ram={SMALL}"}
    guest_with(lab, pseries_guest.backported_kernel(), ["partition.sh"], luns,
               64).run(seconds=600)


def test_kexec(lab):
    """A kernel that kexec starts, read from LUNs, takes the adapter over from the one before.

    The server is not a Virtual I/O Server there, so that both drivers log in at once.
    """
    boots = pseries_guest.kernel()
    kernel, initramfs = lab.scratch / "kernel.img", lab.scratch / "initramfs.img"
    luns = {"1:0": kernel, "2:0": initramfs, "3:0": f"ram={SMALL}"}
    guest = guest_with(lab, boots, ["partition-first.sh", "partition-kexec.sh"], luns,
                       8, server=LINUX)
    # Calls of several processors, one at a time: each stops them all.
    guest.CPUS = 2
    for path, data in ((kernel, boots.image), (initramfs, guest.initramfs)):
        shutil.copy(data, path)
        os.truncate(path, -(-path.stat().st_size // BLOCK) * BLOCK)
    guest.run(seconds=600)


def test_slof(lab):
    """SLOF, GRUB through it, and then Linux use the server one after the other."""
    luns = {"5:3": f"ram={SMALL}"}
    guest = guest_with(lab, pseries_guest.backported_kernel(), ["partition-booted.sh"], luns,
                       64, partition_target.FirmwareGuest)
    prep.make(lab, lab.scratch / "partition-0.img", SIZE // MIB, guest.image, guest.initramfs,
              guest.command_line)
    guest.run(seconds=600)
