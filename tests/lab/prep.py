"""A disk that POWER's firmware boots: GRUB in a PReP partition, kernel and initramfs in ext2.

GRUB's parts are unpacked into the cache, never installed.
"""

import os
import shutil
import struct

import backports
from harness import check

RELEASE = "bookworm"
SECTOR = 512
MIB = 1 << 20
PREP_MIB = 4
MODULES = "part_msdos ext2 linux search search_fs_file boot normal".split()
# From the partition that has the kernel; everything is read by the firmware.
CONFIG = """search --file /vmlinux --set root
linux /vmlinux {command_line}
initrd /initramfs
boot
"""


def make(lab, path, size, kernel, initramfs, command_line):
    """Writes the disk, of `size` MiB."""
    core, tree, files = lab.scratch / "core.elf", lab.scratch / "boot", lab.scratch / "ext2.img"
    _grub(lab, core, CONFIG.format(command_line=command_line))
    tree.mkdir()
    shutil.copy(kernel, tree / "vmlinux")
    shutil.copy(initramfs, tree / "initramfs")
    rest = size - 1 - PREP_MIB
    with open(files, "wb") as file:
        file.truncate(rest * MIB)
    lab.run("mke2fs", "-q", "-t", "ext2", "-d", tree, files)
    check(core.stat().st_size <= PREP_MIB * MIB, f"GRUB has {core.stat().st_size} bytes")
    with open(path, "wb") as disk:
        disk.write(_label(1, PREP_MIB, rest))
        disk.seek(MIB)
        disk.write(core.read_bytes())
        disk.seek((1 + PREP_MIB) * MIB)
        with open(files, "rb") as file:
            shutil.copyfileobj(file, disk)
        disk.truncate(size * MIB)
    shutil.rmtree(tree)
    os.unlink(files)


def _grub(lab, path, config):
    """GRUB for Open Firmware, with its configuration in it."""
    tools = backports.unpacked("grub", ["grub-common"], suites=[RELEASE])
    parts = backports.unpacked("grub-ppc64el", ["grub-ieee1275-bin"], "grub-ieee1275-bin",
                               "ppc64el", [RELEASE])
    script = lab.scratch / "grub.cfg"
    script.write_text(config)
    libraries = ":".join(str(tools / folder / "x86_64-linux-gnu") for folder in ("lib", "usr/lib"))
    lab.run(tools / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries,
            tools / "usr/bin/grub-mkimage", "-O", "powerpc-ieee1275",
            "-d", parts / "usr/lib/grub/powerpc-ieee1275", "-p", "/", "-c", script, "-o", path,
            *MODULES)


def _label(start, prep, files):
    """A partition table (DOS) of these two, in MiB."""
    def entry(kind, start, size, active=False):
        return struct.pack("<BxxxBxxxII", 0x80 if active else 0, kind, start * MIB // SECTOR,
                           size * MIB // SECTOR)

    table = entry(0x41, start, prep, active=True) + entry(0x83, start + prep, files)
    return bytes(446) + table + bytes(32) + b"\x55\xaa"
