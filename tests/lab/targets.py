"""The targets that a scenario can start: `vscsi`, and tgtd as a stand-in for it.

Both take the same description, so a scenario does not know which one it talks to. How
`vscsi` is started is known here and nowhere else in the lab.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

from harness import CHECKOUT, Skip, check, free_port

NAME = "iqn.2026-11.net.example:lab"
HERTZ = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Lun:
    """A logical unit to export: a file when `path` is set, else RAM of `size` bytes."""

    path: pathlib.Path | None = None
    size: int = 64 << 20
    read_only: bool = False
    removable: bool = False
    block_size: int = 512
    physical_block_size: int | None = None
    erase_rate: str | None = None
    handover: bool = False


@dataclasses.dataclass(frozen=True)
class Chap:
    """CHAP credentials: `user` is asked of initiators, `mutual` is what the target answers with."""

    user: str
    secret: str
    mutual: tuple[str, str] | None = None


class Process:
    """What both targets have in common: a daemon in the foreground that listens on a port."""

    def __init__(self, lab, luns, *, name=NAME, allow=None, chap=None, host="127.0.0.1",
                 iscsi=None, reactors=None):
        self.lab = lab
        self.luns = luns
        self.name = name
        self.allow = allow
        self.chap = chap
        self.host = host
        self.iscsi = iscsi
        self.reactors = reactors
        self.port = free_port()
        self.address = f"{host}:{self.port}"
        self.log_path = lab.scratch / f"target-{self.port}.log"
        self._child = None
        self._stopped = False

    def url(self, lun=0, query=""):
        """The libiscsi URL of LUN number `lun` in the order given."""
        login = f"{self.chap.user}%{self.chap.secret}@" if self.chap else ""
        return f"iscsi://{login}{self.address}/{self.name}/{self.lun_number(lun)}{query}"

    def lun_number(self, index):
        """The LUN of the `index`-th logical unit."""
        return index

    @property
    def pid(self):
        """The process id of the running daemon."""
        return self._child.pid

    def spawn(self, command, env=None):
        """Starts the daemon and waits until it listens."""
        self.launch(command, env)
        self.await_listening()

    def launch(self, command, env=None):
        """Starts the daemon."""
        self._stopped = False
        with open(self.log_path, "ab") as log:
            self._child = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(env or {})},
            )

    def await_listening(self):
        """Waits until the daemon listens."""
        deadline = time.monotonic() + 20
        while True:
            check(self.alive(), f"the target ended at once:\n{self.log()}")
            if self.listens():
                return
            check(time.monotonic() < deadline, f"the target does not listen:\n{self.log()}")
            time.sleep(0.02)

    def listens(self):
        """Whether initiators can connect."""
        try:
            socket.create_connection((self.host.strip("[]"), self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def alive(self):
        """Whether the daemon still runs."""
        return self._child is not None and self._child.poll() is None

    def stop(self, sig=signal.SIGTERM, seconds=20):
        """Ends the daemon and returns its exit code, None when it did not end in time."""
        if self._child is None:
            return None
        self._stopped = True
        if self._child.poll() is None:
            self._child.send_signal(sig)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return None

    def finish(self):
        """At the end of a test that passed: the daemon must still run, and end as asked."""
        if not self._stopped:
            check(self.alive(), f"the target ended by itself:\n{self.log()[-2000:]}")
            self.check_end(self.stop())

    def check_end(self, code):
        """Checks the exit code on SIGTERM."""
        check(code == 0, f"exit code {code} on SIGTERM:\n{self.log()[-2000:]}")

    def kill(self):
        """Ends the daemon as a crash would."""
        self.stop(signal.SIGKILL)

    def log(self):
        """What the daemon printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def resident_bytes(self):
        """Resident memory of the daemon."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def threads(self):
        """How many threads the daemon has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def cpu_seconds(self):
        """User and system time that the daemon used so far."""
        stat = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HERTZ


