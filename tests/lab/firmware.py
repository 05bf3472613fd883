"""What a PC's firmware can boot, made here: a boot sector, and an EFI application on a FAT disk.

Both read `COUNT` sectors at each of `RUNS` places, say their sum, and write one sector; see
`boot/mbr.S`.
"""

import dataclasses
import pathlib
import struct

SOURCES = pathlib.Path(__file__).resolve().parent / "boot"
SECTOR = 512
COUNT, RUNS = 64, 4
PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """Which sectors are read, from `first` on and `stride` apart, and which one is written."""

    first: int
    stride: int
    target: int

    def constants(self):
        """The job as the sources want it."""
        return {"FIRST": self.first, "COUNT": COUNT, "RUNS": RUNS, "STRIDE": self.stride,
                "TARGET": self.target}

    def sum(self, disk):
        """What must be said about `disk`: the sum of all bytes read, in 32 bits."""
        return sum(sum(self._run(disk, run)) for run in range(RUNS)) & 0xFFFFFFFF

    def after(self, disk):
        """What `disk` must be afterwards: `target` is the last sector read, inverted."""
        inverted = bytes(byte ^ 0xFF for byte in self._run(disk, RUNS - 1)[-SECTOR:])
        at = self.target * SECTOR
        return disk[:at] + inverted + disk[at + SECTOR:]

    def _run(self, disk, run):
        at = (self.first + run * self.stride) * SECTOR
        return disk[at:at + COUNT * SECTOR]


def boot_sector(lab, job):
    """The 512 bytes of `boot/mbr.S` for this job."""
    words = []
    for name, value in job.constants().items():
        words += ["--defsym", f"{name}={value}"]
    object_file, binary = lab.scratch / "mbr.o", lab.scratch / "mbr.bin"
    lab.run("as", "--32", *words, "-o", object_file, SOURCES / "mbr.S")
    lab.run("ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat", "binary", "-o", binary,
            object_file)
    return binary.read_bytes()


def efi_application(lab, job):
    """The PE file of `boot/bootx64.c` for this job."""
    constants = [f"-D{name}={value}" for name, value in job.constants().items()]
    object_file, binary = lab.scratch / "bootx64.o", lab.scratch / "bootx64.bin"
    lab.run("gcc", "-Os", "-ffreestanding", "-fpie", "-fvisibility=hidden", "-mno-red-zone",
            "-mno-sse", "-fno-stack-protector", "-fcf-protection=none", "-fno-builtin",
            "-fno-asynchronous-unwind-tables", *constants, "-c", "-o", object_file,
            SOURCES / "bootx64.c")
    lab.run("ld", "--oformat", "binary", "-T", SOURCES / "bootx64.ld", "-o", binary, object_file)
    return _pe(binary.read_bytes())


def fat_disk(lab, size, application):
    """A disk of `size` bytes with a FAT file system that holds \\EFI\\BOOT\\BOOTX64.EFI only."""
    disk, program = lab.image("fat.img", size), lab.scratch / "BOOTX64.EFI"
    program.write_bytes(application)
    lab.run("mkfs.vfat", "-F", "16", "-i", "5CA11AB1", disk)
    lab.run("mmd", "-i", disk, "::/EFI", "::/EFI/BOOT")
    lab.run("mcopy", "-i", disk, program, "::/EFI/BOOT/BOOTX64.EFI")
    return disk.read_bytes()


def _pe(code):
    """`code` as a PE32+ EFI application of one section, which starts with the entry point."""
    code += bytes(-len(code) % PAGE)
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    # Machine x86-64, 1 section; the optional header is 112 bytes and 6 empty directories long;
    # executable, line numbers stripped, large addresses.
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 112 + 6 * 8, 0x0026)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(code), 0, 0, PAGE, PAGE)
    optional += struct.pack("<QIIHHHHHHIIIIHHQQQQII", 0, PAGE, PAGE, 0, 0, 0, 0, 0, 0, 0,
                            PAGE + len(code), PAGE, 0, 10, 0, 0, 0, 0, 0, 0, 6)
    section = struct.pack("<8sIIIIIIHHI", b".text", len(code), PAGE, len(code), PAGE, 0, 0, 0, 0,
                          0xE0000020)
    headers = dos + coff + optional + bytes(6 * 8) + section
    return headers + bytes(PAGE - len(headers)) + code
