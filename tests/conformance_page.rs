//! docs/conformance.md says what the opcode table says.
//!
//! `UPDATE_DOCS=1 cargo test --test conformance_page` writes the generated part anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{env, fmt::Write, fs, path::Path, sync::Mutex};
use vmm_glue::{controller::FEATURES, vhost::PROTOCOL};
use vscsi_target::opcode::{Lane, Row, TABLE, flag};

#[test]
fn the_command_list_is_the_opcode_table() {
    check("the opcode table", &table());
}

#[test]
fn the_features_of_virtio_scsi_are_those_offered() {
    check("the features offered", &features());
}

/// Holds the part of the page between the marks of `source` to `text`, or writes it.
fn check(source: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    // Tests of this file run side by side.
    let _one = ONE.lock().unwrap();
    let page = fs::read_to_string(&path).unwrap();
    let [begin, end] =
        ["begin", "end"].map(|which| format!("<!-- generated from {source}: {which} -->\n"));
    let (head, rest) = page.split_once(&begin).expect("the page has the begin mark");
    let (_, tail) = rest.split_once(&end).expect("the page has the end mark");
    let fresh = format!("{head}{begin}{text}{end}{tail}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    assert!(
        page == fresh || env::var_os("UPDATE_DOCS").is_some(),
        "docs/conformance.md is out of date: UPDATE_DOCS=1 cargo test --test conformance_page"
    );
}

static ONE: Mutex<()> = Mutex::new(());

fn features() -> String {
    use vmm_glue::{ring::feature as ring, scsi::feature as scsi};
    let named = [
        (scsi::INOUT, "SCSI_F_INOUT"),
        (scsi::HOTPLUG, "SCSI_F_HOTPLUG"),
        (scsi::CHANGE, "SCSI_F_CHANGE"),
        (scsi::T10_PI, "SCSI_F_T10_PI"),
        (ring::INDIRECT_DESC, "F_INDIRECT_DESC"),
        (ring::EVENT_IDX, "F_EVENT_IDX"),
        (ring::VERSION_1, "F_VERSION_1"),
        (ring::RING_PACKED, "F_RING_PACKED"),
        (ring::IN_ORDER, "F_IN_ORDER"),
        (ring::RING_RESET, "F_RING_RESET"),
    ];
    let known: u64 = named.iter().map(|(bit, _)| bit).sum();
    assert_eq!(FEATURES & !known, 0, "a feature without a name here is offered");
    let offered: Vec<&str> =
        named.iter().filter(|(bit, _)| FEATURES & bit != 0).map(|(_, name)| *name).collect();
    let protocol: Vec<&str> = PROTOCOL.iter_names().map(|(name, _)| name).collect();
    format!(
        "VIRTIO features: {}; for migration VHOST_F_LOG_ALL.\n\nvhost-user protocol features: {}.\n",
        offered.join(", "),
        protocol.join(", ")
    )
}

fn table() -> String {
    let mut rows: Vec<&Row> = TABLE.iter().collect();
    rows.sort_by_key(|row| (row.opcode, row.service_action));
    let mut text =
        String::from("| opcode | command | specified in | runs | notes |\n|---|---|---|---|---|\n");
    for row in rows {
        let action = row.service_action.map(|action| format!("/{action:02X}")).unwrap_or_default();
        let lane = match row.lane {
            Lane::Read | Lane::Write => "straight to the backend",
            Lane::Inline => "on the reactor",
            Lane::Worker => "on a worker thread",
            Lane::Exclusive(_) => "alone on its blocks",
        };
        let mut notes = Vec::new();
        if row.has(flag::ANY_LUN) {
            notes.push("answered on absent LUNs");
        }
        if row.has(flag::NOT_READY_OK) {
            notes.push("works when not ready");
        }
        if row.has(flag::WRITES) {
            notes.push("refused when write-protected");
        }
        writeln!(
            text,
            "| {:02X}{action} | {} | {} | {lane} | {} |",
            row.opcode,
            row.name,
            row.spec,
            notes.join(", ")
        )
        .unwrap();
    }
    text
}
