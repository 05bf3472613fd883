"""A guest of another architecture: pseries (ppc64le), whose PCI is behind an IOMMU of its own."""

import hashlib
import os

import pseries
import vhost_backend
from harness import check_equal

MIB = 1 << 20
SIZE, READ, WRITE_AT, WRITE = 96 * MIB, 64 * MIB, 72 * MIB, 16 * MIB


def test_pseries_guest_reads_and_writes(lab):
    """64 MiB read have the image's MD5; 16 MiB written are in the image, and nothing else is."""
    image = lab.image("pseries.img", SIZE)
    image.write_bytes(os.urandom(SIZE))
    before = image.read_bytes()
    socket = lab.scratch / "pseries.sock"
    vhost_backend.start(lab, ["vhost-user-scsi", f"--socket-path={socket}", "--state-dir", "none",
                              image], [socket])
    said = pseries.boot(lab, vhost_backend.device(socket, options=",disable-legacy=on"), {
        "read": READ // MIB, "write": WRITE // MIB, "at": WRITE_AT // MIB}, seconds=120)

    def md5(data):
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    after = image.read_bytes()
    check_equal(said["size"], str(SIZE), "size of the disk in the guest")
    check_equal(said["read"], md5(before[:READ]), "MD5 of what the guest read")
    check_equal(said["reread"], said["wrote"], "MD5 of what the guest read of what it wrote")
    check_equal(md5(after[WRITE_AT:WRITE_AT + WRITE]), said["wrote"], "MD5 of what it wrote")
    check_equal(md5(after[:WRITE_AT]), md5(before[:WRITE_AT]), "MD5 of the image before that")
    check_equal(md5(after[WRITE_AT + WRITE:]), md5(before[WRITE_AT + WRITE:]), "MD5 behind that")
