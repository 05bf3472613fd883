//! iser: messages of initiators, one by one and in a session over a connection that is none.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iscsi::applicant::Arrival;
use iscsi::endpoint::{Note, Seed as EndpointSeed};
use iscsi::negotiate::Transport;
use iscsi::pdu::{
    BHS_LEN, Bhs, Isid, LoginRequest, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG, Reply,
    Request, ScsiCommand, Stage, TaskFunctionCode, TaskRequest, data_segment_len,
};
use iscsi::portal::{HalfOpen, Portal};
use iscsi::registry::Place;
use iscsi::shared::{Router, Shared};
use iser::greeting::Abilities;
use iser::header::{HEADER_LEN, Header, Hello, Tag, Tags};
use iser::message::{MAX_AHS, Message};
use iser::mock::{Endpoint, Wire};
use iser::mover::{Link, SEGMENT_MAX};
use libsrp::{Lun, TaskAttribute};
use vscsi_target::model::LogicalUnit;
use vscsi_target::reactor::Inbox;

use crate::Seed;
use crate::session::{Core, HOST, PATIENCE, TARGET, refresh, run, share};

/// A header is the same after it was emitted, private data of any length is understood, and the
/// parts of a message are inside it.
pub fn message(data: &[u8]) {
    let theirs = Abilities::parse(data);
    assert_eq!(Abilities::parse(&theirs.answer().emit()), theirs.answer());
    if let Some(raw) = data.first_chunk::<HEADER_LEN>() {
        let header = Header::parse(raw);
        let mut emitted = [0xA5; HEADER_LEN];
        header.emit(&mut emitted);
        assert_eq!(Header::parse(&emitted), header);
    }
    if let Ok(Message::Pdu(pdu)) = Message::parse(data, 8192) {
        assert!(pdu.ahs <= MAX_AHS && pdu.data.end <= data.len());
        assert!(pdu.data.start == HEADER_LEN + BHS_LEN + pdu.ahs);
    }
}

/// Seeds of [`message`].
pub fn message_seeds() -> Vec<Seed> {
    let mut hello = [0; HEADER_LEN];
    Header::Hello(Hello { max_version: 10, min_version: 1, reads: 4 }).emit(&mut hello);
    let read = Tags { write: None, read: Some(Tag { key: 1, base: 0 }) };
    vec![
        Seed { name: "hello", bytes: hello.to_vec() },
        Seed { name: "read", bytes: raw(read, &command(0x28, false, 4096, 0), &[]) },
        Seed { name: "write", bytes: raw(Tags::default(), &command(0x2A, true, 512, 5), b"hello") },
        Seed { name: "nop", bytes: raw(Tags::default(), &nop(), b"ping") },
    ]
}

