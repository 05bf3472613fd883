//! Tables for people.

use crate::{
    control::api::{ControllerInfo, LunInfo, Session, SessionInfo, SrpSession, Stats, TcmuInfo},
    size,
};

/// Logical units.
pub fn luns(luns: &[LunInfo]) -> String {
    if luns.is_empty() {
        return "no logical units; vscsi lun add adds one\n".to_owned();
    }
    let mut rows =
        vec![row(["TARGET", "LUN", "SIZE", "BLOCK", "ACCESS", "SESSIONS", "SERIAL", "BACKEND"])];
    rows.extend(luns.iter().map(|lun| {
        let mut access = vec![if lun.read_only { "ro" } else { "rw" }];
        access.extend(lun.removable.then_some("removable"));
        access.extend(lun.thin.then_some("thin"));
        row([
            lun.target.as_str(),
            &lun.lun.to_string(),
            &size::show(lun.size),
            &lun.block_size.to_string(),
            &access.join(","),
            &lun.nexuses.to_string(),
            &lun.serial,
            &lun.backend,
        ])
    }));
    align(&rows)
}

/// Sessions, then controllers, then devices of the kernel.
pub fn who(who: &[Session]) -> String {
    let (mut logged_in, mut controllers, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    for session in who {
        match session {
            Session::VhostUser(controller) => controllers.push(("vhost-user", controller)),
            Session::VfioUser(controller) => controllers.push(("vfio-user", controller)),
            Session::Tcmu(device) => devices.push(device),
            _ => logged_in.extend(cells(session)),
        }
    }
    let mut tables = Vec::new();
    if !logged_in.is_empty() || controllers.is_empty() && devices.is_empty() {
        tables.push(sessions(logged_in));
    }
    if !controllers.is_empty() {
        tables.push(plugged(&controllers));
    }
    if !devices.is_empty() {
        tables.push(tcmu(&devices));
    }
    tables.join("\n")
}

fn tcmu(devices: &[&TcmuInfo]) -> String {
    let mut rows = vec![row(["TCMU", "DEVICE", "TARGET", "LUN"])];
    rows.extend(devices.iter().map(|device| {
        let uio = format!("/dev/uio{}", device.uio);
        row([device.device.as_str(), &uio, &device.target, &device.lun.to_string()])
    }));
    align(&rows)
}

fn plugged(controllers: &[(&str, &ControllerInfo)]) -> String {
    let mut rows = vec![row(["CONTROLLER", "BY", "STATE", "QUEUES", "TARGETS", "SOCKET"])];
    rows.extend(controllers.iter().map(|(by, controller)| {
        let targets: Vec<String> = controller
            .targets
            .iter()
            .map(|entry| format!("{}={}", entry.id, entry.target))
            .collect();
        let socket = controller.socket.as_ref().map(|path| path.display().to_string());
        row([
            controller.name.as_str(),
            by,
            if controller.connected { "connected" } else { "waiting" },
            &format!("{} running", controller.queues_running),
            &targets.join(" "),
            socket.as_deref().unwrap_or("(inherited)"),
        ])
    }));
    align(&rows)
}

/// Sessions.
fn sessions(rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return "nobody is logged in\n".to_owned();
    }
    let titles =
        ["ID", "BY", "INITIATOR", "TARGET", "FROM", "SINCE", "COMMANDS", "READ", "WRITTEN"];
    let rows: Vec<_> = std::iter::once(row(titles)).chain(rows).collect();
    align(&rows)
}

/// A session's row; a controller has none.
fn cells(session: &Session) -> Option<Vec<String>> {
    Some(match session {
        Session::Iscsi(session) => iscsi("iscsi", session),
        Session::Iser(session) => iscsi("iser", session),
        Session::Srp(session) => srp(session),
        Session::VhostUser(_) | Session::VfioUser(_) | Session::Tcmu(_) => return None,
    })
}

fn iscsi(by: &str, session: &SessionInfo) -> Vec<String> {
    let peers: Vec<&str> = session.connections.iter().map(|c| c.peer.as_str()).collect();
    row([
        session.id.to_string().as_str(),
        by,
        &session.initiator,
        session.target.as_deref().unwrap_or("(discovery)"),
        &peers.join(" "),
        &duration(session.age_seconds),
        &session.commands.to_string(),
        &size::show(session.read_bytes),
        &size::show(session.written_bytes),
    ])
}

