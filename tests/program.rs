//! The program as a user meets it: what it prints, how it ends, what the control socket does.
#![allow(clippy::unwrap_used)] // What is not as expected fails the test.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use common::{Scratch, Target, error, vscsi};

#[test]
fn disks_are_listed_in_the_order_given_and_shutdown_ends_with_0() {
    let scratch = Scratch::new("order");
    let image = scratch.image("a.img");
    let target = Target::start(&scratch, &["--ram", "2M", &image, "--null", "4M,bs=4096"]);
    let luns = target.json(&["lun", "list"]);
    let sizes: Vec<_> = (0..3).map(|n| luns[n]["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [2 << 20, 1 << 20, 4 << 20]);
    assert_eq!(luns[2]["block_size"], 4096);
    let socket = target.control.clone();
    let (code, log) = target.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_second_instance_on_an_image_says_who_holds_it() {
    let scratch = Scratch::new("second");
    let image = scratch.image("a.img");
    let target = Target::start(&scratch, &[&image]);
    let second =
        vscsi(&["serve", &image, "--iscsi", "127.0.0.1:0", "--allow-any", "--control", "none"]);
    assert_eq!(second.status.code(), Some(75));
    let error = error(&second);
    assert!(error.starts_with("error[image-in-use]: "), "{error}");
    assert!(error.contains(&format!("process {}", target.child.id())), "{error}");
    assert!(error.contains("\n  fix: "), "{error}");
}

#[test]
fn a_removed_lun_gives_its_image_free() {
    let scratch = Scratch::new("remove");
    let (first, second) = (scratch.image("a.img"), scratch.image("b.img"));
    let target = Target::start(&scratch, &[&first]);
    assert_eq!(target.json(&["lun", "add", &second])["lun"], 1);
    assert!(target.ask(&["lun", "rm", "0"]).status.success());
    // The lowest number is free again, and so is the image.
    assert_eq!(target.json(&["lun", "add", &first])["lun"], 0);
    let gone = target.ask(&["lun", "rm", "5"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(error(&gone).contains("its LUNs are 0, 1"), "{}", error(&gone));
}

#[test]
fn an_idle_session_does_not_keep_a_removed_image() {
    let scratch = Scratch::new("idle");
    let image = scratch.image("a.img");
    let target = Target::start(&scratch, &[&image]);
    let _session = log_in(target.portal());
    assert_eq!(target.json(&["session", "list"])[0]["initiator"], "iqn.2026-11.test:idle");
    assert!(target.ask(&["lun", "rm", "0"]).status.success());
    assert_eq!(target.json(&["lun", "add", &image])["lun"], 0);
    assert_eq!(target.json(&["lun", "list"])[0]["nexuses"], 1);
}

#[test]
fn a_kicked_session_is_gone() {
    let scratch = Scratch::new("kick");
    let target = Target::start(&scratch, &["--ram", "1M"]);
    let mut session = log_in(target.portal());
    let id = target.json(&["session", "list"])[0]["id"].to_string();
    assert!(target.ask(&["session", "kick", &id]).status.success());
    // An Asynchronous Message may come first; then the connection ends.
    session.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    session.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(target.json(&["session", "list"]).as_array().unwrap().len(), 0);
}

/// A session in full feature phase without authentication, by one Login Request (RFC 7143 11.12).
fn log_in(portal: &str) -> TcpStream {
    let text = b"InitiatorName=iqn.2026-11.test:idle\0TargetName=iqn.2026-11.org.vscsi:disk\0\
        SessionType=Normal\0";
    let mut pdu = vec![0; 48];
    pdu[0] = 0x43;
    // T, from operational negotiation to full feature phase.
    pdu[1] = 0x87;
    pdu[7] = u8::try_from(text.len()).unwrap();
    pdu[8..14].copy_from_slice(&[0x80, 0, 0, 1, 2, 3]);
    pdu.extend_from_slice(text);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    let mut stream = TcpStream::connect(portal).unwrap();
    stream.write_all(&pdu).unwrap();
    let mut header = [0; 48];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[0], 0x23);
    assert_eq!(header[36..38], [0, 0], "status of the login");
    let data = usize::from(u16::from_be_bytes([header[6], header[7]])).next_multiple_of(4);
    stream.read_exact(&mut vec![0; data]).unwrap();
    stream
}

#[test]
fn a_disk_grows_and_does_not_shrink_unasked() {
    let scratch = Scratch::new("resize");
    let image = scratch.image("a.img");
    let target = Target::start(&scratch, &[&image]);
    assert_eq!(target.json(&["lun", "resize", "0", "3M"])["size"], 3 << 20);
    assert_eq!(fs::metadata(&image).unwrap().len(), 3 << 20);
    let refused = target.ask(&["lun", "resize", "0", "1M"]);
    assert!(error(&refused).starts_with("error[shrink]: "), "{}", error(&refused));
    assert_eq!(target.json(&["lun", "resize", "0", "1M", "--shrink"])["size"], 1 << 20);
}

#[test]
fn a_port_in_use_is_named_with_a_remedy() {
    let scratch = Scratch::new("port");
    let target = Target::start(&scratch, &[]);
    let args = ["serve", "--iscsi", target.portal(), "--allow-any", "--control", "none"];
    let second = vscsi(&args);
    assert_eq!(second.status.code(), Some(75));
    let error = error(&second);
    assert!(error.contains(target.portal()) && error.contains("  fix: "), "{error}");
}

#[test]
fn nobody_allowed_is_a_usage_error() {
    let output = vscsi(&["serve", "--ram", "1M", "--iscsi", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("--allow"), "{}", error(&output));
}

#[test]
fn a_missing_image_is_no_input() {
    let args = ["serve", "/nonexistent.img", "--iscsi", "127.0.0.1:0", "--allow-any"];
    let output = vscsi(&args);
    assert_eq!(output.status.code(), Some(66));
    assert!(error(&output).contains("fix: truncate"), "{}", error(&output));
}

#[test]
fn check_names_an_unknown_key() {
    let scratch = Scratch::new("check");
    let file = scratch.0.join("c.json");
    fs::write(&file, "{\"portal_groups\": [],\n \"target\": []}").unwrap();
    let output = vscsi(&["check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    let error = error(&output);
    assert!(error.contains("c.json:2: unknown key \"target\""), "{error}");
    assert!(error.contains("did you mean \"targets\"?"), "{error}");
}

#[test]
fn check_says_when_a_configuration_needs_rdma() {
    let scratch = Scratch::new("rdma");
    let file = scratch.0.join("c.json");
    let text = r#"{"srp": {"listen": ["192.0.2.1:5555"], "ports": [{"allow_any": true}]},
        "targets": [{"name": "iqn.2026-11.org.x:a"}]}"#;
    fs::write(&file, text).unwrap();
    let output = vscsi(&["check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("c.json: needs RDMA, which is "), "{said}");
    let output = vscsi(&["--json", "check", file.to_str().unwrap()]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["rdma"]["built"], cfg!(feature = "rdma"));
}

#[test]
fn doctor_says_what_rdma_lacks_with_a_fix_for_each() {
    let output = vscsi(&["doctor", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rdma = &said["rdma"];
    let problems = rdma["problems"].as_array().unwrap();
    assert_eq!(rdma["usable"], problems.is_empty());
    let code = if problems.is_empty() { 0 } else { 69 };
    assert_eq!(output.status.code(), Some(code));
    let text = String::from_utf8(vscsi(&["doctor"]).stdout).unwrap();
    for problem in problems {
        let (what, fix) = (problem["what"].as_str().unwrap(), problem["fix"].as_str().unwrap());
        assert!(text.contains(&format!("  {what}\n    fix: {fix}\n")), "{text}");
    }
    assert_eq!(rdma["built"], cfg!(feature = "rdma"));
    if !cfg!(feature = "rdma") {
        assert!(text.contains("built without RDMA"), "{text}");
        assert!(text.contains("cargo build --release --features rdma"), "{text}");
    }
}

#[test]
fn rdma_that_is_not_there_is_refused_with_a_remedy() {
    for options in
        [["--iser", "203.0.113.1", "--allow-any"], ["--srp", "203.0.113.1:5555", "--srp-allow=any"]]
    {
        let args = [&["serve", "--ram", "1M", "--control", "none"], &options[..]].concat();
        // An address of documentation belongs to no device.
        let output = vscsi(&args);
        assert_eq!(output.status.code(), Some(69), "{}", error(&output));
        let error = error(&output);
        assert!(error.contains("\n  fix: "), "{error}");
        if !cfg!(feature = "rdma") {
            assert!(error.starts_with("error[no-rdma]: this vscsi was built without"), "{error}");
        }
    }
}

#[test]
fn srp_without_anybody_allowed_is_a_usage_error() {
    let output = vscsi(&["serve", "--ram", "1M", "--srp", "127.0.0.1:5555"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("--srp-allow"), "{}", error(&output));
}

#[test]
fn the_long_version_says_whether_rdma_is_built_in() {
    let output = vscsi(&["--version"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let expected = if cfg!(feature = "rdma") { "built in" } else { "left out of this build" };
    assert!(said.contains(&format!("RDMA (iSER, SRP): {expected}")), "{said}");
}

#[test]
fn without_a_running_target_commands_say_so() {
    let output = vscsi(&["--control", "/nonexistent/control.sock", "stats"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(error(&output).contains("start vscsi serve"), "{}", error(&output));
}
