//! Full feature phase over loopback TCP, with the real reactor and engine.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Initiator, Target, read_10, write_10};
use iscsi::pdu::{
    DataOut, LogoutOutcome, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG, RejectReason, Reply,
    Request, TaskFunctionCode, TaskRequest, TaskResponseCode, TextRequest,
};
use libsrp::{Lun, Residual, Status};

const NO_UNSOLICITED: &str = "InitialR2T=Yes\0ImmediateData=No\0";

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512 * 7 + n) as u8).collect()
}

fn data_out(itt: u32, ttt: u32, sn: u32, offset: usize, is_final: bool, len: usize) -> Request {
    Request::DataOut(DataOut {
        is_final,
        data_len: len as u32,
        lun: Lun::default(),
        itt,
        ttt,
        exp_stat_sn: 0,
        data_sn: sn,
        offset: offset as u32,
    })
}

/// Answers R2Ts until the response.
fn serve_r2ts(initiator: &mut Initiator, data: &[u8], segment: usize) -> Reply {
    loop {
        let received = initiator.receive().unwrap();
        let Reply::R2t(r2t) = received.reply else { return received.reply };
        let burst = r2t.offset as usize..(r2t.offset + r2t.desired_len) as usize;
        for (sn, start) in (0..).zip(burst.clone().step_by(segment)) {
            let end = (start + segment).min(burst.end);
            let pdu = data_out(r2t.itt, r2t.ttt, sn, start, end == burst.end, end - start);
            initiator.send(pdu, &data[start..end]);
        }
    }
}

fn write_with_r2t(initiator: &mut Initiator, data: &[u8]) {
    let command = initiator.command(&write_10(0, (data.len() / 512) as u16), 0, data.len() as u32);
    initiator.send(Request::ScsiCommand(command), &[]);
    let reply = serve_r2ts(initiator, data, 8192);
    assert!(
        matches!(reply, Reply::ScsiResponse(r) if r.status == Status::GOOD && r.residual == Residual::None),
        "{reply:?}"
    );
}

#[test]
fn inquiry_write_by_r2t_read_and_logout() {
    let target = Target::start();
    let mut initiator = target.login(NO_UNSOLICITED);
    let (inquiry, status) = initiator.read(&[0x12, 0, 0, 0, 255, 0], 255);
    assert_eq!(status, 0);
    assert!(inquiry.len() >= 36 && inquiry[0] == 0);
    initiator.clear_attention();
    let data = pattern(300 * 512);
    write_with_r2t(&mut initiator, &data);
    let (read, status) = initiator.read(&read_10(0, 300), data.len() as u32);
    assert_eq!(status, 0);
    assert!(read == data, "the data read is not the data written");
    initiator.send(
        Request::LogoutRequest(LogoutRequest {
            immediate: true,
            reason: LogoutReason::CloseSession,
            itt: 77,
            cid: 0,
            cmd_sn: initiator.cmd_sn,
            exp_stat_sn: 0,
        }),
        &[],
    );
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::LogoutResponse(r) if r.response == LogoutOutcome::Closed));
    assert!(initiator.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}

#[test]
fn digests_both_ways_carry_write_and_read() {
    let target = Target::start();
    let mut initiator =
        target.login("HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=Yes\0ImmediateData=No\0");
    initiator.clear_attention();
    let data = pattern(64 * 512);
    write_with_r2t(&mut initiator, &data);
    let (read, _) = initiator.read(&read_10(0, 64), data.len() as u32);
    assert!(read == data);
}

#[test]
fn wrong_data_digest_is_rejected_and_ends_the_connection() {
    let target = Target::start();
    let mut initiator = target.login("DataDigest=CRC32C\0");
    initiator.clear_attention();
    let mut command = initiator.command(&write_10(0, 1), 0, 512);
    command.data_len = 512;
    let mut header = [0; 48];
    command.emit(&mut header);
    let mut bytes = initiator.bytes_of(&header, &[1; 512]);
    *bytes.last_mut().unwrap() ^= 1;
    std::io::Write::write_all(&mut initiator.stream, &bytes).unwrap();
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::Reject(r) if r.reason == RejectReason::DataDigest), "{reply:?}");
    assert!(initiator.receive().is_none());
}

