//! What is printed at start: what is exported, to whom, and the lines to paste.

use std::{fs, io::Write, net::SocketAddr, path::Path};

use iscsi::negotiate::Transport;
use serde_json::json;

use super::{Daemon, Portal};
use crate::{
    config::{
        Allow, Config, TargetConfig,
        srp::{PortName, SrpAllow, SrpPort},
        vhost_user::Protocol,
    },
    size,
};

/// Prints it to standard output.
pub fn print(
    daemon: &Daemon,
    config: &Config,
    portals: &[Portal],
    control: Option<&Path>,
    demo: bool,
    as_json: bool,
) {
    let text = match as_json {
        true => object(daemon, config, portals, control),
        false => text(daemon, config, portals, control, demo),
    };
    // Who closed standard output does not want to know.
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One line for the service manager.
pub fn status(daemon: &Daemon, portals: &[Portal]) -> String {
    let targets = daemon.exporter.model.targets();
    let luns: usize = targets.iter().map(|target| target.luns().len()).sum();
    let addresses = portals.iter().map(shown);
    let sockets = daemon.fronts.iter().map(|front| front.place());
    let srp = daemon.over_rdma.listen.iter().map(|address| format!("{address} (SRP)"));
    let places: Vec<String> = addresses.chain(sockets).chain(srp).collect();
    format!("{luns} LUNs of {} targets on {}", targets.len(), places.join(", "))
}

/// A portal as people read it.
fn shown(portal: &Portal) -> String {
    match portal.transport {
        Transport::Tcp => portal.address.to_string(),
        Transport::Rdma => format!("{} (iSER)", portal.address),
    }
}

fn object(daemon: &Daemon, config: &Config, portals: &[Portal], control: Option<&Path>) -> String {
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
        .map(|portal| {
            let transport = match portal.transport {
                Transport::Tcp => "tcp",
                Transport::Rdma => "iser",
            };
            let address = portal.address.to_string();
            json!({"address": address, "tag": portal.tag, "transport": transport})
        })
        .collect();
    let ports = config.srp.ports.iter().map(|port| {
        let PortName { id_ext, ioc_guid } = port.name;
        let [id_ext, ioc_guid] = [id_ext, ioc_guid].map(|half| format!("0x{half:016x}"));
        json!({"target": port.target.as_str(), "id_ext": id_ext, "ioc_guid": ioc_guid})
    });
    let listen = daemon.over_rdma.listen.iter().map(|address| address.to_string());
    let srp = json!({
        "listen": listen.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
    });
    let controllers = |protocol| {
        let fronts = daemon.fronts.iter().filter(|front| front.protocol() == protocol);
        fronts.map(|front| front.facts()).collect::<Vec<_>>()
    };
    let object = json!({
        "targets": targets,
        "portals": portals,
        "control": control,
        "vhost_user": controllers(Protocol::VhostUser),
        "vfio_user": controllers(Protocol::VfioUser),
        "tcmu": config.tcmu,
        "srp": srp,
    });
    format!("{object}\n")
}

fn text(
    daemon: &Daemon,
    config: &Config,
    portals: &[Portal],
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
        if let Some(port) = config.srp.ports.iter().find(|port| port.target == target.name) {
            text += &log_in(port, &daemon.over_rdma.listen);
        }
    }
    for (index, front) in daemon.fronts.iter().enumerate() {
        text += &front.about();
        match front.socket() {
            Some(socket) if index < MOST_TO_PASTE => {
                let socket = socket.to_string_lossy();
                text += &match front.protocol() {
                    Protocol::VhostUser => plug(&socket, front.queues(), index),
                    Protocol::VfioUser => plug_function(&socket),
                };
            }
            _ => {}
        }
    }
    if config.tcmu {
        let luns = daemon.exporter.model.targets();
        let first = luns.iter().find_map(|t| Some((t.name.clone(), t.luns().first()?.0)));
        text += &backstore(first);
    }
    match control {
        Some(path) => text += &format!("\nControl socket: {}\n", path.display()),
        None => text += "\nThere is no control socket.\n",
    }
    text
}

