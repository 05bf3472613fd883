"""A pseries guest (ppc64le) under QEMU with one LUN: `guest/pseries-init` is all that runs in it.

Debian's kernel and busybox for ppc64el are unpacked into the cache, never installed.
"""

import functools
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading

import backports
import guest
import qemu11
from harness import Failed, check

HERE = pathlib.Path(__file__).resolve().parent / "guest"
# A machine without these mitigations is the only one that TCG can be.
MACHINE = "pseries,accel=tcg,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken"
ARCHITECTURE = "ppc64el"
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod")


def boot(lab, arguments, variables, seconds):
    """Boots with these QEMU arguments more and returns what the guest said, `{word: rest}`.

    Guest memory is shared, as vhost-user wants it.
    """
    image, modules = kernel()
    initramfs = lab.scratch / "pseries.cpio"
    initramfs.write_bytes(_initramfs(modules))
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    command = [
        *qemu11.command("ppc64"), "-machine", f"{MACHINE},memory-backend=memory", "-cpu", "POWER9",
        "-m", "512", "-object", "memory-backend-memfd,id=memory,size=512M,share=on", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", "stdio",
        "-kernel", image, "-initrd", initramfs,
        "-append", f"console=hvc0 quiet panic=-1 {words}", *arguments,
    ]
    console = _console([str(word) for word in command], seconds)
    (lab.scratch / "pseries-console.log").write_text(console)
    said = re.findall(r"LAB (\w+) ?(.*?)\r*$", console, re.MULTILINE)
    faults = [rest for word, rest in said if word == "fault"]
    check(not faults, f"the guest found a fault: {'; '.join(faults)}")
    check(any(word == "end" for word, _ in said),
          "the guest did not get to its end; its console says\n"
          + "\n".join(console.splitlines()[-30:]))
    return dict(said)


def _console(command, seconds):
    """What the machine prints until it is off, or for this long."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT,
                               env={**os.environ, **qemu11.environment()})
    timer = threading.Timer(seconds, machine.kill)
    timer.start()
    try:
        return machine.stdout.read().decode(errors="replace")
    finally:
        timer.cancel()
        machine.kill()
        machine.wait()


@functools.cache
def unpacked(name, packages, only):
    """The files of packages, of the release before where this one's cannot be had: a mirror may have
    the lists of packages for this architecture and not the packages."""
    for release in (backports.RELEASE, "bookworm"):
        try:
            return backports.unpacked(name, packages, only, ARCHITECTURE, [release])
        except Failed as error:
            print(f"     {release}: {str(error).splitlines()[-1]}")
    raise Failed(f"no release has {' '.join(packages)}")


def _either(files, *places):
    """The one of these places that the package has: older releases have /lib beside /usr/lib."""
    found = [files / place for place in places if (files / place).exists()]
    check(found, f"none of {places} in {files}")
    return found[0]


def kernel():
    """The kernel, and the folder of its modules."""
    return kernel_in(unpacked(f"linux-{ARCHITECTURE}", ("linux-image-powerpc64le",), "linux-"))


def kernel_in(files):
    """The kernel in the files of a package, and the folder of its modules."""
    modules = next(_either(files, "usr/lib/modules", "lib/modules").iterdir())
    images = [*modules.glob("vmlinu*"), *files.glob(f"boot/vmlinu?-{modules.name}")]
    check(images, f"no kernel in {files}")
    if not (modules / "modules.dep").exists():
        subprocess.run(["depmod", "-b", modules.parents[2], modules.name], check=True)
    return images[0], modules


def _initramfs(modules):
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for folder in ("bin", "dev", "modules", "proc", "sys"):
            (root / folder).mkdir()
        files = unpacked(f"busybox-{ARCHITECTURE}", ("busybox-static",), "busybox-")
        shutil.copy(_either(files, "usr/bin/busybox", "bin/busybox"), root / "bin/busybox")
        shutil.copy(HERE / "pseries-init", root / "init")
        order = []
        for path in _to_load(modules):
            name = path.name.removesuffix(".xz")
            data = path.read_bytes()
            (root / "modules" / name).write_bytes(
                lzma.decompress(data) if path.suffix == ".xz" else data)
            order.append(name)
        (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
        return guest._cpio(root)


def _to_load(folder):
    """The files of MODULES and of those they need, in the order to load them."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        needs[re.sub(r"\.ko(\.xz)?$", "", pathlib.Path(module).name)] = (module, needed.split())
    order = []
    for name in MODULES:
        if name in needs:  # else it is built in
            module, needed = needs[name]
            order += [*reversed(needed), module]
    return [folder / path for path in dict.fromkeys(order)]
