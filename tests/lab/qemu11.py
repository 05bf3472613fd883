"""A newer QEMU than Debian 12's: that of trixie-backports, unpacked in the cache, not installed.

vhost-user-scsi survives a restart of its backend, and migrates, from QEMU 8.2 on. The programs run
through the loader and the libraries that were unpacked with them.
"""

import functools
import os
import re
import subprocess

import backports
from harness import check

PACKAGES = "qemu-system-x86 qemu-system-ppc qemu-block-extra ovmf seabios".split()


def command(machine="x86_64"):
    """The words that start `qemu-system-MACHINE`; run it with `environment()`."""
    files, libraries = tree(), _libraries(tree())
    words = [libraries / "ld-linux-x86-64.so.2", "--library-path",
             f"{libraries}:{libraries / 'ceph'}", files / f"usr/bin/qemu-system-{machine}"]
    for folder in ("share/qemu", "share/seabios", "lib/ipxe/qemu"):
        words += ["-L", files / "usr" / folder]
    return [str(word) for word in words]


def environment():
    """What the environment of `command` must have besides the caller's."""
    return {"QEMU_MODULE_DIR": str(_libraries(tree()) / "qemu")}


@functools.cache
def version():
    """The version that `command` has, as "11.1.3"."""
    said = subprocess.run([*command(), "--version"], env={**os.environ, **environment()},
                          capture_output=True, text=True, check=False)
    found = re.match(r"QEMU emulator version (\d\S*)", said.stdout)
    check(found, f"QEMU of {backports.SUITE} does not run: {said.stdout}{said.stderr}")
    return found[1]


def tree():
    """The folder with the unpacked packages (`usr/share/OVMF` and so on), made when missing."""
    return backports.unpacked("qemu", PACKAGES)


def _libraries(files):
    return files / "usr/lib/x86_64-linux-gnu"