fn about(daemon: &Daemon, target: &TargetConfig, portals: &[Portal]) -> String {
    let reached: Vec<&Portal> =
        portals.iter().filter(|portal| target.is_reached_by(portal.tag)).collect();
    let addresses: Vec<String> = reached.iter().copied().map(shown).collect();
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
    if reached.is_empty() {
        return text;
    }
    let who = match &target.allow {
        Allow::Any if reached.iter().all(|portal| portal.address.ip().is_loopback()) => {
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
    let first = |transport: Transport| {
        reached.iter().find(|portal| portal.transport == transport).map(|portal| portal.address)
    };
    let (name, lun) = (target.name.as_str(), luns.first().map_or(0, |(number, _)| *number));
    if let Some(address) = first(Transport::Tcp) {
        text += &paste(name, address, lun);
    }
    if let Some(address) = first(Transport::Rdma) {
        text += &paste_iser(name, address, lun);
    }
    text
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

/// Lines for the initiators that speak iSER. Its discovery is over iSER too.
fn paste_iser(name: &str, address: SocketAddr, lun: u16) -> String {
    let portal = reachable(address);
    format!(
        "\n  iSER, Linux: iscsiadm -m discovery -t sendtargets -p {portal} -I iser\n\
         \x20              iscsiadm -m node -T {name} -p {portal} -I iser --login\n\
         \x20 iSER, QEMU:  -device virtio-scsi-pci -device scsi-hd,drive=d0 \\\n\
         \x20              -drive if=none,id=d0,format=raw,file=iser://{portal}/{name}/{lun}\n"
    )
}

/// Who may log in by SRP, and the lines for Linux.
fn log_in(port: &SrpPort, listen: &[SocketAddr]) -> String {
    let who = match &port.allow {
        SrpAllow::Any => "EVERY initiator that reaches this address".to_owned(),
        SrpAllow::Only(list) if list.is_empty() => "nobody: its allow list is empty".to_owned(),
        SrpAllow::Only(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let PortName { id_ext, ioc_guid } = port.name;
    let addresses: Vec<String> = listen.iter().map(SocketAddr::to_string).collect();
    let mut text = format!("\n  SRP on {}, may log in: {who}\n", addresses.join(", "));
    if let Some(&address) = listen.first() {
        let dest = destination(address);
        text += &format!(
            "  SRP, Linux:  modprobe ib_srp\n\
             \x20              echo id_ext=0x{id_ext:016x},ioc_guid=0x{ioc_guid:016x},dest={dest} \\\n\
             \x20                > /sys/class/infiniband_srp/srp-DEVICE-1/add_target\n"
        );
    }
    text
}

/// Lines for the kernel's target, whose fabrics reach what they make.
fn backstore(first: Option<(String, u16)>) -> String {
    let (target, lun) = first.unwrap_or_else(|| ("TARGET".to_owned(), 0));
    format!(
        "\nTCMU, for the kernel's fabrics; a backstore that leads to a LUN:\n\
         \x20   mkdir -p /sys/kernel/config/target/core/user_0/disk{lun}\n\
         \x20   cd /sys/kernel/config/target/core/user_0/disk{lun}\n\
         \x20   echo dev_config=vscsi/{target}/{lun} > control && echo 1 > enable\n"
    )
}

/// An address that the kernel takes, which looks up no names.
fn destination(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("ADDRESS:{}", address.port()),
        false => address.to_string(),
    }
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

/// Lines for the VMMs that speak vfio-user.
fn plug_function(socket: &str) -> String {
    let device = json!({
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": socket},
    });
    format!(
        "\n  QEMU from 10.1 on:\n\
         \x20   -object memory-backend-memfd,id=m,size=2G,share=on -machine memory-backend=m \\\n\
         \x20   -device {}\n\
         \x20 Cloud Hypervisor:\n\
         \x20   --memory size=2G,shared=on \\\n\
         \x20   --user-device {}\n",
        shell(&device.to_string()),
        shell(&format!("socket={socket}")),
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
    use iscsi::names::IscsiName;

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
    fn lines_of_a_function_name_its_socket() {
        let text = plug_function("/run/vscsi/vm2.sock");
        let socket = r#"{"path":"/run/vscsi/vm2.sock","type":"unix"}"#;
        let device = format!("-device '{{\"driver\":\"vfio-user-pci\",\"socket\":{socket}}}'\n");
        assert!(text.contains(&device), "{text}");
        assert!(text.contains("--user-device socket=/run/vscsi/vm2.sock\n"), "{text}");
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
    fn lines_of_iser_name_its_interface_and_its_scheme() {
        let text = paste_iser("iqn.2026-11.org.x:t", "192.0.2.1:3260".parse().unwrap(), 3);
        assert!(text.contains("sendtargets -p 192.0.2.1:3260 -I iser\n"), "{text}");
        assert!(text.contains("-p 192.0.2.1:3260 -I iser --login\n"), "{text}");
        assert!(text.contains("file=iser://192.0.2.1:3260/iqn.2026-11.org.x:t/3\n"), "{text}");
    }

    #[test]
    fn the_line_of_srp_is_what_the_kernel_takes() {
        let port = SrpPort {
            target: IscsiName::parse("iqn.2026-11.org.x:t").unwrap(),
            name: PortName { id_ext: 0xA, ioc_guid: 0xB },
            allow: SrpAllow::Only(Vec::new()),
        };
        let text = log_in(&port, &["192.0.2.1:5555".parse().unwrap()]);
        let line =
            "echo id_ext=0x000000000000000a,ioc_guid=0x000000000000000b,dest=192.0.2.1:5555 ";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("may log in: nobody"), "{text}");
        let text = log_in(&port, &["[::]:5555".parse().unwrap()]);
        assert!(text.contains(",dest=ADDRESS:5555 "), "{text}");
    }

    #[test]
    fn an_address_that_means_all_is_not_printed() {
        assert!(!reachable("0.0.0.0:3260".parse().unwrap()).starts_with("0.0.0.0"));
    }
}