#[test]
fn immediate_and_unsolicited_data_write_without_r2t() {
    let target = Target::start();
    let mut initiator = target.login("InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=65536\0");
    initiator.clear_attention();
    let data = pattern(32 * 512);
    let mut command = initiator.command(&write_10(8, 32), 0, data.len() as u32);
    (command.is_final, command.data_len) = (false, 4096);
    let itt = command.itt;
    initiator.send(Request::ScsiCommand(command), &data[..4096]);
    initiator.send(data_out(itt, RESERVED_TAG, 0, 4096, false, 4096), &data[4096..8192]);
    initiator.send(data_out(itt, RESERVED_TAG, 1, 8192, true, 8192), &data[8192..]);
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::ScsiResponse(r) if r.status == Status::GOOD), "{reply:?}");
    let (read, _) = initiator.read(&read_10(8, 32), data.len() as u32);
    assert!(read == data);
}

#[test]
fn first_burst_is_followed_by_r2ts_for_the_rest() {
    let target = Target::start();
    let mut initiator = target.login(
        "InitialR2T=No\0ImmediateData=Yes\0FirstBurstLength=4096\0MaxBurstLength=8192\0\
         MaxOutstandingR2T=2\0",
    );
    initiator.clear_attention();
    let data = pattern(100 * 512);
    let mut command = initiator.command(&write_10(0, 100), 0, data.len() as u32);
    command.data_len = 4096;
    initiator.send(Request::ScsiCommand(command), &data[..4096]);
    let reply = serve_r2ts(&mut initiator, &data, 3000);
    assert!(matches!(reply, Reply::ScsiResponse(r) if r.status == Status::GOOD), "{reply:?}");
    let (read, _) = initiator.read(&read_10(0, 100), data.len() as u32);
    assert!(read == data);
}

#[test]
fn data_out_with_a_wrong_data_sn_fails_the_command_and_keeps_the_session() {
    let target = Target::start();
    let mut initiator = target.login(NO_UNSOLICITED);
    initiator.clear_attention();
    let command = initiator.command(&write_10(0, 2), 0, 1024);
    initiator.send(Request::ScsiCommand(command), &[]);
    let Reply::R2t(r2t) = initiator.receive().unwrap().reply else { panic!("no R2T") };
    initiator.send(data_out(r2t.itt, r2t.ttt, 27, 0, true, 1024), &[0; 1024]);
    let received = initiator.receive().unwrap();
    assert!(
        matches!(received.reply, Reply::ScsiResponse(r) if r.status == Status::CHECK_CONDITION)
    );
    assert_eq!(received.data[2] & 0x7F, 0x70);
    assert_eq!((received.data[4], received.data[14], received.data[15]), (0x0B, 0x47, 0x05));
    assert_eq!(initiator.read(&read_10(0, 1), 512).1, 0);
}

#[test]
fn unsolicited_data_that_was_not_agreed_on_fails_the_command() {
    let target = Target::start();
    let mut initiator = target.login(NO_UNSOLICITED);
    initiator.clear_attention();
    let mut command = initiator.command(&write_10(0, 1), 0, 512);
    command.data_len = 512;
    initiator.send(Request::ScsiCommand(command), &[9; 512]);
    let received = initiator.receive().unwrap();
    assert!(
        matches!(received.reply, Reply::ScsiResponse(r) if r.status == Status::CHECK_CONDITION)
    );
    assert_eq!((received.data[4], received.data[14], received.data[15]), (0x0B, 0x0C, 0x0C));
}

#[test]
fn reads_are_cut_by_segment_length_and_burst() {
    let target = Target::start();
    let mut initiator = target.login("MaxRecvDataSegmentLength=1024\0MaxBurstLength=2048\0");
    initiator.clear_attention();
    let command = initiator.command(&read_10(0, 10), 5120, 0);
    initiator.send(Request::ScsiCommand(command), &[]);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let Reply::DataIn(pdu) = initiator.receive().unwrap().reply else { panic!("no Data-In") };
        seen.push((pdu.data_sn, pdu.offset, pdu.is_final, pdu.status.is_some()));
    }
    assert_eq!(
        seen,
        [
            (0, 0, false, false),
            (1, 1024, true, false),
            (2, 2048, false, false),
            (3, 3072, true, false),
            (4, 4096, true, true),
        ]
    );
}

