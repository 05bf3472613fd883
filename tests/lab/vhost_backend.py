"""`vscsi` as the back end of vhost-user front ends."""

import pathlib

from targets import Process, Vscsi

# A Unix socket that listens, in the flags of /proc/net/unix.
LISTENS = 0x10000


class Backend(Process):
    """One process that listens on Unix sockets; `words` follow the program's name."""

    kind = "vscsi"

    def __init__(self, lab, luns, *, words, sockets, program=Vscsi.binary):
        lab.requires_vscsi("vhost-user-scsi")
        super().__init__(lab, luns)
        self._command = [program, *words]
        self._sockets = {str(path) for path in sockets}

    def start(self):
        """Starts the program and waits until it listens on all sockets."""
        self.spawn(self._command)

    def listens(self):
        """Whether all sockets listen. Nothing is connected to: a controller takes one front end."""
        lines = pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]
        rows = [line.split(None, 7) for line in lines]
        listening = {row[7] for row in rows if len(row) == 8 and int(row[3], 16) & LISTENS}
        return self._sockets <= listening


def start(lab, words, sockets, program=Vscsi.binary):
    """A started back end that the test ends: with exit code 0 on SIGTERM, by `Lab.finish`."""
    return lab.target([], make=Backend, words=words, sockets=sockets, program=program)


def device(socket, number=0, options=""):
    """QEMU's arguments for a controller there; guest memory must be shared."""
    return ["-chardev", f"socket,id=vhost{number},path={socket}",
            "-device", f"vhost-user-scsi-pci,id=scsi{number},chardev=vhost{number}{options}"]
