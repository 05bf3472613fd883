//! What is printed at start: what is exported, to whom, and the lines to paste.

use std::{fs, io::Write, net::SocketAddr, path::Path};

use serde_json::json;

use super::Daemon;
use crate::{
    config::{Allow, Config, TargetConfig},
    size,
};

/// Prints it to standard output.
pub fn print(
    daemon: &Daemon,
    config: &Config,
    portals: &[(SocketAddr, u16)],
    control: Option<&Path>,
    demo: bool,
    as_json: bool,
) {
    let text = match as_json {
        true => object(daemon, portals, control),
        false => text(daemon, config, portals, control, demo),
    };
    // Who closed standard output does not want to know.
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One line for the service manager.
pub fn status(daemon: &Daemon, portals: &[(SocketAddr, u16)]) -> String {
    let targets = daemon.exporter.model.targets();
    let luns: usize = targets.iter().map(|target| target.luns().len()).sum();
    let addresses = portals.iter().map(|(address, _)| address.to_string());
    let sockets = daemon.fronts.iter().map(|front| front.place());
    let places: Vec<String> = addresses.chain(sockets).collect();
    format!("{luns} LUNs of {} targets on {}", targets.len(), places.join(", "))
}

fn object(daemon: &Daemon, portals: &[(SocketAddr, u16)], control: Option<&Path>) -> String {
    let targets: Vec<_> = daemon
        .exporter
        .model
        .targets()
        .iter()
        .map(|target| {
            let luns: Vec<u16> = target.luns().iter().map(|(number, _)| *number).collect();
            json!({"name": target.name, "luns": luns})
        })
        .collect();
    let portals: Vec<_> = portals
        .iter()
        .map(|(address, tag)| json!({"address": address.to_string(), "tag": tag}))
        .collect();
    let controllers: Vec<_> = daemon.fronts.iter().map(|front| front.facts()).collect();
    let object = json!({
        "targets": targets,
        "portals": portals,
        "control": control,
        "vhost_user": controllers,
    });
    format!("{object}\n")
}

fn text(
    daemon: &Daemon,
    config: &Config,
    portals: &[(SocketAddr, u16)],
    control: Option<&Path>,
    demo: bool,
) -> String {
    let mut text = format!("vscsi {} is ready.\n", env!("CARGO_PKG_VERSION"));
    if demo {
        text += "Nothing was asked for, so this is a RAM disk for initiators of this host.\n\
                 What is written to it is gone when vscsi ends. One for a guest:\n\
                 \x20 vscsi serve --ram 1G --vhost-user /tmp/vm1.sock\n\
                 See also vscsi serve --help.\n";
    }
    for target in &config.targets {
        text += &about(daemon, target, portals);
    }
    for (index, front) in daemon.fronts.iter().enumerate() {
        text += &front.about();
        match front.socket() {
            Some(socket) if index < MOST_TO_PASTE => {
                text += &plug(&socket.to_string_lossy(), front.queues(), index);
            }
            _ => {}
        }
    }
    match control {
        Some(path) => text += &format!("\nControl socket: {}\n", path.display()),
        None => text += "\nThere is no control socket.\n",
    }
    text
}

fn about(daemon: &Daemon, target: &TargetConfig, portals: &[(SocketAddr, u16)]) -> String {
    let reached: Vec<SocketAddr> = portals
        .iter()
        .filter(|&&(_, tag)| target.is_reached_by(tag))
        .map(|(address, _)| *address)
        .collect();
    let addresses: Vec<String> = reached.iter().map(SocketAddr::to_string).collect();
    let mut text = match addresses.is_empty() {
        true => format!("\nTarget {}\n", target.name),
        false => format!("\nTarget {} on {}\n", target.name, addresses.join(", ")),
    };
    let luns = daemon.exporter.model.target(target.name.as_str()).map(|t| t.luns());
    let luns = luns.unwrap_or_default();
    if luns.is_empty() {
        text += "  no LUNs yet: vscsi lun add --ram 1G\n";
    }
    for (number, lu) in &luns {
        let properties = lu.backend.properties();
        let read_only = lu.config.read_only || properties.read_only;
        text += &format!(
            "  LUN {number}: {}, {}, {}-byte blocks{}{}\n",
            properties.description,
            size::show(lu.backend.len()),
            properties.block_size,
            if read_only { ", read-only" } else { "" },
            if lu.config.removable { ", removable" } else { "" },
        );
    }
    let Some(&first) = reached.first() else { return text };
    let who = match &target.allow {
        Allow::Any if reached.iter().all(|address| address.ip().is_loopback()) => {
            "every initiator of this host".to_owned()
        }
        Allow::Any => "EVERY initiator that reaches this address".to_owned(),
        Allow::Names(names) if names.is_empty() => "nobody: its allow list is empty".to_owned(),
        Allow::Names(names) => {
            names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
        }
    };
    let chap = if target.chap.is_some() { ", with CHAP" } else { "" };
    text += &format!("  may log in: {who}{chap}\n");
    text + &paste(target.name.as_str(), first, luns.first().map_or(0, |(number, _)| *number))
}

/// Lines for the initiators people have.
fn paste(name: &str, address: SocketAddr, lun: u16) -> String {
    let portal = reachable(address);
    format!(
        "\n  Linux:    iscsiadm -m discovery -t sendtargets -p {portal}\n\
         \x20           iscsiadm -m node -T {name} -p {portal} --login\n\
         \x20 QEMU:     -device virtio-scsi-pci -device scsi-hd,drive=d0 \\\n\
         \x20           -drive if=none,id=d0,format=raw,file=iscsi://{portal}/{name}/{lun}\n\
         \x20 libiscsi: iscsi-ls -s iscsi://{portal}\n"
    )
}

/// Lines for the VMMs people have. `index` makes names that are unique in one VMM.
fn plug(socket: &str, queues: u16, index: usize) -> String {
    // QEMU ends a value at a comma; Cloud Hypervisor takes a value between quotes as it is.
    let path = shell(&socket.replace(',', ",,"));
    let quoted = socket.contains([',', '[', ']', '"']);
    let hypervisor =
        if quoted { format!("\"{}\"", socket.replace('"', "\"\"")) } else { socket.into() };
    let sizes = vec!["128"; usize::from(queues) + 2].join(",");
    let device = shell(&format!("socket={hypervisor},device_type=scsi,queue_sizes=[{sizes}]"));
    // Before 8.2 QEMU refuses a socket that reconnects, and a backend that ends is lost.
    let qemu = |title: &str, reconnect: &str| {
        format!(
            "  {title}\n\
             \x20   -object memory-backend-memfd,id=m,size=2G,share=on -machine memory-backend=m \\\n\
             \x20   -chardev socket,id=s{index},path={path}{reconnect} \\\n\
             \x20   -device vhost-user-scsi-pci,chardev=s{index},num_queues={queues}\n"
        )
    };
    format!(
        "\n{}{}  Cloud Hypervisor:\n\
         \x20   --memory size=2G,shared=on \\\n\
         \x20   --generic-vhost-user {device}\n",
        qemu("QEMU from 9.2 on (8.2 to 9.1: reconnect=1):", ",reconnect-ms=200"),
        qemu("QEMU before 8.2:", ""),
    )
}

/// A word as a shell takes it.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// An address that a peer can type: the host's name where every address is listened on.
fn reachable(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" | "(none)" => format!("localhost:{}", address.port()),
        name => format!("{name}:{}", address.port()),
    }
}

