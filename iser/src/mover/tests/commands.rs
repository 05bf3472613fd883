//! Reads, writes, and what ends them.

use super::harness::*;
use crate::header::{Tag, Tags};
use iscsi::{
    negotiate::{Preferences, RdmaPreferences},
    pdu::{DataOut, RESERVED_TAG, Reply, Request, TaskFunctionCode, TaskRequest, TaskResponseCode},
};
use libsrp::Lun;

fn target() -> Target {
    Target::start(Preferences::default())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8).collect()
}

/// Memory a write's data is in.
fn source(key: u32, base: u64) -> Tags {
    Tags { write: Some(Tag { key, base }), read: None }
}

#[test]
fn data_is_in_the_initiators_memory_when_the_response_comes() {
    let target = target();
    let mut initiator = target.linux();
    initiator.wire.register(7, 0x2000, vec![0xEE; 8192]);
    let read = Some(Tag { key: 7, base: 0x2000 + 512 });
    let command = initiator.command(&read_10(0, 8), false, 4096);
    initiator.send(Tags { write: None, read }, Request::ScsiCommand(command), &[]);
    let (response, received) = initiator.response();
    assert_eq!((response.status.0, response.exp_data_sn), (0, 0));
    assert_eq!(received.message.flags.invalidate, Some(7));
    let memory = initiator.wire.take(7).unwrap();
    assert!(memory[..512].iter().all(|b| *b == 0xEE));
    assert!(memory[512..4608].iter().all(|b| *b == 0));
    assert!(memory[4608..].iter().all(|b| *b == 0xEE));
}

#[test]
fn shorter_data_than_memory_leaves_the_rest_and_reports_it() {
    let target = target();
    let mut initiator = target.linux();
    initiator.wire.register(7, 0, vec![0xEE; 255]);
    let command = initiator.command(&[0x12, 0, 0, 0, 255, 0], false, 255);
    let read = Some(Tag { key: 7, base: 0 });
    initiator.send(Tags { write: None, read }, Request::ScsiCommand(command), &[]);
    let (response, _) = initiator.response();
    let libsrp::Residual::Under(under) = response.residual else { panic!("{response:?}") };
    let memory = initiator.wire.take(7).unwrap();
    assert!(memory[255 - under as usize..].iter().all(|b| *b == 0xEE));
}

#[test]
fn key_is_not_invalidated_unless_both_sides_can() {
    let target = target();
    for (at, private) in [&[][..], &[0xC0, 0, 0, 0], &[0; 56]].into_iter().enumerate() {
        let mut initiator = target.connect(private, false);
        initiator.isid.0[5] = at as u8;
        initiator.log_in(KEYS);
        initiator.clear_attention();
        initiator.wire.register(7, 0, vec![0; 512]);
        let command = initiator.command(&read_10(0, 1), false, 512);
        let read = Some(Tag { key: 7, base: 0 });
        initiator.send(Tags { write: None, read }, Request::ScsiCommand(command), &[]);
        assert_eq!(initiator.response().1.message.flags.invalidate, None, "{private:?}");
    }
}

#[test]
fn write_is_fetched_behind_its_immediate_data() {
    let target = target();
    let data = pattern(64 << 10);
    for (at, strict) in [false, true].into_iter().enumerate() {
        for immediate in [0, 512, 8192] {
            let mut initiator = target.connect(&[0x80, 0, 0, 0], strict);
            initiator.isid.0[5] = at as u8;
            initiator.log_in(KEYS);
            initiator.clear_attention();
            let base = 0x7F00_0000_1234;
            // Linux advertises what it does not send; the RFC all of it.
            let advertised = if strict { &data[..] } else { &data[immediate..] };
            initiator.wire.register(9, base, advertised.to_vec());
            let mut command = initiator.command(&write_10(16, 128), true, data.len() as u32);
            command.data_len = immediate as u32;
            initiator.send(source(9, base), Request::ScsiCommand(command), &data[..immediate]);
            let (response, received) = initiator.response();
            assert_eq!(response.status.0, 0);
            assert_eq!(received.message.flags.invalidate, Some(9));
            assert_eq!(initiator.read(16, 128), data, "strict {strict}, {immediate} immediate");
        }
    }
}

#[test]
fn write_whose_announced_immediate_data_stays_in_memory_is_fetched_whole() {
    let target = target();
    let mut initiator = target.linux();
    let data = pattern(4096);
    initiator.wire.register(9, 0x3000, data.clone());
    let mut command = initiator.command(&write_10(0, 8), true, 4096);
    command.data_len = 4096;
    let mut bytes = message(source(9, 0x3000), Request::ScsiCommand(command), &data);
    bytes.truncate(bytes.len() - data.len());
    initiator.wire.send(bytes);
    assert_eq!(initiator.response().0.status.0, 0);
    assert_eq!(initiator.read(0, 8), data);
}

#[test]
fn write_that_is_all_immediate_needs_no_memory() {
    let target = target();
    let mut initiator = target.linux();
    let data = pattern(4096);
    let mut command = initiator.command(&write_10(0, 8), true, 4096);
    command.data_len = 4096;
    initiator.send(Tags::default(), Request::ScsiCommand(command), &data);
    let (response, received) = initiator.response();
    assert_eq!((response.status.0, received.message.flags.invalidate), (0, None));
    assert_eq!(initiator.read(0, 8), data);
}

