//! The program behind vhost-user as a VMM and its user meet it: the controller it serves, what it
//! prints, how it ends.
#![allow(clippy::unwrap_used)] // What is not as expected fails the test.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{PermissionsExt, symlink},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Scratch, Target, VSCSI, error, vscsi};
use vhost_frontend::{Device, Link, Setup, scsi};

const LUN: fn(u8, u16) -> [u8; 8] = scsi::lun;

#[test]
fn a_guest_and_an_iscsi_initiator_share_the_same_disk() {
    let scratch = Scratch::new("vu-share");
    let socket = scratch.path("vm1.sock");
    let image = scratch.image("a.img");
    let target = Target::start(&scratch, &["--vhost-user", &socket, "--queues", "2", &image]);
    let mut device = Device::connect(&socket, &Setup { queues: 2, ..Setup::default() }).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    assert_eq!(device.capacity(LUN(0, 0)).unwrap(), (2048, 512));
    let block = vec![0x5A; 512];
    assert!(device.request_on(3, LUN(0, 0), &scsi::write(7, 1), &block, 0).unwrap().is_good());
    assert_eq!(device.request(LUN(0, 0), &scsi::read(7, 1), &[], 512).unwrap().data, block);
    assert_eq!(fs::read(&image).unwrap()[7 * 512..8 * 512], block);
    let listed = target.json(&["lun", "list"]);
    assert_eq!((&listed[0]["lun"], &listed[0]["nexuses"]), (&0.into(), &1.into()));
    // Another target id has nothing (VIRTIO 1.3, 5.6.6.1.1: BAD_TARGET).
    assert_eq!(device.request(LUN(1, 0), &scsi::test_unit_ready(), &[], 0).unwrap().response, 3);
}

#[test]
fn the_list_says_who_is_connected() {
    let scratch = Scratch::new("vu-list");
    let socket = scratch.path("vm1.sock");
    let target = Target::serve(&scratch, &["--vhost-user", &socket, "--ram", "1M"]);
    let entry = |target: &Target| target.json(&["session", "list"])[0].clone();
    let waiting = entry(&target);
    assert_eq!((&waiting["transport"], &waiting["name"]), (&"vhost-user".into(), &"vm1".into()));
    assert_eq!((&waiting["connected"], &waiting["queues_running"]), (&false.into(), &0.into()));
    assert_eq!(waiting["socket"], socket.as_str());
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    let connected = entry(&target);
    assert_eq!((&connected["connected"], &connected["queues_running"]), (&true.into(), &3.into()));
    drop(device);
    eventually("the controller waits again", || entry(&target)["connected"] == false);
    // And takes the next one.
    Device::connect(&socket, &Setup::default()).unwrap().settle(LUN(0, 0)).unwrap();
}