#[test]
fn longer_buffer_than_data_reports_underflow_with_good() {
    let target = Target::start();
    let mut initiator = target.login("");
    initiator.clear_attention();
    let command = initiator.command(&read_10(0, 1), 4096, 0);
    initiator.send(Request::ScsiCommand(command), &[]);
    let Reply::DataIn(pdu) = initiator.receive().unwrap().reply else { panic!("no Data-In") };
    assert_eq!((pdu.data_len, pdu.residual), (512, Residual::Under(3584)));
    assert_eq!(pdu.status, Some(Status::GOOD));
}

#[test]
fn commands_outside_the_window_and_duplicates_are_ignored() {
    let target = Target::start();
    let mut initiator = target.login("");
    initiator.clear_attention();
    for offset in [0xFFFF_FFFF_u32, 1000] {
        let mut command = initiator.command(&[0; 6], 0, 0);
        initiator.cmd_sn = command.cmd_sn;
        command.cmd_sn = command.cmd_sn.wrapping_add(offset);
        initiator.send(Request::ScsiCommand(command), &[]);
    }
    let command = initiator.command(&[0; 6], 0, 0);
    initiator.send(Request::ScsiCommand(command), &[]);
    let Reply::ScsiResponse(response) = initiator.receive().unwrap().reply else {
        panic!("no response")
    };
    assert_eq!(response.itt, command.itt);
}

