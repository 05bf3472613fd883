"""Linux's ibmvscsi driver in a pseries guest on the CRQ server of vmm-glue."""

import hashlib
import os

import partition_target
import pseries_guest

MIB = 1 << 20
SIZE, SMALL, WRITE = 96 * MIB, 16 * MIB, 64 * MIB


def luns(lab, image):
    """Images for what is stalled, RAM for the rest."""
    others = [lab.image("partition-1.img", SIZE)]
    return [f"0:0:{image}", f"0:1:{others[0]}",
            *(f"{target}:0:ram={SMALL}" for target in range(1, 9)),
            f"9:3:ram={SMALL}", f"9:31:ram={SMALL}"]


def runs(lab, boots, files, name=""):
    """Boots a kernel, which runs these files of steps."""
    image = lab.image(f"{name}partition-0.img", SIZE)

    def image_md5(mebibytes):
        os.sync()
        with open(image, "rb") as file:
            data = file.read(int(mebibytes) * MIB)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    variables = {"MEBIBYTES": WRITE // MIB, "SIZE": SIZE, "SMALL": SMALL}
    partition_target.PartitionGuest(
        lab, ["pseries-lib.sh", *files], variables, {"image-md5": image_md5}, luns(lab, image),
        boots, name, bridge=["--request-limit", "600"]).run(seconds=600)


def test_ibmvscsi(lab):
    """Login, MADs, scan, data, aborts, resets, events under I/O, a full queue, H_FREE_CRQ."""
    runs(lab, pseries_guest.backported_kernel(), ["partition.sh"])
