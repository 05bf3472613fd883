"""`vscsi` as the backend of vhost-user-scsi controllers, and an iSCSI target besides."""

import json
import struct

from initiator import Session
from targets import NAME, Vscsi

QUEUES = 4
KEY = 0x150150
# The same initiator port each time: its registrations stay its own.
PORT = b"\x80\0\0\0\0\1"
STATUSES = {0x00: "good", 0x02: "check condition", 0x18: "conflict"}


class VhostVscsi(Vscsi):
    """One target on the first socket and over iSCSI, and one more on each socket after it.

    `luns` are the first target's; `spare` has a logical unit for each of the others.
    """

    # The key of the sockets in the configuration file.
    protocol = "vhost_user"

    def __init__(self, lab, luns, *, spare=(), state_dir=None, **options):
        super().__init__(lab, luns, **options)
        self._spare = spare
        self._state_dir = state_dir or lab.scratch / f"state-{self.port}"
        self.sockets = [lab.scratch / f"vhost-{self.port}-{number}.sock"
                        for number in range(1 + len(spare))]

    def arguments(self):
        """All of it stands in a configuration file: several targets have no command line."""
        names = [self.name, *(f"{NAME}-{number}" for number in range(1, len(self.sockets)))]
        groups = [self.luns, *([lun] for lun in self._spare)]
        path = self.lab.scratch / f"config-{self.port}.json"
        path.write_text(json.dumps({
            "control": str(self.control_path),
            "state_dir": str(self._state_dir),
            "portal_groups": [{"tag": 1, "listen": [self.address]}],
            self.protocol: [
                # The port's name is the same wherever the guest goes.
                {"socket": str(socket), "queues": QUEUES, "name": f"guest-{number}",
                 "targets": [{"id": 0, "target": name}]}
                for number, (socket, name) in enumerate(zip(self.sockets, names))
            ],
            "targets": [
                {"name": name, "luns": [self._lun(lun) for lun in luns], "allow_any": True}
                for name, luns in zip(names, groups)
            ],
        }))
        return ["--config", path]

    def over_iscsi(self, verb):
        """What comes of a command of an iSCSI initiator on LUN 0: a word for its status."""
        with Session(self, isid=PORT) as session:
            session.clear_attentions(0)
            if verb == "write":
                return STATUSES[session.write(0, 0, bytes(512)).status]
            if verb == "reserve":
                self._reserve_out(session, 0, 0, KEY)
                # Write exclusive: others may read.
                return STATUSES[self._reserve_out(session, 1, KEY, 0, kind=1).status]
            return STATUSES[self._reserve_out(session, 3, KEY, 0).status]

    @staticmethod
    def _reserve_out(session, action, key, new_key, kind=0):
        data = struct.pack(">QQ8x", key, new_key)
        cdb = struct.pack(">BBB2xIx", 0x5F, action, kind, len(data))
        return session.scsi(0, cdb, data_out=data)