fn srp(session: &SrpSession) -> Vec<String> {
    let peers: Vec<&str> = session.channels.iter().map(|c| c.peer.as_str()).collect();
    row([
        format!("srp{}", session.id).as_str(),
        "srp",
        &session.initiator,
        &session.target,
        &peers.join(" "),
        &duration(session.age_seconds),
        &session.commands.to_string(),
        &size::show(session.read_bytes),
        &size::show(session.written_bytes),
    ])
}

/// Counters.
pub fn stats(stats: &Stats) -> String {
    let mut text = format!(
        "vscsi {} (process {}), up {}\n\n",
        stats.version,
        stats.pid,
        duration(stats.uptime_seconds)
    );
    let mut rows = vec![row([
        "TARGET", "LUN", "READS", "READ", "WRITES", "WRITTEN", "FAILURES", "ERRORS", "LATE",
        "COPIED", "RESETS",
    ])];
    rows.extend(stats.luns.iter().map(|lun| {
        row([
            lun.target.as_str(),
            &lun.lun.to_string(),
            &lun.reads.to_string(),
            &size::show(lun.read_bytes),
            &lun.writes.to_string(),
            &size::show(lun.write_bytes),
            &lun.failures.to_string(),
            &lun.backend_errors.to_string(),
            &lun.timeouts.to_string(),
            &lun.bounces.to_string(),
            &lun.resets.to_string(),
        ])
    }));
    text += &align(&rows);
    text.push('\n');
    let mut rows = vec![row(["REACTOR", "SESSIONS", "READS", "WRITES", "CPU SECONDS"])];
    rows.extend(stats.reactors.iter().map(|reactor| {
        row([
            reactor.reactor.to_string().as_str(),
            &reactor.sessions.to_string(),
            &reactor.reads.to_string(),
            &reactor.writes.to_string(),
            &format!("{:.1}", reactor.cpu_milliseconds as f64 / 1000.0),
        ])
    }));
    text += &align(&rows);
    text.push('\n');
    text + &sessions(stats.sessions.iter().filter_map(cells).collect())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns two spaces apart; the last one as long as it is.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{SrpChannel, TargetEntry};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(["A", "B"]), row(["long", "x"])];
        assert_eq!(align(&rows), "A     B\nlong  x\n");
    }

    #[test]
    fn controllers_are_listed_with_their_state() {
        let controller = ControllerInfo {
            name: "vm1".to_owned(),
            socket: Some("/run/vm1.sock".into()),
            connected: true,
            queues: 4,
            queues_running: 6,
            targets: vec![TargetEntry { id: 0, target: "iqn.x:a".to_owned() }],
        };
        let other = ControllerInfo { connected: false, queues_running: 0, ..controller.clone() };
        let expected = "CONTROLLER  BY          STATE      QUEUES     TARGETS    SOCKET\n\
                        vm1         vhost-user  connected  6 running  0=iqn.x:a  /run/vm1.sock\n\
                        vm1         vfio-user   waiting    0 running  0=iqn.x:a  /run/vm1.sock\n";
        let both = [Session::VhostUser(controller), Session::VfioUser(other)];
        assert_eq!(who(&both), expected);
        assert_eq!(who(&[]), "nobody is logged in\n");
    }

    #[test]
    fn sessions_of_srp_are_listed_by_the_name_that_ends_them() {
        let channel =
            |number| SrpChannel { number, peer: format!("192.0.2.7:{number}"), reactor: 0 };
        let session = SrpSession {
            id: 3,
            initiator: "0x05".to_owned(),
            target: "iqn.x:a".to_owned(),
            age_seconds: 1,
            channels: vec![channel(0), channel(1)],
            commands: 2,
            read_bytes: 512,
            written_bytes: 0,
            refused: 0,
        };
        let text = who(&[Session::Srp(session)]);
        let row = "srp3  srp  0x05       iqn.x:a  192.0.2.7:0 192.0.2.7:1  1 s    2";
        assert!(text.lines().nth(1).unwrap().starts_with(row), "{text}");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(3660), "1 h 1 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
