//! iscsi: PDU headers, text, and whole logins with the text exchanges behind them.

use iscsi::chap::{Algorithm, Algorithms, Chap, Credential, Secret};
use iscsi::discovery::{Listed, TargetAddress};
use iscsi::exchange::{Context, TextExchange};
use iscsi::login::{Admission, Applicant, Gate, Granted, LoggedIn, Login, Refusal, Step};
use iscsi::names::{IscsiName, TransportId};
use iscsi::negotiate::{Parameters, Preferences, SessionType};
use iscsi::pdu::{
    AsyncEvent, AsyncMessage, BHS_LEN, Bhs, DataIn, DataOut, Digests, Frame, Isid, LoginRequest,
    LogoutReason, LogoutRequest, NopOut, Numbers, R2t, RESERVED_TAG, Reject, RejectReason, Reply,
    Request, ScsiCommand, ScsiResponse, ServiceResponse, Snack, Stage, TaskFunctionCode,
    TaskRequest, TextRequest, data_segment_len, parse_ahs,
};
use iscsi::text::{
    Hex, MAX_KEY, Text, pairs, parse_binary, parse_boolean, parse_number, parse_range,
};
use libsrp::{Lun, Residual, Status, TaskAttribute};

use crate::Seed;

/// Any header in both directions, and what follows it as additional header segments.
pub fn pdu(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<BHS_LEN>() else { return };
    let mut again = [0xA5; BHS_LEN];
    if let Ok(request) = Request::parse(header) {
        request.emit(&mut again);
        assert_eq!(Request::parse(&again), Ok(request));
    }
    if let Ok(reply) = Reply::parse(header) {
        reply.emit(&mut again);
        assert_eq!(Reply::parse(&again), Ok(reply));
    }
    for digests in [Digests::NONE, Digests { header: true, data: true }] {
        if let Ok(frame) = Frame::of(header, digests, MAX_DATA) {
            assert!(frame.data <= MAX_DATA as usize);
            assert!(frame.total().is_multiple_of(4) && frame.data_start() <= frame.total());
            let ahs = &rest[..rest.len().min(frame.ahs)];
            if let Ok(ahs) = parse_ahs(ahs) {
                assert!(ahs.extended_cdb.len() <= 244);
            }
        }
    }
}

/// Any text, and every value of it by every form a value has.
pub fn text(data: &[u8]) {
    let mut copy = Text::new();
    let mut kept = Vec::new();
    for (key, value) in pairs(data).map_while(Result::ok) {
        assert!((1..=MAX_KEY).contains(&key.len()));
        copy.push(key, value);
        kept.push(Ok((key, value)));
        let _ = (parse_number(value), parse_boolean(value));
        if let Some((low, high)) = parse_range(value) {
            assert!(low <= high);
        }
        if let Some(bytes) = parse_binary(value, 1024) {
            assert!(bytes.len() <= 1024);
            assert_eq!(parse_binary(&Hex(&bytes).to_string(), 1024).unwrap_or_default(), bytes);
        }
        if let Ok(name) = IscsiName::parse(value) {
            assert_eq!(IscsiName::parse(name.as_str()), Ok(name));
        }
    }
    assert_eq!(pairs(copy.as_bytes()).collect::<Vec<_>>(), kept);
    if let Ok((id, len)) = TransportId::parse(data) {
        assert!(len <= data.len());
        let bytes = id.to_bytes();
        assert_eq!(TransportId::parse(&bytes), Ok((id, bytes.len())));
    }
}