#[test]
fn nop_out_is_echoed() {
    let target = Target::start();
    let mut initiator = target.login("");
    let nop = NopOut {
        immediate: true,
        data_len: 5,
        lun: Lun::default(),
        itt: 9,
        ttt: RESERVED_TAG,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.send(Request::NopOut(nop), b"hello");
    let received = initiator.receive().unwrap();
    assert!(matches!(received.reply, Reply::NopIn(nop) if nop.itt == 9 && nop.ttt == RESERVED_TAG));
    assert_eq!(received.data, b"hello");
}

fn management(initiator: &Initiator, function: TaskFunctionCode, referenced: u32) -> TaskRequest {
    TaskRequest {
        immediate: true,
        function,
        lun: Lun::default(),
        itt: 500,
        referenced,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: initiator.cmd_sn.wrapping_sub(1),
        exp_data_sn: 0,
    }
}

fn manage(initiator: &mut Initiator, request: TaskRequest) -> TaskResponseCode {
    initiator.send(Request::TaskRequest(request), &[]);
    match initiator.receive().unwrap().reply {
        Reply::TaskResponse(response) => response.response,
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn abort_task_of_a_write_waiting_for_data_completes_without_a_response() {
    let target = Target::start();
    let mut initiator = target.login(NO_UNSOLICITED);
    initiator.clear_attention();
    let command = initiator.command(&write_10(0, 2), 0, 1024);
    initiator.send(Request::ScsiCommand(command), &[]);
    let Reply::R2t(r2t) = initiator.receive().unwrap().reply else { panic!("no R2T") };
    let request = management(&initiator, TaskFunctionCode::AbortTask, command.itt);
    assert_eq!(manage(&mut initiator, request), TaskResponseCode::Complete);
    initiator.send(data_out(r2t.itt, r2t.ttt, 0, 0, true, 1024), &[1; 1024]);
    assert_eq!(initiator.read(&read_10(0, 1), 512), (vec![0; 512], 0));
}

#[test]
fn abort_of_a_task_that_has_ended_says_that_it_does_not_exist() {
    let target = Target::start();
    let mut initiator = target.login("");
    initiator.clear_attention();
    let request = management(&initiator, TaskFunctionCode::AbortTask, 4711);
    assert_eq!(manage(&mut initiator, request), TaskResponseCode::TaskDoesNotExist);
}

#[test]
fn logical_unit_reset_completes_and_raises_a_unit_attention() {
    let target = Target::start();
    let mut initiator = target.login("");
    initiator.clear_attention();
    let request = management(&initiator, TaskFunctionCode::LogicalUnitReset, RESERVED_TAG);
    assert_eq!(manage(&mut initiator, request), TaskResponseCode::Complete);
    assert_eq!(initiator.read(&read_10(0, 1), 512).1, 2);
    assert_eq!(initiator.read(&read_10(0, 1), 512).1, 0);
}

#[test]
fn task_reassign_is_not_supported() {
    let target = Target::start();
    let mut initiator = target.login("");
    let request = management(&initiator, TaskFunctionCode::TaskReassign, 1);
    assert_eq!(manage(&mut initiator, request), TaskResponseCode::ReassignNotSupported);
}

#[test]
fn cold_reset_answers_and_drops_the_connection() {
    let target = Target::start();
    let mut initiator = target.login("");
    let request = management(&initiator, TaskFunctionCode::TargetColdReset, RESERVED_TAG);
    assert_eq!(manage(&mut initiator, request), TaskResponseCode::Complete);
    assert!(initiator.receive().is_none());
}

#[test]
fn discovery_lists_the_target_to_who_may_use_it() {
    let target = Target::start();
    let mut initiator = target.connect();
    assert_eq!(initiator.login("SessionType=Discovery\0").status.0, 0);
    let request = TextRequest {
        immediate: true,
        is_final: true,
        more: false,
        data_len: 16,
        lun: Lun::default(),
        itt: 3,
        ttt: RESERVED_TAG,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.send(Request::TextRequest(request), b"SendTargets=All\0");
    let received = initiator.receive().unwrap();
    let expected =
        format!("TargetName={}\0TargetAddress={}\0", common::TARGET, target.target_address());
    assert_eq!(String::from_utf8(received.data).unwrap(), expected);
}

#[test]
fn scsi_command_in_discovery_is_rejected() {
    let target = Target::start();
    let mut initiator = target.connect();
    initiator.login("SessionType=Discovery\0");
    let command = initiator.command(&[0; 6], 0, 0);
    initiator.send(Request::ScsiCommand(command), &[]);
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::Reject(r) if r.reason == RejectReason::CommandNotSupported));
}

#[test]
fn unknown_opcode_is_rejected_with_its_header_and_the_session_goes_on() {
    let target = Target::start();
    let mut initiator = target.login("");
    initiator.clear_attention();
    let mut header = [0; 48];
    header[0] = 0x1C;
    initiator.send_raw(&header, &[]);
    let received = initiator.receive().unwrap();
    assert!(
        matches!(received.reply, Reply::Reject(r) if r.reason == RejectReason::CommandNotSupported)
    );
    assert_eq!(received.data, header);
    assert_eq!(initiator.read(&read_10(0, 1), 512).1, 0);
}

#[test]
fn data_segment_above_the_declared_length_ends_the_connection() {
    let target = Target::start();
    let mut initiator = target.login("");
    let mut header = [0; 48];
    header[0] = 0x01;
    header[1] = 0xA0;
    header[5..8].copy_from_slice(&[0xFF; 3]);
    initiator.send_raw(&header, &[]);
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::Reject(r) if r.reason == RejectReason::ProtocolError));
    assert!(initiator.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}

#[test]
fn pdus_split_at_every_byte_are_put_together() {
    let target = Target::start();
    let mut initiator = target.login("InitialR2T=No\0ImmediateData=Yes\0");
    initiator.clear_attention();
    let mut command = initiator.command(&write_10(0, 1), 0, 512);
    command.data_len = 512;
    let mut header = [0; 48];
    command.emit(&mut header);
    for byte in initiator.bytes_of(&header, &[0x5A; 512]) {
        std::io::Write::write_all(&mut initiator.stream, &[byte]).unwrap();
    }
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::ScsiResponse(r) if r.status == Status::GOOD), "{reply:?}");
    assert_eq!(initiator.read(&read_10(0, 1), 512), (vec![0x5A; 512], 0));
}
