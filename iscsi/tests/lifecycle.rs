//! How sessions begin and end: refusal, reinstatement, several connections, kick, silence.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Target, read_10};
use iscsi::{
    negotiate::Preferences,
    pdu::{AsyncEvent, LoginStatus, LogoutReason, LogoutRequest, RESERVED_TAG, Reply, Request},
    shared::Limits,
};
use std::{io::Read, time::Duration};

#[test]
fn initiator_that_is_not_allowed_is_refused() {
    let target = Target::start();
    let mut initiator = target.connect();
    initiator.name = "iqn.2026-11.test:stranger".to_owned();
    assert_eq!(initiator.login("").status, LoginStatus::AUTHORIZATION_FAILURE);
    assert!(initiator.receive().is_none());
    assert!(target.shared.sessions().is_empty());
}

#[test]
fn stranger_may_not_even_discover() {
    let target = Target::start();
    let mut initiator = target.connect();
    initiator.name = "iqn.2026-11.test:stranger".to_owned();
    let response = initiator.login("SessionType=Discovery\0");
    assert_eq!(response.status, LoginStatus::AUTHORIZATION_FAILURE);
}

#[test]
fn same_isid_again_replaces_the_session() {
    let target = Target::start();
    let mut old = target.login("");
    let new = target.login("");
    assert_ne!(old.tsih, new.tsih);
    assert!(old.receive().is_none());
    let sessions = target.shared.sessions();
    assert_eq!(sessions.iter().map(|facts| facts.tsih).collect::<Vec<_>>(), [new.tsih]);
}

#[test]
fn other_isid_is_another_session() {
    let target = Target::start();
    let mut first = target.login("");
    first.clear_attention();
    let mut second = target.connect();
    second.isid.0[5] = 2;
    assert_eq!(second.login("").status, LoginStatus::SUCCESS);
    second.clear_attention();
    assert_eq!(first.read(&read_10(0, 1), 512).1, 0);
    assert_eq!(second.read(&read_10(0, 1), 512).1, 0);
}

fn two_connections() -> (Target, common::Initiator, common::Initiator) {
    let preferences = Preferences { max_connections: 4, ..Preferences::default() };
    let target = Target::with(preferences, Limits::default(), 2);
    let mut first = target.login("MaxConnections=2\0");
    first.clear_attention();
    let mut second = target.connect();
    (second.tsih, second.cid, second.cmd_sn) = (first.tsih, 1, first.cmd_sn);
    assert_eq!(second.login("").status, LoginStatus::SUCCESS);
    (target, first, second)
}

#[test]
fn command_that_overtakes_another_connection_waits_for_it() {
    let (_target, mut first, mut second) = two_connections();
    let early = first.command(&[0; 6], 0, 0);
    second.cmd_sn = first.cmd_sn;
    second.itt = 100;
    let late = second.command(&[0; 6], 0, 0);
    second.send(Request::ScsiCommand(late), &[]);
    std::thread::sleep(Duration::from_millis(100));
    second.stream.set_nonblocking(true).unwrap();
    assert!(second.stream.read(&mut [0; 1]).is_err());
    second.stream.set_nonblocking(false).unwrap();
    first.send(Request::ScsiCommand(early), &[]);
    assert!(matches!(first.receive().unwrap().reply, Reply::ScsiResponse(r) if r.itt == early.itt));
    assert!(matches!(second.receive().unwrap().reply, Reply::ScsiResponse(r) if r.itt == late.itt));
}

#[test]
fn one_connection_logs_out_and_the_other_goes_on() {
    let (target, mut first, mut second) = two_connections();
    second.send(
        Request::LogoutRequest(LogoutRequest {
            immediate: true,
            reason: LogoutReason::CloseConnection,
            itt: 9,
            cid: 1,
            cmd_sn: first.cmd_sn,
            exp_stat_sn: 0,
        }),
        &[],
    );
    assert!(matches!(second.receive().unwrap().reply, Reply::LogoutResponse(_)));
    assert!(second.receive().is_none());
    assert_eq!(first.read(&read_10(0, 1), 512).1, 0);
    assert_eq!(target.shared.sessions().len(), 1);
}

#[test]
fn losing_one_connection_ends_the_session() {
    let (target, mut first, second) = two_connections();
    drop(second);
    assert!(first.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}

#[test]
fn stop_with_a_session_on_one_of_two_reactors_ends_both() {
    let (target, mut first, _second) = two_connections();
    drop(target);
    while first.receive().is_some() {}
}

#[test]
fn connection_above_the_agreed_number_is_refused() {
    let (target, first, _second) = two_connections();
    let mut third = target.connect();
    (third.tsih, third.cid) = (first.tsih, 2);
    assert_eq!(third.login("").status, LoginStatus::TOO_MANY_CONNECTIONS);
}

#[test]
fn kicked_session_is_told_and_dropped() {
    let target = Target::start();
    let mut initiator = target.login("");
    assert!(target.shared.kick(initiator.tsih));
    let reply = initiator.receive().unwrap().reply;
    assert!(matches!(reply, Reply::AsyncMessage(m) if m.event == AsyncEvent::SessionDrop));
    assert!(initiator.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}

#[test]
fn silent_initiator_is_pinged_and_then_dropped() {
    let limits = Limits {
        ping_after: Duration::from_millis(100),
        ping_answer: Duration::from_millis(100),
        ..Limits::default()
    };
    let target = Target::with(Preferences::default(), limits, 1);
    let mut initiator = target.login("");
    let reply = initiator.receive().unwrap().reply;
    assert!(
        matches!(reply, Reply::NopIn(nop) if nop.itt == RESERVED_TAG && nop.ttt != RESERVED_TAG)
    );
    assert!(initiator.receive().is_none());
    target.wait_for("the session to end", |shared| shared.sessions().is_empty());
}

#[test]
fn connection_that_never_logs_in_is_closed() {
    let limits = Limits { login: Duration::from_millis(100), ..Limits::default() };
    let target = Target::with(Preferences::default(), limits, 1);
    let mut initiator = target.connect();
    assert!(initiator.receive().is_none());
}

#[test]
fn half_open_connections_above_the_limit_are_closed() {
    let limits = Limits { half_open: 2, ..Limits::default() };
    let target = Target::with(Preferences::default(), limits, 1);
    let _held: Vec<_> = (0..2).map(|_| target.connect()).collect();
    std::thread::sleep(Duration::from_millis(50));
    assert!(target.connect().receive().is_none());
}

#[test]
fn address_in_use_says_so() {
    let target = Target::start();
    let error = iscsi::portal::Bound::new(target.address, 1).unwrap_err();
    assert_eq!(error.reason.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.fix().contains("ss -ltnp"));
}
