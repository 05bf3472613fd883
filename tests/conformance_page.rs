//! docs/conformance.md says what the opcode table says.
//!
//! `UPDATE_DOCS=1 cargo test --test conformance_page` writes the generated part anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{env, fmt::Write, fs, path::Path};
use vscsi_target::opcode::{Lane, Row, TABLE, flag};

const BEGIN: &str = "<!-- generated from the opcode table: begin -->\n";
const END: &str = "<!-- generated from the opcode table: end -->\n";

#[test]
fn the_command_list_is_the_opcode_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the page has the begin mark");
    let (_, tail) = rest.split_once(END).expect("the page has the end mark");
    let fresh = format!("{head}{BEGIN}{}{END}{tail}", table());
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    assert!(
        page == fresh || env::var_os("UPDATE_DOCS").is_some(),
        "docs/conformance.md is out of date: UPDATE_DOCS=1 cargo test --test conformance_page"
    );
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
