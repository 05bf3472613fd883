"""A newer QEMU than Debian 12's: that of trixie-backports, unpacked in the cache, not installed.

vhost-user-scsi survives a restart of its backend, and migrates, from QEMU 8.2 on. apt resolves and
checks the packages against lists and a dpkg status of their own, so nothing of the host's is
changed and no root is needed; dpkg-deb unpacks them into one tree. The programs there run through
that tree's own loader and libraries. A proxy is taken from the environment (`http_proxy`).
"""

import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from harness import CACHE, Skip, check

MIRROR = os.environ.get("DEBIAN_MIRROR") or "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "trixie"
PACKAGES = "qemu-system-x86 qemu-system-ppc qemu-block-extra ovmf seabios".split()
DOWNLOAD_SECONDS = 900


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
    check(found, f"QEMU of {RELEASE}-backports does not run: {said.stdout}{said.stderr}")
    return found[1]


@functools.cache
def tree():
    """The folder with the unpacked packages (`usr/share/OVMF` and so on), made when missing."""
    if os.uname().machine != "x86_64":
        raise Skip(f"QEMU of {RELEASE}-backports is unpacked for x86_64 only")
    made_of = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:16]
    files = CACHE / f"qemu-{RELEASE}-backports-{made_of}"
    if files.is_dir():
        return files
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacking-") as scratch:
        _unpack(pathlib.Path(scratch))
        os.rename(f"{scratch}/files", files)
    return files


def _unpack(scratch):
    apt = scratch / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / folder).mkdir(parents=True)
    (scratch / "files").mkdir()
    (apt / "status").touch()
    (apt / "etc/sources.list").write_text("".join(
        f"deb [arch=amd64 signed-by={KEYRING}] {MIRROR} {suite} main\n"
        for suite in (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-backports")))
    # Dir::Etc::parts keeps the system's settings out, which could change what is resolved here.
    (apt / "apt.conf").write_text(f"""
Dir "{apt}"; Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";
Dir::Etc "{apt}/etc"; Dir::Etc::parts "-"; Dir::Bin::methods "/usr/lib/apt/methods";
APT::Architecture "amd64"; APT::Architectures {{ "amd64"; }}; APT::Sandbox::User "";
APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
""")
    environ = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C"}
    _run(["apt-get", "-q", "update"], environ)
    _run(["apt-get", "-q", "-y", "--download-only", "-t", f"{RELEASE}-backports", "install",
          *PACKAGES], environ)
    archives = sorted((apt / "cache/archives").glob("*.deb"))
    check(len(archives) > len(PACKAGES), f"apt-get downloaded {len(archives)} packages")
    for archive in archives:
        _run(["dpkg-deb", "-x", archive, scratch / "files"], environ)


def _run(words, environ):
    words = [str(word) for word in words]
    done = subprocess.run(words, env=environ, capture_output=True, text=True,
                          timeout=DOWNLOAD_SECONDS, check=False)
    check(done.returncode == 0, f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr}")


def _libraries(files):
    return files / "usr/lib/x86_64-linux-gnu"
