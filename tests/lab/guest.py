"""A Linux guest under QEMU whose steps drive the target with Linux's own initiators.

The guest is Debian's kernel and an initramfs made of programs that are installed here. Both are
kept in the cache under a name that says what they were made of. The guest and the host talk over a
serial line: `STEP name ok|FAIL|SKIP reason` and `HOST request` one way, `ok|fail|skip text` back.
"""

import dataclasses
import hashlib
import inspect
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading

import backports
import qemu
from harness import CACHE, Failed, check, check_equal

HERE = pathlib.Path(__file__).resolve().parent / "guest"
PROGRAMS = (
    "bash blockdev busybox cmp depmod fio fstrim ip iscsi-test-cu iscsiadm iscsid kmod md5sum "
    "mkfs.ext4 modprobe sg_inq sg_opcodes sg_persist sg_readcap sg_requests sg_reset sg_turs "
    "sg_vpd stty"
).split()
# Programs that busybox stands in for.
APPLETS = (
    "awk basename cat chmod cut date dd echo find grep head ln ls mkdir mount poweroff readlink rm sed seq sleep sync "
    "tail tee test timeout tr truncate umount uname sort expr env true false dmesg uniq wc"
).split()
MODULES = (
    "virtio_pci virtio_net virtio_scsi crc32c_generic crc32c_intel sd_mod sg ext4 iscsi_tcp"
).split()
LIBRARIES = ["libgcc_s.so.1", "libnss_files.so.2"]
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
# A guest that has said nothing by then will not.
UP_SECONDS = 120
INITIATOR = "iqn.2026-11.net.example:guest"


@dataclasses.dataclass(frozen=True)
class Kit:
    """What a guest has besides the usual: programs and modules by name, and files: each a path here
    and one there."""

    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Debian's kernel out of its packages: `base` has `lib/modules`."""

    version: str
    image: pathlib.Path
    base: pathlib.Path


def kernel():
    """The kernel of this release."""
    depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True,
                             text=True, check=True).stdout
    package = re.search(r"Depends: (linux-image-\S+)", depends)[1]
    files = qemu.download_package(package)
    version = package.removeprefix("linux-image-")
    base = files if (files / "lib/modules").exists() else files / "usr"
    return Kernel(version, _vmlinux(files / f"boot/vmlinuz-{version}", files / "boot/vmlinux"), base)


def newer_kernel():
    """The kernel of trixie-backports."""
    base = backports.unpacked("linux", ["linux-image-amd64"], only="linux-") / "usr"
    modules = next((base / "lib/modules").iterdir())
    return Kernel(modules.name, _vmlinux(modules / "vmlinuz", modules / "vmlinux"), base)


def backported_kernel():
    """The kernel of bookworm-backports, 6.12."""
    release = "bookworm"
    base = backports.unpacked("linux", ["linux-image-amd64"], only="linux-",
                              suites=(release, f"{release}-updates", f"{release}-backports"))
    base = base if (base / "lib/modules").exists() else base / "usr"
    version = next((base / "lib/modules").iterdir()).name
    return Kernel(version, _vmlinux(base / f"boot/vmlinuz-{version}", base / "boot/vmlinux"), base)


def _vmlinux(packed, plain):
    """The kernel uncompressed, which QEMU boots seconds faster; else as it came."""
    if plain.exists():
        return plain
    image = packed.read_bytes()
    start = image.find(b"\xfd7zXZ\0")
    if start < 0:
        return packed
    elf = lzma.LZMADecompressor().decompress(image[start:])
    if elf[:4] != b"\x7fELF":
        return packed
    _write_atomically(plain, elf)
    return plain


