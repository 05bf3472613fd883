"""qemu-img as a client: a sparse image copied to a LUN, read back and compared."""

import os
import random

import qemu
from harness import check
from targets import Lun

MIB = 1 << 20
SIZE = 1 << 30
ISLANDS = 40


def sparse_image(lab):
    """A 1 GiB image with islands of random data, some of them odd in size and place."""
    path = lab.image("source.img", SIZE)
    dice = random.Random(2026)
    with open(path, "r+b") as file:
        for _ in range(ISLANDS):
            length = dice.randrange(512, MIB, 512)
            file.seek(dice.randrange(0, SIZE - length, 512))
            file.write(dice.randbytes(length))
        file.seek(SIZE - 512)
        file.write(b"\xa5" * 512)
    return path


def test_convert_and_compare(lab):
    """convert -n writes the image to the LUN; compare finds no difference, both directions."""
    qemu_img = qemu.qemu_img(lab)
    source = sparse_image(lab)
    backing = lab.image("lun.img", SIZE)
    target = lab.target([Lun(path=backing)])
    convert = ["convert", "-n", "-f", "raw", "-O", "raw"]
    qemu_img(*convert, "-t", "none", source, target.url())
    qemu_img("compare", "-f", "raw", "-F", "raw", source, target.url())
    copy = lab.scratch / "copy.img"
    qemu_img("convert", "-f", "raw", "-O", "raw", target.url(), copy)
    qemu_img("compare", "-f", "raw", "-F", "raw", source, copy)
    if target.kind == "vscsi":
        used = os.stat(backing).st_blocks * 512
        check(used < 4 * ISLANDS * MIB, f"the LUN's image is not sparse any more: {used} bytes")


def test_difference_is_found(lab):
    """compare fails when one byte differs, so a passing compare means something."""
    qemu_img = qemu.qemu_img(lab)
    source = lab.image("source.img", 16 * MIB)
    backing = lab.image("lun.img", 16 * MIB)
    with open(backing, "r+b") as file:
        file.seek(5 * MIB + 3)
        file.write(b"x")
    target = lab.target([Lun(path=backing)])
    done = qemu_img("compare", "-f", "raw", "-F", "raw", source, target.url(), ok=False)
    check(done.returncode == 1, f"exit {done.returncode}: {done.stdout}{done.stderr}")
