"""QEMU's programs, in versions that fit each other.

qemu-img loads its iSCSI driver from qemu-block-extra, and only from the same build. Where the
installed pair does not fit (qemu-utils from backports, for one), the matching qemu-img is taken
out of its package, kept in the cache, and nothing installed is changed.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

from harness import CACHE, Failed, Skip, check

MODULES = f"/usr/lib/{os.uname().machine}-linux-gnu/qemu"


def qemu_img(lab):
    """A function that runs qemu-img with iSCSI support; skips the test when there is none."""
    lab.requires_program("dpkg-query", "apt-get")
    binary = _binary()

    def run(*words, ok=True):
        return lab.run(binary, *words, ok=ok, timeout=300, env={"QEMU_MODULE_DIR": MODULES})

    return run


def no_iscsi_in_system():
    """Why qemu-system has no iSCSI driver; empty when it has one."""
    system, extra = (_output("dpkg-query", "-W", "-f=${Version}", package)
                     for package in ("qemu-system-x86", "qemu-block-extra"))
    if system and system == extra:
        return ""
    return f"qemu-system-x86 is {system or 'missing'}, qemu-block-extra {extra or 'missing'}"


def download_package(name, version=None):
    """The unpacked files of a Debian package, from the cache when they are there."""
    wanted = f"{name}={version}" if version else name
    version = version or _candidate(name)
    unpacked = CACHE / "packages" / f"{name}_{version.replace(':', '_')}"
    if unpacked.is_dir():
        return unpacked
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=unpacked.parent) as scratch:
        download = ["apt-get", "-q", "download", wanted]
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
            # The lists may be older than what the mirror has now; only root can renew them.
            subprocess.run(["apt-get", "-q", "update"], capture_output=True, check=False)
            done = subprocess.run(download, cwd=scratch, capture_output=True, text=True,
                                  check=False)
            check(done.returncode == 0, f"{' '.join(download)}: {done.stderr}")
        package = next(pathlib.Path(scratch).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, f"{scratch}/files"], check=True)
        os.rename(f"{scratch}/files", unpacked)
    return unpacked


def _candidate(name):
    policy = _output("apt-cache", "policy", name)
    for line in policy.splitlines():
        if line.strip().startswith("Candidate:"):
            return line.split(":", 1)[1].strip()
    raise Failed(f"no package {name}")


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@functools.cache
def _binary():
    version = _output("dpkg-query", "-W", "-f=${Version}", "qemu-block-extra")
    if not version:
        raise Skip("qemu-block-extra is not installed")
    if _output("dpkg-query", "-W", "-f=${Version}", "qemu-utils") == version:
        return shutil.which("qemu-img")
    return download_package("qemu-utils", version) / "usr/bin/qemu-img"