class Vscsi(Process):
    """The program under test."""

    kind = "vscsi"
    binary = os.environ.get("VSCSI") or str(CHECKOUT / "target/release/vscsi")

    def __init__(self, lab, luns, **options):
        super().__init__(lab, luns, **options)
        self.control_path = lab.scratch / f"control-{self.port}.sock"

    def start(self, wait=True):
        """Starts `vscsi serve` and, with `wait`, waits until it listens."""
        self.launch([self.binary, "serve", *self.arguments()])
        if wait:
            self.await_listening()

    def arguments(self):
        """What follows `vscsi serve` for this target."""
        if self.iscsi:
            return ["--config", self._config_file()]
        words = []
        for lun in self.luns:
            words += [self._disk(lun)] if lun.path else ["--ram", self._disk(lun)]
        words += ["--iscsi", self.address, "--name", self.name, "--control", self.control_path,
                  "--state-dir", self.lab.scratch / f"state-{self.port}"]
        for initiator in self.allow or []:
            words += ["--allow", initiator]
        if self.allow is None:
            words.append("--allow-any")
        if self.chap:
            words += ["--chap-file", self._chap_file()]
        return words

    @staticmethod
    def _disk(lun):
        options = "".join([",ro" * lun.read_only, ",removable" * lun.removable,
                           f",bs={lun.block_size}" * (lun.block_size != 512),
                           f",pbs={lun.physical_block_size}" * bool(lun.physical_block_size),
                           f",erase-rate={lun.erase_rate}" * bool(lun.erase_rate),
                           ",handover" * lun.handover])
        return f"{lun.path or lun.size}{options}"

    def _config_file(self):
        """Settings of iSCSI have no option on the command line."""
        target = {"name": self.name, "luns": [self._lun(lun) for lun in self.luns]}
        target |= {"allow": self.allow} if self.allow else {"allow_any": True}
        if self.chap:
            target["chap"] = {"file": str(self._chap_file())}
        path = self.lab.scratch / f"config-{self.port}.json"
        path.write_text(json.dumps(({"reactors": self.reactors} if self.reactors else {}) | {
            "control": str(self.control_path),
            "state_dir": str(self.lab.scratch / f"state-{self.port}"),
            "portal_groups": [{"tag": 1, "listen": [self.address]}],
            "iscsi": self.iscsi,
            "targets": [target],
        }))
        return path

    @staticmethod
    def _lun(lun):
        where = {"file": str(lun.path)} if lun.path else {"ram": str(lun.size)}
        options = dataclasses.asdict(lun)
        del options["path"], options["size"]
        return where | {key: value for key, value in options.items()
                        if value not in (None, False)}

    def _chap_file(self):
        path = self.lab.scratch / f"chap-{self.port}"
        lines = [f"{self.chap.user} {self.chap.secret}"]
        if self.chap.mutual:
            lines.append("mutual {} {}".format(*self.chap.mutual))
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)
        return path

    def control(self, *words, ok=True):
        """Runs a verb of the control socket, as `vscsi lun list`."""
        return self.lab.run(self.binary, *words, "--control", self.control_path, ok=ok, timeout=20)

    def resize(self, index, size):
        """Grows the `index`-th LUN to `size` bytes while it is in use."""
        self.control("lun", "resize", self.lun_number(index), size)


class Tgtd(Process):
    """Debian's tgtd. LUN 0 is its controller, so disks start at 1."""

    kind = "tgtd"

    def __init__(self, lab, luns, **options):
        super().__init__(lab, luns, **options)
        self._control_port = self.port % 32768

    def lun_number(self, index):
        return index + 1

    def start(self):
        self.spawn(["tgtd", "-f", "-C", self._control_port, "--iscsi", f"portal={self.address}"])
        self._admin("target", "new", "-T", self.name)
        for index, lun in enumerate(self.luns):
            number = self.lun_number(index)
            path = lun.path or self.lab.image(f"ram-{self.port}-{index}.img", lun.size)
            self._admin("logicalunit", "new", "--lun", number, "-b", path,
                        "--blocksize", lun.block_size)
            settings = ["thin_provisioning=1"]
            settings += ["readonly=1"] * lun.read_only + ["removable=1"] * lun.removable
            self._admin("logicalunit", "update", "--lun", number, "--params", ",".join(settings))
        for digest in ("HeaderDigest", "DataDigest"):
            self._admin("target", "update", "-n", digest, "-v", "CRC32C,None")
        if self.chap:
            self._account(self.chap.user, self.chap.secret)
            if self.chap.mutual:
                self._account(*self.chap.mutual, "--outgoing")
        for initiator in self.allow or ["ALL"]:
            option = "-I" if initiator == "ALL" else "-Q"
            self._admin("target", "bind", option, initiator)

    def _account(self, user, secret, *direction):
        self._tgtadm("--mode", "account", "--op", "new", "--user", user, "--password", secret)
        self._tgtadm("--mode", "account", "--op", "bind", "--tid", 1, "--user", user, *direction)

    def _admin(self, mode, operation, *words):
        self._tgtadm("--mode", mode, "--op", operation, "--tid", 1, *words)

    def _tgtadm(self, *words):
        self.lab.run("tgtadm", "-C", self._control_port, "--lld", "iscsi", *words, timeout=20)

    def check_end(self, code):
        """tgtd is killed: see `stop`."""

    def stop(self, sig=signal.SIGTERM, seconds=20):
        """tgtd answers SIGTERM only when nobody is logged in, so it is killed."""
        del sig, seconds
        return super().stop(signal.SIGKILL)


class Lio(Process):
    """The kernel's own target, which stands in where target and initiator are in a guest."""

    kind = "lio"

    def __init__(self, lab, luns, **options):
        super().__init__(lab, luns, **options)
        raise Skip("LIO runs in a guest only")


KINDS = {"vscsi": Vscsi, "tgtd": Tgtd, "lio": Lio}