/// A session: the first byte says how the connection begins and what is negotiated, the rest are
/// messages, each behind two bytes of length. An even length is that of a PDU whose CmdSN is filled
/// in; an odd one that of a message sent as it is. The initiator has 4 KiB of memory with key 1. What
/// the target sends has to be PDUs that Linux has room for, and the session has to end when the
/// initiator does.
pub fn session(data: &[u8]) {
    let Some((&kind, mut input)) = data.split_first() else { return };
    let Some(target) = running() else { return };
    // One session at a time: they share the logical unit.
    let _turn = target.turn.lock().unwrap_or_else(PoisonError::into_inner);
    refresh(&target.lu);
    let Some(wire) = target.log_in(kind) else { return };
    wire.register(1, 0, vec![0x5A; 4096]);
    let mut cmd_sn: u32 = 1;
    for _ in 0..MAX_MESSAGES {
        let Some((&[high, low], rest)) = input.split_first_chunk::<2>() else { break };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (message, rest) = rest.split_at(len.min(rest.len()).min(MAX_LEN));
        input = rest;
        let mut message = message.to_vec();
        if len % 2 == 0
            && let Some(header) = message.get_mut(HEADER_LEN..HEADER_LEN + BHS_LEN)
            // Data-Out and SNACK have none.
            && !matches!(header[0] & 0x3F, 0x05 | 0x10)
        {
            header[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
            if header[0] & 0x40 == 0 {
                cmd_sn = cmd_sn.wrapping_add(1);
            }
        }
        wire.send(message);
    }
    wait("the target never reads", || wire.unread() == 0);
    wire.disconnect();
    assert!(wire.is_closed(PATIENCE), "the connection stays open");
    while let Some(message) = wire.receive(Duration::ZERO) {
        check(&message.bytes);
    }
    wait("the session never ends", || target.shared.sessions().is_empty());
}

/// Seeds of [`session`].
pub fn session_seeds() -> Vec<Seed> {
    let tag = Some(Tag { key: 1, base: 0 });
    let (none, read, write) =
        (Tags::default(), Tags { write: None, read: tag }, Tags { write: tag, read: None });
    let ready = raw(none, &command(0, false, 0, 0), &[]);
    let block = [5; 512];
    let abort = Request::TaskRequest(TaskRequest {
        immediate: true,
        function: TaskFunctionCode::AbortTask,
        lun: Lun::default(),
        itt: 9,
        referenced: 7,
        cmd_sn: 0,
        exp_stat_sn: 0,
        ref_cmd_sn: 2,
        exp_data_sn: 0,
    });
    let logout = Request::LogoutRequest(LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseSession,
        itt: 10,
        cid: 0,
        cmd_sn: 0,
        exp_stat_sn: 0,
    });
    let mut hello = [0; HEADER_LEN];
    Header::Hello(Hello { max_version: 10, min_version: 1, reads: 4 }).emit(&mut hello);
    let seed = |name, kind, messages: &[Vec<u8>]| {
        let mut bytes = vec![kind];
        for message in messages {
            bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
            bytes.extend_from_slice(message);
        }
        Seed { name, bytes }
    };
    vec![
        seed("read", 0, &[ready.clone(), raw(read, &command(0x28, false, 4096, 0), &[])]),
        seed("write", 1, &[ready.clone(), raw(write, &command(0x2A, true, 4096, 0), &[])]),
        seed("immediate", 2, &[ready.clone(), raw(write, &command(0x2A, true, 4096, 512), &block)]),
        seed("nowhere", 0, &[ready.clone(), raw(none, &command(0x2A, true, 4096, 0), &[])]),
        seed(
            "abort",
            3,
            &[
                ready.clone(),
                raw(write, &command(0x2A, true, 4096, 0), &[]),
                raw(none, &abort, &[]),
            ],
        ),
        seed("hello", 4, &[hello.to_vec(), ready.clone()]),
        seed("logout", 0, &[ready, raw(none, &nop(), b"ping"), raw(none, &logout, &[])]),
        seed("odd", 0, &[vec![0x10; 27], vec![0xFF; 101]]),
    ]
}

fn raw(tags: Tags, request: &Request, data: &[u8]) -> Vec<u8> {
    let (mut first, mut header) = ([0; HEADER_LEN], [0; BHS_LEN]);
    Header::Control(tags).emit(&mut first);
    request.emit(&mut header);
    let mut message = [&first[..], &header, data].concat();
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn command(opcode: u8, write: bool, edtl: u32, data_len: u32) -> Request {
    let blocks = (edtl / 512) as u8;
    Request::ScsiCommand(ScsiCommand {
        immediate: false,
        is_final: true,
        read: edtl > 0 && !write,
        write,
        attribute: TaskAttribute::Simple,
        priority: 0,
        ahs_words: 0,
        data_len,
        lun: Lun::default(),
        itt: 7,
        edtl,
        cmd_sn: 0,
        exp_stat_sn: 0,
        cdb: [opcode, 0, 0, 0, 0, 0, 0, 0, blocks, 0, 0, 0, 0, 0, 0, 0],
    })
}

fn nop() -> Request {
    Request::NopOut(NopOut {
        immediate: true,
        data_len: 4,
        lun: Lun::default(),
        itt: 8,
        ttt: RESERVED_TAG,
        cmd_sn: 0,
        exp_stat_sn: 0,
    })
}

/// What the target sent has to be a PDU that is understood and that fits, or a greeting.
fn check(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        panic!("{} bytes", bytes.len());
    };
    match Header::parse(first) {
        Header::Control(tags) => assert_eq!(tags, Tags::default()),
        other => {
            assert!(matches!(other, Header::HelloReply(_)), "{other:?}");
            return;
        }
    }
    let Some(header) = rest.first_chunk::<BHS_LEN>() else { panic!("{} bytes", bytes.len()) };
    let reply = Reply::parse(header);
    assert!(reply.is_ok(), "{reply:?}");
    let len = data_segment_len(header);
    assert!(len <= SEGMENT_MAX);
    assert_eq!(rest.len(), BHS_LEN + len.next_multiple_of(4) as usize);
}

