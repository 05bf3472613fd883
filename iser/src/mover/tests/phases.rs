//! Login, discovery, what is not SCSI, and the end.

use super::harness::*;
use crate::header::{HEADER_LEN, Header, Hello, HelloReply, Tags};
use iscsi::{
    negotiate::{Preferences, Transport},
    pdu::{
        LogoutOutcome, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG, Reply, Request,
        TextRequest,
    },
    portal::Portal,
};
use libsrp::Lun;
use std::time::Duration;

fn target() -> Target {
    Target::start(Preferences::default())
}

fn text(initiator: &mut Initiator, ttt: u32, value: &str) -> (iscsi::pdu::TextResponse, Vec<u8>) {
    let pdu = TextRequest {
        immediate: false,
        is_final: true,
        more: false,
        data_len: value.len() as u32,
        lun: Lun::default(),
        itt: 0x55,
        ttt,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.cmd_sn += 1;
    initiator.send(Tags::default(), Request::TextRequest(pdu), value.as_bytes());
    let received = initiator.receive();
    let Reply::TextResponse(response) = received.reply else { panic!("{received:?}") };
    (response, received.data)
}

#[test]
fn open_iscsi_logs_in_with_its_keys() {
    let target = target();
    let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
    let (response, answers) = initiator.log_in(KEYS);
    assert!(response.transit && response.tsih != 0);
    assert_eq!(
        answers,
        "TargetPortalGroupTag=1 InitialR2T=Yes ImmediateData=Yes \
         InitiatorRecvDataSegmentLength=262144 TargetRecvDataSegmentLength=8192 \
         RDMAExtensions=Yes "
    );
    assert_eq!(target.shared.sessions()[0].transport, Transport::Rdma);
}

#[test]
fn login_without_rdma_extensions_is_refused() {
    let target = target();
    let mut initiator = target.connect(&[], false);
    let (response, _) = initiator.log_in("InitialR2T=Yes\0");
    assert_eq!(response.status.0, 0x0207);
    assert!(initiator.wire.is_closed(LIMIT));
    assert!(target.shared.sessions().is_empty());
}

#[test]
fn discovery_lists_the_portals_over_rdma() {
    let target = target();
    let tcp = Portal::new("192.0.2.1:3261".parse().unwrap(), 1, Transport::Tcp);
    target.shared.add_portal(tcp);
    let mut initiator = target.connect(&[0xC0, 0, 0, 0], false);
    let (response, _) = initiator.log_in("SessionType=Discovery\0MaxRecvDataSegmentLength=32768\0");
    assert_eq!(response.status.0, 0);
    let (_, listed) = text(&mut initiator, RESERVED_TAG, "SendTargets=All\0");
    let listed = String::from_utf8(listed).unwrap();
    assert_eq!(listed, format!("TargetName={TARGET}\0TargetAddress=192.0.2.1:3260,1\0"));
}

#[test]
fn long_discovery_comes_in_pieces_that_fit_login_buffers() {
    let target = target();
    for n in 0..200 {
        let portal = Portal::new(([10, 0, 1, n], 3260).into(), 1, Transport::Rdma);
        target.shared.add_portal(portal);
        let portal = Portal::new(([10, 0, 2, n], 3260).into(), 1, Transport::Rdma);
        target.shared.add_portal(portal);
    }
    let mut initiator = target.connect(&[0xC0, 0, 0, 0], false);
    initiator.log_in("SessionType=Discovery\0MaxRecvDataSegmentLength=32768\0");
    let (mut response, mut all) = text(&mut initiator, RESERVED_TAG, "SendTargets=All\0");
    assert!(response.more);
    while response.more {
        let (next, piece) = text(&mut initiator, response.ttt, "");
        assert!(piece.len() <= 8192);
        response = next;
        all.extend_from_slice(&piece);
    }
    assert_eq!(String::from_utf8(all).unwrap().matches("TargetAddress=10.0.").count(), 400);
}

#[test]
fn text_of_a_normal_session_comes_in_pieces_that_linux_has_room_for() {
    let target = target();
    for n in 0..10 {
        let portal = Portal::new(([10, 0, 1, n], 3260).into(), 1, Transport::Rdma);
        target.shared.add_portal(portal);
    }
    let mut initiator = target.linux();
    let (mut response, mut all) = text(&mut initiator, RESERVED_TAG, "SendTargets=\0");
    while response.more {
        let (next, piece) = text(&mut initiator, response.ttt, "");
        assert!(piece.len() <= 128);
        response = next;
        all.extend_from_slice(&piece);
    }
    assert_eq!(String::from_utf8(all).unwrap().matches("TargetAddress=").count(), 11);
}

#[test]
fn ping_is_echoed_as_far_as_linux_has_room() {
    let target = target();
    let initiator = target.linux();
    let nop = NopOut {
        immediate: true,
        data_len: 1000,
        lun: Lun::default(),
        itt: 0x66,
        ttt: RESERVED_TAG,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.send(Tags::default(), Request::NopOut(nop), &[0x5A; 1000]);
    let received = initiator.receive();
    assert!(matches!(received.reply, Reply::NopIn(nop) if nop.itt == 0x66), "{received:?}");
    assert_eq!(received.data, [0x5A; 128]);
}

#[test]
fn logout_is_answered_behind_a_fence_and_then_the_target_disconnects() {
    let target = target();
    let initiator = target.linux();
    let logout = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseSession,
        itt: 0x44,
        cid: 0,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: 0,
    };
    initiator.send(Tags::default(), Request::LogoutRequest(logout), &[]);
    let received = initiator.receive();
    let Reply::LogoutResponse(response) = received.reply else { panic!("{received:?}") };
    assert_eq!((response.itt, response.response), (0x44, LogoutOutcome::Closed));
    assert!(received.message.flags.fence);
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for_no_session();
}

#[test]
fn same_isid_again_replaces_the_session() {
    let target = target();
    let old = target.linux();
    let mut new = target.linux();
    assert!(old.wire.is_closed(LIMIT));
    new.read(0, 8);
    assert_eq!(target.shared.sessions().len(), 1);
}

#[test]
fn commands_right_behind_the_login_are_taken() {
    let target = target();
    let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
    let command = initiator.command(&[0; 6], false, 0);
    initiator.cmd_sn -= 1;
    let login = {
        let text = format!("InitiatorName=iqn.2026-11.test:a\0TargetName={TARGET}\0{KEYS}");
        let request = iscsi::pdu::LoginRequest {
            immediate: true,
            transit: true,
            more: false,
            current: iscsi::pdu::Stage::Operational,
            next: iscsi::pdu::Stage::FullFeature,
            version_max: 0,
            version_min: 0,
            data_len: text.len() as u32,
            isid: initiator.isid,
            tsih: 0,
            itt: 0,
            cid: 0,
            cmd_sn: initiator.cmd_sn,
            exp_stat_sn: 0,
        };
        message(Tags::default(), Request::LoginRequest(request), text.as_bytes())
    };
    initiator.wire.send(login);
    initiator.send(Tags::default(), Request::ScsiCommand(command), &[]);
    assert!(matches!(initiator.receive().reply, Reply::LoginResponse(_)));
    assert_eq!(initiator.response().0.itt, command.itt);
}

#[test]
fn hello_is_answered_if_it_was_agreed_on_and_ends_the_connection_if_not() {
    let target = target();
    let mut raw = [0; HEADER_LEN];
    Header::Hello(Hello { max_version: 10, min_version: 1, reads: 2 }).emit(&mut raw);
    let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
    initiator.log_in(&format!("{KEYS}iSERHelloRequired=Yes\0"));
    initiator.wire.send(raw.to_vec());
    let reply = initiator.wire.receive(LIMIT).unwrap();
    let expected = HelloReply { reject: false, max_version: 10, version: 10, reads: 2 };
    assert_eq!(Header::parse(reply.bytes.first_chunk().unwrap()), Header::HelloReply(expected));
    assert_eq!(reply.bytes.len(), HEADER_LEN);
    initiator.clear_attention();
    initiator.wire.send(raw.to_vec());
    assert!(initiator.wire.is_closed(LIMIT));
}

#[test]
fn malformed_messages_end_their_own_connection_only() {
    let target = target();
    let mut other = target.linux();
    for (at, bytes) in [vec![], vec![0x10; 27], vec![0x10; 75], vec![0; 76], vec![0xFF; 9000]]
        .into_iter()
        .enumerate()
    {
        let mut initiator = target.connect(&[0x80, 0, 0, 0], false);
        initiator.isid.0[5] = 0x10 + at as u8;
        initiator.log_in(KEYS);
        initiator.wire.send(bytes.clone());
        assert!(initiator.wire.is_closed(LIMIT), "{at}");
        let stranger = target.connect(&[0x80, 0, 0, 0], false);
        stranger.wire.send(bytes);
        assert!(stranger.wire.is_closed(LIMIT), "{at} in login");
    }
    other.read(0, 8);
}

#[test]
fn disconnected_session_ends_with_its_writes_in_progress() {
    let target = target();
    let mut initiator = target.linux();
    initiator.wire.hold(true);
    for n in 0..8 {
        initiator.wire.register(n, 0, vec![0; 4096]);
        let command = initiator.command(&write_10(0, 8), true, 4096);
        let write = Some(crate::header::Tag { key: n, base: 0 });
        initiator.send(Tags { write, read: None }, Request::ScsiCommand(command), &[]);
    }
    target.wait_for("the reads", || initiator.wire.reads() == 8);
    initiator.wire.disconnect();
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for_no_session();
}

#[test]
fn stop_asks_for_a_logout_by_one_message_and_then_disconnects() {
    let target = target();
    let initiator = target.linux();
    target.shared.stop(Duration::from_millis(100));
    let received = initiator.receive();
    assert!(matches!(received.reply, Reply::AsyncMessage(_)), "{received:?}");
    assert!(initiator.wire.is_closed(LIMIT));
    target.wait_for_no_session();
}
