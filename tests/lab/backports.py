"""Packages of trixie-backports with all that they need, unpacked in the cache, not installed.

apt resolves and checks them against lists and a dpkg status of their own, so nothing of the host's
is changed and no root is needed; dpkg-deb unpacks them into one tree. A proxy is taken from the
environment (`http_proxy`).
"""

import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

from harness import CACHE, Skip, check

MIRROR = os.environ.get("DEBIAN_MIRROR") or "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASE = "trixie"
SUITE = f"{RELEASE}-backports"
SUITES = (RELEASE, f"{RELEASE}-updates", SUITE)
DOWNLOAD_SECONDS = 900


def unpacked(name, packages, only="", architecture="amd64", suites=SUITES):
    """The folder with the files of `packages`, made when it is missing.

    With `only`, of all that they need just the packages are unpacked whose name starts with it.
    What is in the last of `suites` is taken from there.
    """
    return _unpacked(name, tuple(packages), only, architecture, tuple(suites))


@functools.cache
def _unpacked(name, packages, only, architecture, suites):
    if os.uname().machine != "x86_64":
        raise Skip(f"packages of {suites[-1]} are unpacked for x86_64 only")
    made_of = hashlib.sha256(" ".join((*packages, only)).encode()).hexdigest()[:16]
    files = CACHE / f"{name}-{suites[-1]}-{made_of}"
    if files.is_dir():
        return files
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacking-") as scratch:
        _unpack(pathlib.Path(scratch), packages, only, architecture, suites)
        os.rename(f"{scratch}/files", files)
    return files


def _unpack(scratch, packages, only, architecture, suites):
    apt = scratch / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / folder).mkdir(parents=True)
    (scratch / "files").mkdir()
    (apt / "status").touch()
    (apt / "etc/sources.list").write_text("".join(
        f"deb [arch={architecture} signed-by={KEYRING}] {MIRROR} {suite} main\n"
        for suite in suites))
    # Dir::Etc::parts keeps the system's settings out, which could change what is resolved here.
    (apt / "apt.conf").write_text(f"""
Dir "{apt}"; Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";
Dir::Etc "{apt}/etc"; Dir::Etc::parts "-"; Dir::Bin::methods "/usr/lib/apt/methods";
APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User ""; APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3";
""")
    environ = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C"}
    _run(["apt-get", "-q", "update"], environ)
    _run(["apt-get", "-q", "-y", "--download-only", "-t", suites[-1], "install", *packages], environ)
    archives = sorted((apt / "cache/archives").glob(f"{only}*.deb"))
    check(len(archives) >= len(packages), f"apt-get downloaded {len(archives)} packages")
    for archive in archives:
        _run(["dpkg-deb", "-x", archive, scratch / "files"], environ)


def _run(words, environ):
    words = [str(word) for word in words]
    done = subprocess.run(words, env=environ, capture_output=True, text=True,
                          timeout=DOWNLOAD_SECONDS, check=False)
    check(done.returncode == 0, f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr}")