/// Controllers that lines are printed for; the others differ in the socket only.
const MOST_TO_PASTE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_to_paste_name_socket_and_queues() {
        let text = plug("/run/vscsi/vm1.sock", 2, 1);
        for line in [
            "-machine memory-backend=m \\\n",
            "-chardev socket,id=s1,path=/run/vscsi/vm1.sock,reconnect-ms=200 \\\n",
            "-chardev socket,id=s1,path=/run/vscsi/vm1.sock \\\n",
            "-device vhost-user-scsi-pci,chardev=s1,num_queues=2\n",
            "--generic-vhost-user 'socket=/run/vscsi/vm1.sock,device_type=scsi,\
             queue_sizes=[128,128,128,128]'\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_path_is_quoted_for_shell_and_vmm() {
        let text = plug("/a b,c'd", 1, 0);
        assert!(text.contains("-chardev socket,id=s0,path='/a b,,c'\\''d',reconnect-ms"), "{text}");
        assert!(text.contains("'socket=\"/a b,c'\\''d\",device_type=scsi"), "{text}");
    }

    #[test]
    fn lines_to_paste_name_portal_target_and_lun() {
        let text = paste("iqn.2026-11.org.x:t", "[::1]:3261".parse().unwrap(), 3);
        assert!(text.contains("sendtargets -p [::1]:3261\n"), "{text}");
        assert!(text.contains("file=iscsi://[::1]:3261/iqn.2026-11.org.x:t/3\n"), "{text}");
    }

    #[test]
    fn an_address_that_means_all_is_not_printed() {
        assert!(!reachable("0.0.0.0:3260".parse().unwrap()).starts_with("0.0.0.0"));
    }
}
