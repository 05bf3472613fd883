"""A kernel of Ubuntu, for what Debian's kernels are built without: iommufd.

Two packages of one release, which stay on the mirror; each is checked against its SHA-256 and
unpacked in the cache, not installed. A proxy is taken from the environment (`http_proxy`).
"""

import hashlib
import os
import pathlib
import subprocess
import tempfile
import time
import urllib.request

from guest import Kernel
from harness import CACHE, Failed, Skip, check

MIRROR = os.environ.get("UBUNTU_MIRROR") or "http://archive.ubuntu.com/ubuntu"
POOL = "pool/main/l/linux"
VERSION = "6.8.0-31-generic"
PACKAGES = {
    f"linux-image-unsigned-{VERSION}_6.8.0-31.31_amd64.deb":
        "35115ceb5ddc1e73034a73d6b064b9c6d38c534f20279fd7229c510515b931d8",
    f"linux-modules-{VERSION}_6.8.0-31.31_amd64.deb":
        "3f17f2c279257eb50e40da44390bdf8272c440ca078831c348773d1314b5c2fe",
}
SECONDS = 300
ATTEMPTS, PAUSE = 4, 10


def kernel():
    """The kernel of Ubuntu 24.04 as it was released, 6.8."""
    if os.uname().machine != "x86_64":
        raise Skip("packages of Ubuntu are unpacked for x86_64 only")
    base = CACHE / f"linux-ubuntu-{VERSION}"
    if not base.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacking-") as scratch:
            files = pathlib.Path(scratch) / "files"
            for name, digest in PACKAGES.items():
                archive = pathlib.Path(scratch) / name
                _download(f"{MIRROR}/{POOL}/{name}", archive, digest)
                subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
            os.rename(files, base)
    return Kernel(VERSION, base / f"boot/vmlinuz-{VERSION}", base)


def _download(url, path, digest):
    for left in reversed(range(ATTEMPTS)):
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                data = answer.read()
            break
        except OSError as error:
            if not left:
                raise Failed(f"{url}: {error}; UBUNTU_MIRROR names another mirror") from error
            time.sleep(PAUSE)
    found = hashlib.sha256(data).hexdigest()
    check(found == digest, f"{url} has SHA-256 {found}, not {digest}")
    path.write_bytes(data)