#[test]
fn kick_is_for_sessions() {
    let scratch = Scratch::new("vu-kick");
    let socket = scratch.path("vm1.sock");
    let target = Target::serve(&scratch, &["--vhost-user", &socket, "--ram", "1M"]);
    let refused = target.ask(&["session", "kick", "vm1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(error(&refused).contains("only sessions can be ended here"), "{}", error(&refused));
    let table = String::from_utf8(target.ask(&["session", "list"]).stdout).unwrap();
    assert!(table.contains("vm1") && table.contains("waiting"), "{table}");
}

#[test]
fn luns_come_and_go_under_a_guest() {
    let scratch = Scratch::new("vu-hotplug");
    let socket = scratch.path("vm1.sock");
    let (first, second) = (scratch.image("a.img"), scratch.image("b.img"));
    let target = Target::serve(&scratch, &["--vhost-user", &socket, &first]);
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    device.post_events(4).unwrap();
    assert!(target.ask(&["lun", "add", &second]).status.success());
    // TRANSPORT_RESET with reason RESCAN, and LUN 1 as REPORT LUNS writes it.
    let event = device.event(Duration::from_secs(5)).unwrap();
    assert_eq!((event.event, event.lun, event.reason), (1, [1, 0, 0, 1, 0, 0, 0, 0], 1));
    device.settle(LUN(0, 1)).unwrap();
    // The guest is idle then: its queues must not keep the image.
    let asked = Instant::now();
    assert!(target.ask(&["lun", "rm", "1"]).status.success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(device.event(Duration::from_secs(5)).unwrap().reason, 2);
    assert_eq!(target.json(&["lun", "add", &second])["lun"], 1);
}

#[test]
fn a_disk_that_moves_with_the_guest_can_be_removed() {
    let scratch = Scratch::new("vu-handover");
    let socket = scratch.path("vm1.sock");
    let disk = format!("{},handover", scratch.image("a.img"));
    let target = Target::serve(&scratch, &["--vhost-user", &socket, "--ram", "1M", &disk]);
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    device.settle(LUN(0, 1)).unwrap();
    let removed = target.ask(&["lun", "rm", "1"]);
    assert!(removed.status.success(), "{}", error(&removed));
}

#[test]
fn sigterm_ends_it_with_0_and_takes_the_socket_away() {
    let scratch = Scratch::new("vu-term");
    let socket = scratch.path("vm1.sock");
    let target = Target::serve(&scratch, &["--vhost-user", &socket, "--ram", "1M"]);
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    let (code, log) = target.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_guest_goes_on_after_a_kill() {
    let scratch = Scratch::new("vu-kill");
    let socket = scratch.path("vm1.sock");
    let image = scratch.image("a.img");
    let protocol = Setup::default().protocol | vhost_frontend::Protocol::INFLIGHT_SHMFD;
    let setup = Setup { protocol, ..Setup::default() };
    let mut target = Target::serve(&scratch, &["--vhost-user", &socket, &image]);
    let mut device = Device::connect(&socket, &setup).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    let block = vec![0xA7; 512];
    assert!(device.request(LUN(0, 0), &scsi::write(3, 1), &block, 0).unwrap().is_good());
    target.child.kill().unwrap();
    target.child.wait().unwrap();
    // The socket that was left behind is replaced.
    assert!(Path::new(&socket).exists());
    let _again = Target::serve(&scratch, &["--vhost-user", &socket, &image]);
    device.reconnect(&socket).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    assert_eq!(device.request(LUN(0, 0), &scsi::read(3, 1), &[], 512).unwrap().data, block);
}

#[test]
fn a_socket_in_use_is_named_and_keeps_working() {
    let scratch = Scratch::new("vu-in-use");
    let socket = scratch.path("vm1.sock");
    let _target = Target::serve(&scratch, &["--vhost-user", &socket, "--ram", "1M"]);
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    let args = ["serve", "--vhost-user", &socket, "--ram", "1M", "--control", "none"];
    let second = vscsi(&args);
    assert_eq!(second.status.code(), Some(75));
    let error = error(&second);
    assert!(error.starts_with("error[socket-in-use]: ") && error.contains(&socket), "{error}");
    // The second one looked whether somebody listens; the guest does not notice.
    device.settle(LUN(0, 0)).unwrap();
    drop(device);
    Device::connect(&socket, &Setup::default()).unwrap().settle(LUN(0, 0)).unwrap();
}

#[test]
fn a_socket_has_the_permissions_asked_for() {
    let scratch = Scratch::new("vu-mode");
    let (first, second) = (scratch.path("a.sock"), scratch.path("b.sock"));
    let open = format!("{second},mode=0666");
    let _target =
        Target::serve(&scratch, &["--vhost-user", &first, "--vhost-user", &open, "--ram", "1M"]);
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&first), mode(&second)), (0o600, 0o666));
}

#[test]
fn a_missing_directory_cannot_be_created_in() {
    let args = ["serve", "--vhost-user", "/nonexistent/a.sock", "--ram", "1M", "--control", "none"];
    let output = vscsi(&args);
    assert_eq!(output.status.code(), Some(73));
    assert!(error(&output).contains("fix: mkdir -p /nonexistent"), "{}", error(&output));
}

#[test]
fn nowhere_to_listen_is_a_usage_error() {
    let output = vscsi(&["serve", "--ram", "1M"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("--vhost-user SOCKET"), "{}", error(&output));
}

#[test]
fn lines_to_paste_are_printed_with_the_right_numbers() {
    let scratch = Scratch::new("vu-banner");
    let socket = scratch.path("vm1.sock");
    let mut child = Command::new(VSCSI)
        .args(["serve", "--ram", "1M", "--control", "none", "--queues", "3", "--vhost-user"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    while !text.contains("no control socket") {
        assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
    }
    end(&mut child);
    for part in [
        format!("path={socket},reconnect-ms=200"),
        format!("path={socket} "),
        "num_queues=3\n".to_owned(),
        format!("socket={socket},device_type=scsi,queue_sizes=[128,128,128,128,128]"),
    ] {
        assert!(text.contains(&part), "{part}\n{text}");
    }
    assert!(!text.contains("may log in"), "{text}");
}

#[test]
fn the_backend_program_prints_what_it_can() {
    let scratch = Scratch::new("vu-caps");
    let link = scratch.path("vhost-user-scsi");
    symlink(VSCSI, &link).unwrap();
    let by_name = Command::new(&link).arg("--print-capabilities").output().unwrap();
    let by_command = vscsi(&["vhost-user-scsi", "--print-capabilities"]);
    for output in [by_name, by_command] {
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed, serde_json::json!({"type": "scsi", "features": []}));
    }
}

#[test]
fn the_descriptor_has_what_qemu_defines() {
    let text = include_str!("../packaging/50-vscsi-vhost-user-scsi.json");
    let descriptor: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(descriptor["type"], "scsi");
    assert!(descriptor["description"].is_string());
    let binary = Path::new(descriptor["binary"].as_str().unwrap());
    assert!(binary.is_absolute());
    assert_eq!(binary.file_name().unwrap(), "vhost-user-scsi");
}

#[test]
fn the_backend_program_listens_and_ends_on_sigterm() {
    let scratch = Scratch::new("vu-program");
    let socket = scratch.path("vm.sock");
    let mut child = backend(&[&format!("--socket-path={socket}"), "--ram", "1M"], |_| {});
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    let mut device = Device::connect(&socket, &Setup::default()).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    assert_eq!(end(&mut child), Some(0));
    assert!(!Path::new(&socket).exists());
}

#[test]
fn the_backend_program_ends_with_the_peer_of_its_descriptor() {
    let scratch = Scratch::new("vu-fd");
    let path = scratch.path("pair.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let link = Link::connect(&path).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    // A number that no test in this process has: dup2 to itself would leave it to be closed by exec.
    let mut child = backend(&["--fd=200", "--ram", "1M"], |command| {
        #[allow(unsafe_code)] // Nothing else gives a child a descriptor with a number.
        // SAFETY: dup2 may be called between fork and exec.
        unsafe {
            let from = theirs.as_raw_fd();
            command.pre_exec(move || match nix::libc::dup2(from, 200) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    });
    drop(theirs);
    let mut device = Device::start(link, &Setup::default()).unwrap();
    device.settle(LUN(0, 0)).unwrap();
    drop(device);
    eventually("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_backend_program_fails_early_with_a_message() {
    for (args, code) in [
        (&["--fd=99", "--ram", "1M"][..], 66),
        (&["--socket-path=/nonexistent/a", "--ram", "1M"], 73),
        (&["--socket-path=/tmp/a", "/nonexistent.img"], 66),
        (&["--socket-path=/tmp/a"], 2),
        (&["--socket-path=/tmp/a", "--fd=3", "--ram", "1M"], 2),
        (&["--ram", "1M"], 2),
    ] {
        let output = vscsi(&[&["vhost-user-scsi"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", error(&output));
        assert!(error(&output).starts_with("error"), "{}", error(&output));
    }
}

#[test]
fn a_controller_of_the_configuration_sees_what_is_visible_to_it() {
    let scratch = Scratch::new("vu-config");
    let (first, second) = (scratch.path("vm1.sock"), scratch.path("vm2.sock"));
    let config = serde_json::json!({
        "vhost_user": [
            {"socket": first, "targets": [{"id": 5, "target": "iqn.2026-11.org.x:b"}]},
            {"socket": second, "targets": [{"id": 0, "target": "iqn.2026-11.org.x:b"}]},
        ],
        "targets": [
            {"name": "iqn.2026-11.org.x:a", "luns": [{"ram": "1M"}]},
            {"name": "iqn.2026-11.org.x:b", "luns": [
                {"ram": "2M"},
                {"ram": "3M", "visible_to": ["vm1"]},
            ]},
        ],
    });
    let file = scratch.path("c.json");
    fs::write(&file, config.to_string()).unwrap();
    let _target = Target::serve(&scratch, &["--config", &file]);
    let mut one = Device::connect(&first, &Setup::default()).unwrap();
    one.settle(LUN(5, 1)).unwrap();
    assert_eq!(one.capacity(LUN(5, 1)).unwrap().0, (3 << 20) / 512);
    let mut two = Device::connect(&second, &Setup::default()).unwrap();
    two.settle(LUN(0, 0)).unwrap();
    let absent = two.request(LUN(0, 1), &scsi::test_unit_ready(), &[], 0).unwrap();
    assert_eq!(absent.sense_code(), Some((5, 0x25, 0)));
}

/// A backend program that runs until it is ended.
fn backend(args: &[&str], prepare: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new(VSCSI);
    command.arg("vhost-user-scsi").args(args).args(["--state-dir", "none", "--reactors", "1"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    prepare(&mut command);
    command.spawn().unwrap()
}

/// Ends it as a service manager does; gives the exit code.
fn end(child: &mut Child) -> Option<i32> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    child.wait().unwrap().code()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within 10 seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}