/// A connection: the first byte says whether the target asks for CHAP, the rest is what the
/// initiator sends. What comes after the login is taken for text requests.
pub fn login(data: &[u8]) {
    let Some((&kind, mut stream)) = data.split_first() else { return };
    let mut gate = Target { guarded: kind & 1 != 0 };
    let mut login = Login::new();
    let connection = loop {
        let Some((header, data)) = next_pdu(&mut stream) else { return };
        match login.receive(header, data, &mut gate) {
            Step::Reply(reply) => {
                assert_eq!(reply.pdu.status.class(), 0);
                assert!(reply.text.len() <= 8192 && !(reply.pdu.transit && reply.pdu.more));
            }
            Step::Refused(refused) => {
                if let Some(reply) = &refused.reply {
                    assert_ne!(reply.pdu.status.class(), 0);
                }
                assert!(!refused.to_string().is_empty());
                return;
            }
            Step::NeedSession(ready) => {
                let granted = Granted { tsih: 1, exp_cmd_sn: 1, max_cmd_sn: 128 };
                let (reply, connection) = ready.finish(granted);
                assert!(reply.pdu.transit && reply.pdu.next == Stage::FullFeature);
                break connection;
            }
        }
    };
    check(&connection, gate.guarded);
    let mut exchange = TextExchange::new();
    let context = Context {
        session_type: connection.session_type,
        target: connection.target.as_ref(),
        max_piece: connection.parameters.initiator_mrdsl,
    };
    while let Some((header, data)) = next_pdu(&mut stream) {
        let Ok(request) = TextRequest::parse(header) else { return };
        if let Ok(reply) = exchange.request(&request, data, &context, |_| targets()) {
            assert!(reply.text.len() <= context.max_piece as usize);
            assert_eq!(reply.is_final, reply.ttt == RESERVED_TAG);
        }
    }
}

