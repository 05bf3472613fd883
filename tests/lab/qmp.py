"""QEMU's control socket (QMP): commands, one at a time."""

import json
import socket

from harness import Failed, check, wait_until


class Qmp:
    """A connection to the socket of a machine that was started with `-qmp unix:PATH,server=on`."""

    def __init__(self, path, seconds=20):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        wait_until(lambda: self._connects(str(path)), seconds, f"QMP at {path}")
        self._lines = self._socket.makefile("r", encoding="utf-8")
        check("QMP" in json.loads(self._lines.readline()), "no greeting on the QMP socket")
        self.execute("qmp_capabilities")

    def _connects(self, path):
        try:
            self._socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def execute(self, command, **arguments):
        """Runs a command and returns its answer; `_` in the names of arguments stands for `-`."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"QMP {command}: {answer['error']['desc']}")
        raise Failed(f"QMP {command}: the machine closed the socket")

    def close(self):
        """Lets the next one connect."""
        self._lines.close()
        self._socket.close()
