"""A pseries guest (ppc64le) whose steps drive a virtual SCSI adapter, as `guest.Guest` does for PCs.

Debian's kernel and programs for ppc64el are unpacked into the cache, never installed.
"""

import hashlib
import inspect
import lzma
import pathlib
import shutil
import subprocess
import tempfile

import backports
import guest
import pseries
import qemu11
from harness import CACHE, check

PACKAGES = ("busybox-static", "bash", "sg3-utils", "kexec-tools", "e2fsprogs")
PROGRAMS = ("busybox bash sg_inq sg_vpd sg_readcap sg_reset sg_raw sg_persist kexec mke2fs mkfs.ext4"
            ).split()
LIBRARIES = ("ld64.so.2 libc.so.6 libtinfo.so.* libsgutils2* libblkid.so.* libuuid.so.* libe2p.so.* "
             "libext2fs.so.* libcom_err.so.* libz.so.* liblzma.so.* libzstd.so.*").split()
MODULES = "ibmvscsi sd_mod sg ext4 crc32c_generic crc32c-vpmsum".split()
TRIPLE = "powerpc64le-linux-gnu"
UNIT = 0x71000010


def kernel():
    """The kernel that `pseries.py` boots: trixie's, or bookworm's (6.1) where a mirror lacks that."""
    image, modules = pseries.kernel()
    return guest.Kernel(modules.name, image, modules.parents[2])


def backported_kernel():
    """The kernel of bookworm-backports, 6.12."""
    release = "bookworm"
    image, modules = pseries.kernel_in(backports.unpacked(
        f"linux-{pseries.ARCHITECTURE}", ["linux-image-powerpc64le"], "linux-",
        pseries.ARCHITECTURE, [release, f"{release}-updates", f"{release}-backports"]))
    return guest.Kernel(modules.name, image, modules.parents[2])


class PseriesGuest(guest.Guest):
    """A machine with one processor, unless told otherwise. The console is the first virtual terminal, the host is talked to
    on the second."""

    CPUS = 1
    MEBIBYTES = 768
    INIT = "pseries-steps-init"

    def __init__(self, lab, files, variables, requests, arguments, boots, name=""):
        super().__init__(lab, files, {"UNIT": f"{UNIT:x}", **variables}, requests, arguments,
                         qemu=qemu11.command("ppc64"), env=qemu11.environment(), boots=boots,
                         name=name)

    @property
    def image(self):
        """The kernel, uncompressed and with its symbols."""
        return self._kernel.image

    @property
    def initramfs(self):
        """What it boots into."""
        return self._initramfs

    def _command(self, console):
        return [
            *self._qemu, "-machine", f"{pseries.MACHINE},memory-backend=memory", "-cpu", "POWER9",
            "-smp", self.CPUS, "-m", self.MEBIBYTES, "-object",
            f"memory-backend-memfd,id=memory,size={self.MEBIBYTES}M,share=on", "-nodefaults",
            "-display", "none", "-no-reboot", "-serial", f"file:{console}", "-serial", "stdio",
            *self._boot(),
        ]

    def _boot(self):
        return ["-kernel", self._kernel.image, "-initrd", self._initramfs,
                "-append", self.command_line]

    @property
    def command_line(self):
        """The kernel's."""
        return f"console=hvc0 quiet loglevel=4 panic=-1 {self.BOOT_OPTIONS}"

    def _base(self):
        made_of = hashlib.sha256("".join([
            *map(inspect.getsource, (_tree, _programs, _modules, guest._cpio)),
            repr((PROGRAMS, LIBRARIES, MODULES, self._kernel.version, _tools()))]).encode())
        archive = CACHE / f"pseries-{self._kernel.version}-{made_of.hexdigest()[:16]}.cpio"
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                guest._write_atomically(archive, _tree(pathlib.Path(scratch), self._kernel))
        return archive


def _tools():
    return pseries.unpacked(f"tools-{pseries.ARCHITECTURE}", PACKAGES, "")


def _tree(root, boots):
    for folder in ("usr/bin", "usr/sbin", f"usr/lib/{TRIPLE}", "usr/lib64", "dev", "proc", "sys",
                   "run", "tmp", "mnt"):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    _programs(root, _tools())
    _modules(root, boots)
    return guest._cpio(root)


def _programs(root, files):
    for name in PROGRAMS:
        found = [path for folder in ("usr/bin", "usr/sbin", "bin", "sbin")
                 if (path := files / folder / name).exists()]
        check(found, f"no {name} in {files}")
        shutil.copy(found[0], root / "usr/bin" / name)
    for pattern in LIBRARIES:
        for folder in ("usr/lib", "lib"):
            for path in (files / folder).glob(f"{TRIPLE}/{pattern}"):
                shutil.copy(path, root / "usr/lib" / TRIPLE / path.name)
    (root / "usr/lib64/ld64.so.2").symlink_to(f"../lib/{TRIPLE}/ld64.so.2")


def _modules(root, boots):
    guest._copy_modules(root, boots.base, boots.version, MODULES)
    for path in [*root.rglob("*.ko.xz")]:
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    subprocess.run(["depmod", "-b", root, boots.version], check=True)