def base_initramfs(kernel, kit):
    """The part of the initramfs that only changes with packages: programs and modules."""
    paths = {name: shutil.which(name, path=SEARCH) for name in (*PROGRAMS, *kit.programs)}
    missing = [name for name, path in paths.items() if path is None]
    check(not missing, f"not installed: {' '.join(missing)}")
    made_by = (_base_tree, _copy, _copy_with_libraries, _copy_modules, _cpio)
    lists = (PROGRAMS, APPLETS, MODULES, LIBRARIES, kernel.version, kit)
    made_of = hashlib.sha256(
        "".join([*map(inspect.getsource, made_by), repr(lists)]).encode())
    for path in (*paths.values(), *(here for here, _ in kit.files)):
        made_of.update(pathlib.Path(path).read_bytes())
    archive = CACHE / f"guest-{kernel.version}-{made_of.hexdigest()[:16]}.cpio"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
            _write_atomically(archive, _base_tree(pathlib.Path(scratch), kernel, kit, paths))
    return archive


def _base_tree(root, kernel, kit, programs):
    for folder in ("usr/bin", "usr/sbin", "usr/lib64", "usr/lib", "dev", "proc", "sys", "run",
                   "tmp", "mnt", "root", "etc/iscsi", "var/lib"):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("../run")
    (root / "var/lock").symlink_to("../run/lock")
    for path in programs.values():
        _copy_with_libraries(root, path)
    for library in LIBRARIES:
        for path in pathlib.Path("/usr/lib").glob(f"*-linux-gnu/{library}"):
            _copy(root, str(path))
    for applet in APPLETS:
        (root / "usr/bin" / applet).symlink_to("busybox")
    (root / "usr/bin/sh").symlink_to("bash")
    config = pathlib.Path("/etc/iscsi/iscsid.conf").read_text()
    config = re.sub(r"^iscsid.startup.*$", "", config, flags=re.MULTILINE)
    (root / "etc/iscsi/iscsid.conf").write_text(config)
    (root / "etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={INITIATOR}\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/mtab").symlink_to("/proc/mounts")
    for here, there in kit.files:
        _copy_with_libraries(root, here, there)
    _copy_modules(root, kernel.base, kernel.version, (*MODULES, *kit.modules))
    return _cpio(root)


def _copy(root, path, place=None):
    """Copies a file to the place it has with /bin, /lib and so on being links into /usr."""
    place = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", place or path)
    target = root / place.lstrip("/")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _copy_with_libraries(root, path, place=None):
    _copy(root, path, place)
    libraries = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", libraries):
        _copy(root, library)


def _copy_modules(root, base, version, names):
    if not (base / f"lib/modules/{version}/modules.dep").exists():
        subprocess.run(["depmod", "-b", base, version], check=True)
    shown = subprocess.run(
        ["modprobe", "-a", "-d", base, "-S", version, "--show-depends", *names],
        capture_output=True, text=True, check=False,
    ).stdout
    for path in dict.fromkeys(re.findall(r"^insmod (\S+)", shown, re.MULTILINE)):
        place = root / "usr/lib/modules" / path.split("/lib/modules/", 1)[1]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        source = base / f"lib/modules/{version}/{name}"
        if source.exists():
            shutil.copy(source, root / f"usr/lib/modules/{version}/{name}")
    subprocess.run(["depmod", "-b", root, version], check=True)