/// Seeds of [`pdu`].
pub fn pdu_seeds() -> Vec<Seed> {
    let (lun, itt, ttt, exp_stat_sn) = (Lun::default(), 7, 9, 3);
    let numbers = Numbers { stat_sn: 3, exp_cmd_sn: 5, max_cmd_sn: 132 };
    let command = ScsiCommand {
        immediate: false,
        is_final: true,
        read: true,
        write: false,
        attribute: TaskAttribute::Simple,
        priority: 0,
        ahs_words: 0,
        data_len: 0,
        lun,
        itt,
        edtl: 4096,
        cmd_sn: 5,
        exp_stat_sn,
        cdb: [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
    };
    let long = ScsiCommand { ahs_words: 5, write: true, ..command };
    let requests = [
        ("scsi_command", Request::ScsiCommand(command)),
        (
            "data_out",
            Request::DataOut(DataOut {
                is_final: true,
                data_len: 512,
                lun,
                itt,
                ttt,
                exp_stat_sn,
                data_sn: 0,
                offset: 0,
            }),
        ),
        (
            "task_request",
            Request::TaskRequest(TaskRequest {
                immediate: true,
                function: TaskFunctionCode::AbortTask,
                lun,
                itt,
                referenced: 6,
                cmd_sn: 5,
                exp_stat_sn,
                ref_cmd_sn: 4,
                exp_data_sn: 0,
            }),
        ),
        ("login_request", Request::LoginRequest(login_request(Stage::Operational, 0))),
        ("text_request", Request::TextRequest(text_request(0))),
        (
            "logout_request",
            Request::LogoutRequest(LogoutRequest {
                immediate: true,
                reason: LogoutReason::CloseSession,
                itt,
                cid: 1,
                cmd_sn: 5,
                exp_stat_sn,
            }),
        ),
        (
            "nop_out",
            Request::NopOut(NopOut {
                immediate: true,
                data_len: 0,
                lun,
                itt,
                ttt: RESERVED_TAG,
                cmd_sn: 5,
                exp_stat_sn,
            }),
        ),
        ("snack", Request::Snack(Snack::all_status(exp_stat_sn))),
    ];
    let replies = [
        (
            "scsi_response",
            Reply::ScsiResponse(ScsiResponse {
                response: ServiceResponse::Completed,
                status: Status::CHECK_CONDITION,
                qualifier: 0,
                data_len: 20,
                itt,
                snack_tag: 0,
                numbers,
                exp_data_sn: 1,
                bidi_residual: Residual::None,
                residual: Residual::Under(512),
            }),
        ),
        (
            "data_in",
            Reply::DataIn(DataIn {
                is_final: true,
                acknowledge: false,
                status: Some(Status::GOOD),
                residual: Residual::None,
                data_len: 512,
                lun,
                itt,
                ttt: RESERVED_TAG,
                numbers,
                data_sn: 0,
                offset: 0,
            }),
        ),
        ("r2t", Reply::R2t(R2t { lun, itt, ttt, numbers, r2t_sn: 0, offset: 0, desired_len: 1 })),
        (
            "async_message",
            Reply::AsyncMessage(AsyncMessage {
                event: AsyncEvent::LogoutRequest,
                vendor_code: 0,
                lun,
                data_len: 0,
                numbers,
                parameter1: 0,
                parameter2: 0,
                parameter3: 10,
            }),
        ),
        (
            "reject",
            Reply::Reject(Reject {
                reason: RejectReason::ProtocolError,
                data_len: 48,
                numbers,
                data_sn: 0,
            }),
        ),
    ];
    let mut seeds = Vec::new();
    let mut header = [0; BHS_LEN];
    for (name, request) in requests {
        request.emit(&mut header);
        seeds.push(Seed { name, bytes: header.to_vec() });
    }
    for (name, reply) in replies {
        reply.emit(&mut header);
        seeds.push(Seed { name, bytes: header.to_vec() });
    }
    long.emit(&mut header);
    let ahs = [0, 6, 1, 0, 16, 17, 18, 19, 20, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0x10, 0];
    seeds.push(Seed { name: "scsi_command_ahs", bytes: [&header[..], &ahs].concat() });
    seeds
}

/// Seeds of [`text`].
pub fn text_seeds() -> Vec<Seed> {
    let name = || HOST.parse::<IscsiName>();
    let id = |isid| name().map(|name| TransportId { name, isid }.to_bytes()).unwrap_or_default();
    vec![
        Seed { name: "identity", bytes: identity().into_bytes() },
        Seed {
            name: "values",
            bytes: b"A=Yes\0B=0x1F\0C=1~2\0D=0bZm9vYg==\0E=None,CRC32C\0F=\0".to_vec(),
        },
        Seed { name: "transport_id", bytes: id(None) },
        Seed { name: "transport_id_port", bytes: id(Some(ISID)) },
    ]
}

/// Seeds of [`login`].
pub fn login_seeds() -> Vec<Seed> {
    let (security, operational) = (Stage::Security, Stage::Operational);
    let keys = "HeaderDigest=CRC32C,None\0InitialR2T=No\0ImmediateData=Yes\0\
                MaxBurstLength=262144\0FirstBurstLength=65536\0\
                MaxRecvDataSegmentLength=65536\0IFMarker=No\0X-key=1\0";
    let answer = Secret::new(SECRET)
        .map(|secret| Algorithm::Md5.respond(CHALLENGE.0, &secret, &CHALLENGE.1))
        .map(|response| Hex(response.as_bytes()).to_string())
        .unwrap_or_default();
    let plain = [(operational, 0x87, identity() + keys)];
    let chap = [
        (security, 0x81, identity() + "AuthMethod=CHAP,None\0"),
        (security, 0x00, "CHAP_A=5,7\0".to_owned()),
        (security, 0x81, format!("CHAP_N=alice\0CHAP_R={answer}\0CHAP_I=1\0CHAP_C=0x0102\0")),
        (operational, 0x87, keys.to_owned()),
    ];
    let parts = [(operational, 0x44, identity()), (operational, 0x87, keys.to_owned())];
    let mut discovery = connection(
        0,
        &[(security, 0x83, format!("InitiatorName={HOST}\0SessionType=Discovery\0"))],
    );
    let ask = b"SendTargets=All\0";
    let mut header = [0; BHS_LEN];
    text_request(ask.len() as u32).emit(&mut header);
    discovery.extend_from_slice(&header);
    discovery.extend_from_slice(ask);
    vec![
        Seed { name: "plain", bytes: connection(0, &plain) },
        Seed { name: "chap", bytes: connection(1, &chap) },
        Seed { name: "parts", bytes: connection(0, &parts) },
        Seed { name: "discovery", bytes: discovery },
    ]
}

/// What must hold for whoever is logged in.
fn check(connection: &LoggedIn, guarded: bool) {
    assert_eq!(connection.chap_name.is_some(), guarded);
    assert!(connection.session_type == SessionType::Discovery || connection.target.is_some());
    let Parameters { initiator_mrdsl, max_burst, first_burst, .. } = connection.parameters;
    assert!((512..=0xFF_FFFF).contains(&initiator_mrdsl));
    assert!((512..=max_burst).contains(&first_burst));
}

struct Target {
    guarded: bool,
}

impl Gate for Target {
    fn admit(&mut self, _: &Applicant<'_>) -> Result<Admission, Refusal> {
        let credential = |name: &str, secret: &str| {
            Secret::new(secret).ok().map(|secret| Credential { name: name.to_owned(), secret })
        };
        let chap = self.guarded.then(|| Chap {
            initiators: credential("alice", SECRET).into_iter().collect(),
            target: credential("san", "target's secret"),
            algorithms: Algorithms::ALL,
        });
        let preferences = Preferences::default();
        Ok(Admission { chap, portal_group_tag: 1, target_alias: None, preferences })
    }

    fn challenge(&mut self) -> (u8, [u8; 32]) {
        CHALLENGE
    }
}

fn targets() -> Vec<Listed> {
    let address = ([192, 0, 2, 1], 3260).into();
    let portals = vec![TargetAddress { address, portal_group_tag: 1 }; 40];
    SAN.parse().map(|name| Listed { name, portals }).into_iter().collect()
}

/// Cuts a PDU without digests off the stream.
fn next_pdu<'a>(stream: &mut &'a [u8]) -> Option<(&'a Bhs, &'a [u8])> {
    let (header, rest) = stream.split_first_chunk::<BHS_LEN>()?;
    let len = data_segment_len(header).min(8192) as usize;
    let data = rest.get(..len)?;
    *stream = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((header, data))
}