#[test]
fn unsolicited_data_out_comes_before_the_fetched() {
    let rdma = RdmaPreferences { initial_r2t: false, ..RdmaPreferences::default() };
    let target = Target::start(Preferences { rdma, ..Preferences::default() });
    let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
    initiator.log_in(&format!("{KEYS}FirstBurstLength=1024\0"));
    initiator.clear_attention();
    let data = pattern(4096);
    initiator.wire.register(9, 0x5000, data[1024..].to_vec());
    let mut command = initiator.command(&write_10(0, 8), true, 4096);
    (command.is_final, command.data_len) = (false, 512);
    initiator.send(source(9, 0x5000), Request::ScsiCommand(command), &data[..512]);
    let pdu = DataOut {
        is_final: true,
        data_len: 512,
        lun: Lun::default(),
        itt: command.itt,
        ttt: RESERVED_TAG,
        exp_stat_sn: 0,
        data_sn: 0,
        offset: 512,
    };
    initiator.send(Tags::default(), Request::DataOut(pdu), &data[512..1024]);
    assert_eq!(initiator.response().0.status.0, 0);
    assert_eq!(initiator.read(0, 8), data);
}

#[test]
fn write_without_memory_for_its_data_ends_the_connection() {
    let target = target();
    let mut initiator = target.linux();
    let command = initiator.command(&write_10(0, 8), true, 4096);
    initiator.send(Tags::default(), Request::ScsiCommand(command), &[]);
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for_no_session();
}

#[test]
fn read_without_memory_for_its_data_ends_the_connection() {
    let target = target();
    let mut initiator = target.linux();
    let command = initiator.command(&read_10(0, 8), false, 4096);
    initiator.send(Tags::default(), Request::ScsiCommand(command), &[]);
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for_no_session();
}

#[test]
fn key_that_is_none_ends_its_own_connection_only() {
    let target = target();
    let mut other = target.linux();
    let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
    initiator.isid.0[5] = 9;
    initiator.log_in(KEYS);
    initiator.clear_attention();
    let command = initiator.command(&write_10(0, 8), true, 4096);
    initiator.send(source(404, 0), Request::ScsiCommand(command), &[]);
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for("the end of one session", || target.shared.sessions().len() == 1);
    other.read(0, 8);
}

#[test]
fn aborted_write_is_not_answered_and_reported_when_nothing_is_fetched_any_more() {
    let target = target();
    let mut initiator = target.linux();
    initiator.wire.hold(true);
    initiator.wire.register(9, 0, pattern(4096));
    let command = initiator.command(&write_10(0, 8), true, 4096);
    initiator.send(source(9, 0), Request::ScsiCommand(command), &[]);
    target.wait_for("the read", || initiator.wire.reads() == 1);
    let abort = TaskRequest {
        immediate: true,
        function: TaskFunctionCode::AbortTask,
        lun: Lun::default(),
        itt: 0x77,
        referenced: command.itt,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
        ref_cmd_sn: command.cmd_sn,
        exp_data_sn: 0,
    };
    initiator.send(Tags::default(), Request::TaskRequest(abort), &[]);
    assert!(initiator.wire.receive(std::time::Duration::from_millis(200)).is_none());
    initiator.wire.hold(false);
    let received = initiator.receive();
    let Reply::TaskResponse(response) = received.reply else { panic!("{received:?}") };
    assert_eq!((response.itt, response.response), (0x77, TaskResponseCode::Complete));
    assert_eq!((received.message.flags.fence, received.message.reads), (true, 0));
    assert!(initiator.read(0, 8).iter().all(|b| *b == 0));
}

#[test]
fn write_that_fails_while_its_data_is_fetched_is_answered_behind_that() {
    let target = target();
    let mut initiator = target.linux();
    initiator.wire.hold(true);
    initiator.wire.register(9, 0, pattern(4096));
    let command = initiator.command(&write_10(0, 8), true, 4096);
    initiator.send(source(9, 0), Request::ScsiCommand(command), &[]);
    target.wait_for("the read", || initiator.wire.reads() == 1);
    let pdu = DataOut {
        is_final: true,
        data_len: 512,
        lun: Lun::default(),
        itt: command.itt,
        ttt: RESERVED_TAG,
        exp_stat_sn: 0,
        data_sn: 0,
        offset: 0,
    };
    initiator.send(Tags::default(), Request::DataOut(pdu), &[1; 512]);
    assert!(initiator.wire.receive(std::time::Duration::from_millis(200)).is_none());
    initiator.wire.hold(false);
    let (response, received) = initiator.response();
    assert_eq!((response.itt, response.status.0), (command.itt, 2));
    assert_eq!((received.message.flags.fence, received.message.reads), (true, 0));
    assert!(initiator.read(0, 8).iter().all(|b| *b == 0));
}

#[test]
fn commands_at_depth_are_all_answered() {
    let target = target();
    let mut initiator = target.linux();
    let data = pattern(128 << 10);
    for n in 0..32 {
        let key = 0x9000 + n;
        initiator.wire.register(key, 0x1000, data.clone());
        let command = initiator.command(&write_10(n * 256, 256), true, data.len() as u32);
        initiator.send(source(key, 0x1000), Request::ScsiCommand(command), &[]);
    }
    for _ in 0..32 {
        assert_eq!(initiator.response().0.status.0, 0);
    }
    for n in 0..32 {
        assert_eq!(initiator.read(n * 256, 256), data, "write {n}");
    }
}