def _cpio(root):
    """The tree under `root` as a "newc" archive, everything owned by root."""
    out = bytearray()

    def add(name, mode, data=b""):
        encoded = name.encode() + b"\0"
        fields = (len(out), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        out.extend(bytes(-len(out) % 4))

    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            add(name, 0o120777, os.readlink(path).encode())
        elif path.is_dir():
            add(name, 0o040755)
        else:
            add(name, 0o100755, path.read_bytes())
    add("TRAILER!!!", 0)
    return bytes(out)


def _cache():
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def _write_atomically(path, data):
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.rename(path)


class Guest:
    """One boot. `requests` maps the word after HOST to a function that returns the answer.

    `files` are the files of `guest/` whose steps run, in this order; `arguments` are what QEMU is
    told besides; `machine` are options of the emulated machine; `qemu` starts the command line;
    `boots` is the kernel, that of this release unless given; `extras` are more programs, each a path
    here and one there; `name` tells several guests of a test apart.
    """

    BOOT_OPTIONS = ""
    CPUS = 2
    MEBIBYTES = 1024
    KIT = Kit()
    # Its process 1.
    INIT = "init"

    def __init__(self, lab, files, variables, requests, arguments=(), *, machine="",
                 qemu=("qemu-system-x86_64",), env=None, boots=None, extras=(), name=""):
        self._lab = lab
        self._files = files
        self._requests = requests
        self._arguments = [*arguments]
        self._machine = f"q35{machine}"
        self._qemu = qemu
        self._env = env or {}
        self._running = []
        self._is_up = False
        self._kernel = boots or kernel()
        self._logs = lab.scratch / name
        self._logs.mkdir(exist_ok=True)
        self._prefix = f"{name}/" if name else ""
        self._initramfs = self._logs / "initramfs"
        variables = {**variables, "STEPS": " ".join(files)}
        job = "".join(f"{name}='{value}'\n" for name, value in variables.items())
        with tempfile.TemporaryDirectory() as scratch:
            top = pathlib.Path(scratch)
            (top / "job").write_text(job)
            for name in ("lib.sh", *files):
                shutil.copy(HERE / name, top / name)
            shutil.copy(HERE / self.INIT, top / "init")
            for here, there in extras:
                _copy_with_libraries(top, str(here), there)
            self._initramfs.write_bytes(self._base().read_bytes() + _cpio(top))

    def _base(self):
        return base_initramfs(self._kernel, self.KIT)

    def run(self, seconds):
        """Boots, serves the guest's requests, reports its steps, and returns when it is off."""
        timers = [threading.Timer(seconds, self._kill),
                  threading.Timer(UP_SECONDS, lambda: self._is_up or self._kill())]
        for timer in timers:
            timer.start()
        try:
            self.start()
            ended, steps = self._converse()
            self._running[-1].wait()
        finally:
            for timer in timers:
                timer.cancel()
            self._kill()
        check(ended, "the guest did not get to its end; its console says\n"
              + "\n".join(self._tail()))
        planned = [name for file in self._files for name in
                   re.findall(r"^step (\S+)", (HERE / file).read_text(), re.MULTILINE)]
        check_equal(steps, planned, "the guest's steps")

    def start(self, *more):
        """Starts a machine, which takes the guest's serial line over."""
        command = [*self._command(self._logs / f"console-{len(self._running)}.log"),
                   *self._arguments, *more]
        with open(self._logs / "qemu.log", "ab") as log:
            machine = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, env={**os.environ, **self._env}, text=True, errors="replace")
        self._running.append(machine)
        return machine

    def _command(self, console):
        return [
            *self._qemu, "-machine", self._machine, "-accel", "tcg,thread=multi",
            "-cpu", "max", "-smp", self.CPUS, "-m", self.MEBIBYTES, "-nodefaults",
            "-display", "none", "-no-reboot", "-serial", f"file:{console}", "-serial", "stdio",
            "-kernel", self._kernel.image, "-initrd", self._initramfs, "-append",
            "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on "
            + self.BOOT_OPTIONS,
        ]

    def _converse(self):
        ended = False
        steps = []
        # A request may start another machine; the guest waits for its answer there.
        while line := self._running[-1].stdout.readline():
            word, _, rest = line.strip().partition(" ")
            if word == "STEP":
                name, _, verdict = rest.partition(" ")
                outcome, _, reason = verdict.partition(" ")
                steps.append(name)
                self._lab.step(self._prefix + name, outcome, reason)
            elif word == "HOST":
                answer = self._answer(rest.split())
                self._running[-1].stdin.write(answer + "\n")
                self._running[-1].stdin.flush()
            elif word == "UP":
                self._is_up = True
            elif word == "END":
                ended = True
        return ended, steps

    def _kill(self):
        for machine in self._running:
            machine.kill()
            machine.wait()

    def _answer(self, words):
        try:
            return f"ok {self._requests[words[0]](*words[1:])}"
        except NotImplementedError as missing:
            return f"skip {missing}"
        except (Failed, KeyError, OSError) as error:
            return f"fail {str(error).splitlines()[0]}"

    def _tail(self):
        logs = [*sorted(self._logs.glob("console-*.log")), self._logs / "qemu.log"]
        return [line for log in logs if log.exists()
                for line in log.read_text(errors="replace").splitlines()[-30:]]