/// A target that lives as long as the process.
struct Running {
    shared: Arc<Shared>,
    lu: Arc<LogicalUnit>,
    portal: Arc<Portal>,
    inbox: Arc<Inbox<Endpoint>>,
    turn: Mutex<()>,
}

fn running() -> Option<&'static Running> {
    static RUNNING: OnceLock<Option<Running>> = OnceLock::new();
    RUNNING.get_or_init(|| Running::start().ok()).as_ref()
}

impl Running {
    fn start() -> io::Result<Self> {
        let Core { postboxes, model, lu } = Core::new()?;
        let inbox = Inbox::new(0, postboxes);
        let shared = share(&model, Arc::new(Only(Arc::clone(&inbox))))?;
        let portal = Portal::new(([192, 0, 2, 1], 3260).into(), 1, Transport::Rdma);
        shared.add_portal(Arc::clone(&portal));
        run(model, Arc::clone(&inbox));
        Ok(Self { shared, lu, portal, inbox, turn: Mutex::default() })
    }

    fn log_in(&self, kind: u8) -> Option<Arc<Wire>> {
        let private = if kind & 1 == 0 { [0x80, 0, 0, 0] } else { [0xC0, 0, 0, 0] };
        let wire = Wire::new(&private).ok()?;
        self.inbox.open(Arrival {
            shared: Arc::clone(&self.shared),
            link: Link {
                request: Arc::clone(&wire),
                strict: kind & 2 != 0,
                shared_receives: None,
                window: self.shared.limits.window,
                wanted: self.shared.preferences.rdma,
            },
            peer: ([192, 0, 2, 7], 50_000).into(),
            local: self.portal.address,
            slot: HalfOpen::take(&self.portal, usize::MAX)?,
        });
        let hello = if kind & 4 == 0 { "" } else { "iSERHelloRequired=Yes\0" };
        let text = format!(
            "InitiatorName={HOST}\0TargetName={TARGET}\0SessionType=Normal\0\
             RDMAExtensions=Yes\0InitiatorRecvDataSegmentLength=262144\0{hello}"
        );
        let request = Request::LoginRequest(LoginRequest {
            immediate: true,
            transit: true,
            more: false,
            current: Stage::Operational,
            next: Stage::FullFeature,
            version_max: 0,
            version_min: 0,
            data_len: text.len() as u32,
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            tsih: 0,
            itt: 0,
            cid: 0,
            cmd_sn: 1,
            exp_stat_sn: 0,
        });
        wire.send(raw(Tags::default(), &request, text.as_bytes()));
        let answer = wire.receive(PATIENCE)?;
        let header: &Bhs = answer.bytes.get(HEADER_LEN..)?.first_chunk()?;
        let reply = Reply::parse(header);
        let is_in = matches!(reply, Ok(Reply::LoginResponse(login)) if login.status.0 == 0 && login.transit);
        assert!(is_in, "the login failed: {reply:?}");
        Some(wire)
    }
}

#[derive(Debug)]
struct Only(Arc<Inbox<Endpoint>>);

impl Router for Only {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, _: u16, _: EndpointSeed) {}

    fn note(&self, to: Place, note: Note) {
        self.0.note(to.endpoint, note);
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_micros(50));
    }
}

const MAX_MESSAGES: usize = 32;
const MAX_LEN: usize = 8192 + HEADER_LEN + BHS_LEN + MAX_AHS;
