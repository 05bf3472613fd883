//! Requests that come before their turn in CmdSN.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Initiator, Target, read_10, write_10};
use iscsi::pdu::{
    DataOut, NopOut, RESERVED_TAG, Reply, Request, ScsiCommand, TaskFunctionCode, TaskRequest,
    TaskResponseCode,
};
use libsrp::{Lun, Status};

const UNSOLICITED: &str = "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=65536\0";

fn ping(initiator: &mut Initiator) {
    let nop = NopOut {
        immediate: true,
        data_len: 4,
        lun: Lun::default(),
        itt: 9,
        ttt: RESERVED_TAG,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.send(Request::NopOut(nop), b"ping");
    let received = initiator.receive().unwrap();
    assert!(matches!(received.reply, Reply::NopIn(nop) if nop.itt == 9), "{received:?}");
    assert_eq!(received.data, b"ping");
}

fn expect_good(initiator: &mut Initiator, command: &ScsiCommand) {
    let received = initiator.receive().unwrap();
    let Reply::ScsiResponse(response) = received.reply else { panic!("{received:?}") };
    assert_eq!((response.itt, response.status), (command.itt, Status::GOOD));
}

/// A write of `data` to block 0, all of it immediate.
fn write(initiator: &mut Initiator, data: &[u8]) -> ScsiCommand {
    let len = data.len() as u32;
    let mut command = initiator.command(&write_10(0, (len / 512) as u16), 0, len);
    command.data_len = len;
    command
}

#[test]
fn early_commands_wait_in_order_while_immediate_requests_go_on() {
    let target = Target::start();
    let mut initiator = target.login(UNSOLICITED);
    initiator.clear_attention();
    let first = initiator.command(&[0; 6], 0, 0);
    let second = write(&mut initiator, &[2; 512]);
    let third = write(&mut initiator, &[3; 512]);
    initiator.send(Request::ScsiCommand(third), &[3; 512]);
    initiator.send(Request::ScsiCommand(second), &[2; 512]);
    ping(&mut initiator);
    initiator.send(Request::ScsiCommand(first), &[]);
    for command in [first, second, third] {
        expect_good(&mut initiator, &command);
    }
    assert_eq!(initiator.read(&read_10(0, 1), 512), (vec![3; 512], 0));
}

#[test]
fn early_command_keeps_its_unsolicited_data() {
    let target = Target::start();
    let mut initiator = target.login(UNSOLICITED);
    initiator.clear_attention();
    let data: Vec<u8> = (0..4096).map(|n| (n / 512 * 7 + n) as u8).collect();
    let gap = initiator.command(&[0; 6], 0, 0);
    let mut early = initiator.command(&write_10(0, 8), 0, 4096);
    (early.is_final, early.data_len) = (false, 1024);
    initiator.send(Request::ScsiCommand(early), &data[..1024]);
    for (sn, start) in [(0, 1024), (1, 2048), (2, 3072)] {
        let pdu = DataOut {
            is_final: start == 3072,
            data_len: 1024,
            lun: Lun::default(),
            itt: early.itt,
            ttt: RESERVED_TAG,
            exp_stat_sn: 0,
            data_sn: sn,
            offset: start as u32,
        };
        initiator.send(Request::DataOut(pdu), &data[start..start + 1024]);
    }
    ping(&mut initiator);
    initiator.send(Request::ScsiCommand(gap), &[]);
    expect_good(&mut initiator, &gap);
    expect_good(&mut initiator, &early);
    assert_eq!(initiator.read(&read_10(0, 8), 4096), (data, 0));
}

#[test]
fn duplicate_of_an_early_command_runs_once() {
    let target = Target::start();
    let mut initiator = target.login(UNSOLICITED);
    initiator.clear_attention();
    let gap = initiator.command(&[0; 6], 0, 0);
    let early = write(&mut initiator, &[1; 512]);
    for byte in [1, 2] {
        initiator.send(Request::ScsiCommand(early), &[byte; 512]);
    }
    initiator.send(Request::ScsiCommand(gap), &[]);
    expect_good(&mut initiator, &gap);
    expect_good(&mut initiator, &early);
    assert_eq!(initiator.read(&read_10(0, 1), 512), (vec![1; 512], 0));
}

#[test]
fn aborted_early_command_never_runs_and_leaves_no_gap() {
    let target = Target::start();
    let mut initiator = target.login(UNSOLICITED);
    initiator.clear_attention();
    let gap = initiator.command(&[0; 6], 0, 0);
    let early = write(&mut initiator, &[1; 512]);
    initiator.send(Request::ScsiCommand(early), &[1; 512]);
    let abort = TaskRequest {
        immediate: true,
        function: TaskFunctionCode::AbortTask,
        lun: Lun::default(),
        itt: 500,
        referenced: early.itt,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: early.cmd_sn,
        exp_data_sn: 0,
    };
    initiator.send(Request::TaskRequest(abort), &[]);
    let reply = initiator.receive().unwrap().reply;
    assert!(
        matches!(reply, Reply::TaskResponse(r) if r.response == TaskResponseCode::Complete),
        "{reply:?}"
    );
    initiator.send(Request::ScsiCommand(gap), &[]);
    expect_good(&mut initiator, &gap);
    assert_eq!(initiator.read(&read_10(0, 1), 512), (vec![0; 512], 0));
}

#[test]
fn more_early_data_than_is_kept_ends_an_only_connection() {
    let target = Target::start();
    let mut initiator = target.login(UNSOLICITED);
    initiator.clear_attention();
    initiator.cmd_sn = initiator.cmd_sn.wrapping_add(1);
    for _ in 0..160 {
        let early = write(&mut initiator, &[1; 8192]);
        let mut header = [0; 48];
        Request::ScsiCommand(early).emit(&mut header);
        let bytes = initiator.bytes_of(&header, &[1; 8192]);
        // The target may close meanwhile.
        if std::io::Write::write_all(&mut initiator.stream, &bytes).is_err() {
            break;
        }
    }
    assert!(initiator.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}