fn connection(kind: u8, requests: &[(Stage, u8, String)]) -> Vec<u8> {
    let mut bytes = vec![kind];
    for (stage, flags, text) in requests {
        let mut header = [0; BHS_LEN];
        login_request(*stage, text.len() as u32).emit(&mut header);
        header[1] = *flags;
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len() + text.len().wrapping_neg() % 4, 0);
    }
    bytes
}

fn login_request(current: Stage, data_len: u32) -> LoginRequest {
    LoginRequest {
        immediate: true,
        transit: true,
        more: false,
        current,
        next: Stage::FullFeature,
        version_max: 0,
        version_min: 0,
        data_len,
        isid: ISID,
        tsih: 0,
        itt: 7,
        cid: 1,
        cmd_sn: 5,
        exp_stat_sn: 3,
    }
}

fn text_request(data_len: u32) -> TextRequest {
    TextRequest {
        immediate: false,
        is_final: true,
        more: false,
        data_len,
        lun: Lun::default(),
        itt: 7,
        ttt: RESERVED_TAG,
        cmd_sn: 5,
        exp_stat_sn: 3,
    }
}

fn identity() -> String {
    format!("InitiatorName={HOST}\0TargetName={SAN}\0SessionType=Normal\0")
}

const HOST: &str = "iqn.1994-05.com.redhat:host9";
const SAN: &str = "iqn.2026-11.org.example:san";
const SECRET: &str = "alice's secret";
const CHALLENGE: (u8, [u8; 32]) = (42, [0xC5; 32]);
const ISID: Isid = Isid([0, 2, 0x3D, 0, 0, 1]);
const MAX_DATA: u32 = 262_144;
