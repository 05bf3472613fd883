"""A pseries guest's ibmvscsi driver on QEMU's own spapr-vscsi, with our iSCSI LUNs behind it."""

import hashlib

import pseries_guest
from targets import Lun

MIB = 1 << 20
SIZE, WRITE = 96 * MIB, 32 * MIB


def test_spapr_vscsi_over_iscsi(lab):
    """scsi-block passes the guest's commands on to the target, scsi-hd makes its own."""
    images = [lab.image(f"iscsi{number}.img", SIZE) for number in range(2)]
    target = lab.target([Lun(path=image) for image in images])
    devices = ["-device", f"spapr-vscsi,id=v0,reg={pseries_guest.UNIT:#x}"]
    for number, kind in enumerate(("scsi-block", "scsi-hd")):
        devices += ["-drive", f"file={target.url(number)},format=raw,"
                    f"if=none,id=d{number},cache=none", "-device",
                    f"{kind},bus=v0.0,channel=0,scsi-id={number},lun=0,drive=d{number}"]

    def image_md5(mebibytes):
        with open(images[0], "rb") as image:
            data = image.read(int(mebibytes) * MIB)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    variables = {"MEBIBYTES": str(WRITE // MIB)}
    pseries_guest.PseriesGuest(
        lab, ["pseries-lib.sh", "pseries-iscsi.sh"], variables, {"image-md5": image_md5}, devices,
        pseries_guest.kernel()).run(seconds=300)
