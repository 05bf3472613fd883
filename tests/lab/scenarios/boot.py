"""A PC boots from the LUN: first with SeaBIOS, then with OVMF (EFI).

The firmware's own drivers find the disk, read it and write it, with one request at a time and on
few of the rings. What is booted is made by `firmware.py`.
"""

import os
import random
import re
import shutil
import subprocess

import firmware
import qemu11
import vhost_backend
from harness import check, check_equal

MIB = 1 << 20
SECTORS = MIB // firmware.SECTOR


def random_bytes(size):
    """Incompressible content that is the same each time."""
    return random.Random(16).randbytes(size)


def boots(lab, disk, job, arguments, seconds):
    """Serves `disk`, boots from it, and compares what was said and written with the job."""
    image = lab.scratch / "boot.img"
    image.write_bytes(disk)
    socket = lab.scratch / "boot.sock"
    vhost_backend.start(lab, ["vhost-user-scsi", f"--socket-path={socket}", "--state-dir", "none",
                              image], [socket])
    memory = "memory-backend-memfd,id=memory,size=512M,share=on"
    command = [*qemu11.command(), "-machine", "q35,memory-backend=memory", "-accel", "tcg",
               "-cpu", "max", "-m", "512", "-object", memory,
               "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
               "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
               *vhost_backend.device(socket, options=",bootindex=1"), *arguments]
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=seconds, check=False,
                              env={**os.environ, **qemu11.environment()})
        output = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode(errors="replace")
    said = dict(re.findall(r"LAB (\w+) ?([0-9A-F]*)", output))
    check("up" in said, f"it did not boot from the LUN within {seconds} s:\n{output[-2000:]}")
    check("fault" not in said, f"the firmware reports error {said.get('fault')}")
    check("end" in said, f"it did not get to its end:\n{output[-2000:]}")
    check_equal(said["sum"], f"{job.sum(disk):08X}", "sum of the sectors read")
    check(image.read_bytes() == job.after(disk), "the image is not what was to be written")


def test_seabios_boots_from_the_lun(lab):
    """A BIOS reads the boot sector, which reads and writes through INT 13h."""
    lab.requires_program("as", "ld")
    job = firmware.Job(first=1, stride=30_001, target=120_000)
    disk = firmware.boot_sector(lab, job) + random_bytes(64 * MIB)[firmware.SECTOR:]
    boots(lab, disk, job, [], seconds=60)


def test_ovmf_boots_from_the_lun(lab):
    """EFI firmware finds the application in a FAT file system on the disk; it uses Block I/O."""
    lab.requires_program("gcc", "ld", "mkfs.vfat", "mmd", "mcopy")
    job = firmware.Job(first=16 * SECTORS, stride=30_001, target=120_000)
    disk = firmware.fat_disk(lab, 16 * MIB, firmware.efi_application(lab, job))
    disk += random_bytes(48 * MIB)
    folder = qemu11.tree() / "usr/share/OVMF"
    variables = lab.scratch / "OVMF_VARS_4M.fd"
    shutil.copy(f"{folder}/OVMF_VARS_4M.fd", variables)
    boots(lab, disk, job, [
        "-drive", f"if=pflash,format=raw,readonly=on,file={folder}/OVMF_CODE_4M.fd",
        "-drive", f"if=pflash,format=raw,file={variables}"], seconds=120)
