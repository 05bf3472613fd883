//! iscsi: what an initiator that is logged in sends, to a target with a reactor of its own.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iscsi::digest::crc32c;
use iscsi::endpoint::{Endpoint, Note, Seed as EndpointSeed};
use iscsi::negotiate::Preferences;
use iscsi::pdu::{
    BHS_LEN, Bhs, DataOut, Isid, LoginRequest, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG,
    Reply, Request, ScsiCommand, Snack, Stage, TaskFunctionCode, TaskRequest, TextRequest,
    data_segment_len,
};
use iscsi::portal::Bound;
use iscsi::registry::Place;
use iscsi::shared::{Access, Allow, Limits, Router, Shared};
use libsrp::{Lun, TaskAttribute};
use vscsi_target::backend::{Backend, Mem};
use vscsi_target::engine::Engine;
use vscsi_target::model::reservation::Reservations;
use vscsi_target::model::{Identity, LogicalUnit, LuConfig, Model};
use vscsi_target::reactor::{
    self, Inbox, Postboxes, Reactor, pool::Pool, ring::Ring, workers::Workers,
};
use vscsi_target::spc::mode::Modes;

use crate::Seed;

/// A session: the first byte says what it negotiates, the rest are its PDUs. Data segments are cut
/// to what there is, digests are right, and CmdSN is the one expected unless the header is
/// immediate; everything else is as the input has it. What the target sends has to be PDUs, and the
/// session has to end when the initiator does.
pub fn session(data: &[u8]) {
    let Some((&kind, mut input)) = data.split_first() else { return };
    let Some(target) = running() else { return };
    // One session at a time: they share the logical unit.
    let _turn = target.turn.lock().unwrap_or_else(PoisonError::into_inner);
    refresh(&target.lu);
    let keys = KEYS[usize::from(kind) % KEYS.len()];
    let Ok(mut stream) = target.log_in(keys) else { return };
    let digests = keys.contains("CRC32C");
    let mut cmd_sn: u32 = 1;
    let mut bytes = Vec::new();
    for _ in 0..MAX_PDUS {
        let Some((header, rest)) = input.split_first_chunk::<BHS_LEN>() else { break };
        let mut header = *header;
        let len = (data_segment_len(&header) as usize).min(rest.len()).min(MAX_DATA);
        let (data, rest) = rest.split_at(len);
        input = rest;
        header[4] = 0;
        header[5..8].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
        // Data-Out and SNACK have none.
        if !matches!(header[0] & 0x3F, 0x05 | 0x10) {
            header[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
            if header[0] & 0x40 == 0 {
                cmd_sn = cmd_sn.wrapping_add(1);
            }
        }
        append(&mut bytes, &header, data, digests);
    }
    // The target may have closed the connection before it took everything.
    let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the connection stays open");
    }
    check(&answer, digests);
    let start = Instant::now();
    while !target.shared.sessions().is_empty() {
        assert!(start.elapsed() < PATIENCE, "the session never ends");
        thread::sleep(Duration::from_micros(50));
    }
}

/// Seeds of [`session`].
pub fn session_seeds() -> Vec<Seed> {
    let (lun, itt, exp_stat_sn, cmd_sn) = (Lun::default(), 7, 1, 0);
    let command = |cdb: [u8; 16], read: bool, write: bool, edtl: u32, data_len: u32| {
        Request::ScsiCommand(ScsiCommand {
            immediate: false,
            is_final: true,
            read,
            write,
            attribute: TaskAttribute::Simple,
            priority: 0,
            ahs_words: 0,
            data_len,
            lun,
            itt,
            edtl,
            cmd_sn,
            exp_stat_sn,
            cdb,
        })
    };
    let cdb = |opcode: u8, blocks: u8| [opcode, 0, 0, 0, 0, 0, 0, 0, blocks, 0, 0, 0, 0, 0, 0, 0];
    let test_unit_ready = command([0; 16], false, false, 0, 0);
    let inquiry = command([0x12, 0, 0, 0, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], true, false, 96, 0);
    let read = command(cdb(0x28, 8), true, false, 4096, 0);
    let data_out = |ttt, data_sn| {
        let (data_len, offset) = (512, 0);
        let is_final = true;
        Request::DataOut(DataOut {
            is_final,
            data_len,
            lun,
            itt,
            ttt,
            exp_stat_sn,
            data_sn,
            offset,
        })
    };
    let task = |function| {
        Request::TaskRequest(TaskRequest {
            immediate: true,
            function,
            lun,
            itt: 9,
            referenced: itt,
            cmd_sn,
            exp_stat_sn,
            ref_cmd_sn: 1,
            exp_data_sn: 0,
        })
    };
    let nop = Request::NopOut(NopOut {
        immediate: true,
        data_len: 4,
        lun,
        itt: 8,
        ttt: RESERVED_TAG,
        cmd_sn,
        exp_stat_sn,
    });
    let text = Request::TextRequest(TextRequest {
        immediate: false,
        is_final: true,
        more: false,
        data_len: 16,
        lun,
        itt: 8,
        ttt: RESERVED_TAG,
        cmd_sn,
        exp_stat_sn,
    });
    let logout = Request::LogoutRequest(LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseSession,
        itt: 10,
        cid: 0,
        cmd_sn,
        exp_stat_sn,
    });
    let block = [5; 512];
    let seed = |name, kind, pdus: &[(&Request, &[u8])]| {
        let mut bytes = vec![kind];
        for (request, data) in pdus {
            let mut header = [0; BHS_LEN];
            request.emit(&mut header);
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(data);
        }
        Seed { name, bytes }
    };
    let write = command(cdb(0x2A, 1), false, true, 512, 0);
    let immediate = command(cdb(0x2A, 1), false, true, 512, 512);
    vec![
        seed("read", 0, &[(&test_unit_ready, &[]), (&inquiry, &[]), (&read, &[]), (&logout, &[])]),
        seed("read_digests", 2, &[(&test_unit_ready, &[]), (&read, &[]), (&nop, b"ping")]),
        seed("write_immediate", 0, &[(&test_unit_ready, &[]), (&immediate, &block)]),
        seed(
            "write_r2t",
            1,
            &[(&test_unit_ready, &[]), (&write, &[]), (&data_out(0, 0), &block), (&logout, &[])],
        ),
        seed(
            "write_unsolicited",
            3,
            &[(&test_unit_ready, &[]), (&write, &[]), (&data_out(RESERVED_TAG, 0), &block)],
        ),
        seed(
            "abort",
            1,
            &[
                (&test_unit_ready, &[]),
                (&write, &[]),
                (&task(TaskFunctionCode::AbortTask), &[]),
                (&task(TaskFunctionCode::LogicalUnitReset), &[]),
            ],
        ),
        seed("text", 0, &[(&text, b"SendTargets=All\0"), (&logout, &[])]),
        seed("snack", 0, &[(&Request::Snack(Snack::all_status(exp_stat_sn)), &[])]),
    ]
}

/// What the target sent has to be whole PDUs, but for the last, and each has to be understood.
fn check(mut answer: &[u8], digests: bool) {
    let digest = if digests { 4 } else { 0 };
    while let Some((header, rest)) = answer.split_first_chunk::<BHS_LEN>() {
        let len = data_segment_len(header) as usize;
        assert!(len <= 1 << 16, "more than MaxRecvDataSegmentLength");
        let reply = Reply::parse(header);
        assert!(reply.is_ok(), "{reply:?}");
        if digests && rest.len() >= 4 {
            assert_eq!(rest[..4], crc32c(header));
        }
        let data = len.next_multiple_of(4) + if len > 0 { digest } else { 0 };
        answer = rest.get(digest + data..).unwrap_or_default();
    }
}

fn append(bytes: &mut Vec<u8>, header: &Bhs, data: &[u8], digests: bool) {
    bytes.extend_from_slice(header);
    if digests {
        bytes.extend_from_slice(&crc32c(header));
    }
    if !data.is_empty() {
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + data.len().next_multiple_of(4), 0);
        if digests {
            let digest = crc32c(&bytes[start..]);
            bytes.extend_from_slice(&digest);
        }
    }
}

/// The command core of a target with one logical unit.
pub(crate) struct Core {
    pub(crate) postboxes: Arc<Postboxes>,
    pub(crate) model: Arc<Model>,
    pub(crate) lu: Arc<LogicalUnit>,
}

impl Core {
    pub(crate) fn new() -> io::Result<Self> {
        let postboxes = Postboxes::new(1)?;
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target(TARGET).map_err(io::Error::other)?;
        target.add_port(1, 5, format!("{TARGET},t,0x0001"));
        let backend = Backend::Mem(Mem::new(1 << 18, 512)?);
        let config = LuConfig {
            identity: Identity::derive("fuzz", None),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let reservations = Reservations::default();
        let lu = LogicalUnit::new(config, backend, reservations, modes, Arc::clone(&postboxes));
        target.map(0, Arc::clone(&lu), None).map_err(io::Error::other)?;
        Ok(Self { postboxes, model, lu })
    }
}

/// Lets the only initiator log in.
pub(crate) fn share(model: &Arc<Model>, router: Arc<dyn Router>) -> io::Result<Arc<Shared>> {
    let (preferences, limits) = (Preferences::default(), Limits::default());
    let shared = Shared::new(Arc::clone(model), router, preferences, limits)?;
    let access = Access {
        allow: Allow::Only(vec![HOST.parse().map_err(io::Error::other)?]),
        chap: None,
        alias: None,
        redirect: None,
        portal_groups: None,
    };
    shared.set_access(TARGET, access);
    Ok(shared)
}

/// Runs a reactor as long as the process lives.
pub(crate) fn run<E: reactor::Endpoint>(model: Arc<Model>, inbox: Arc<Inbox<E>>) {
    thread::spawn(move || {
        let workers = Arc::new(Workers::new(1));
        let engine = Engine::new(model, 0, Pool::new(16 << 20), Ring::disabled(), workers);
        if let Ok(reactor) = Reactor::new(engine, inbox) {
            reactor.run(&AtomicBool::new(false));
        }
    });
}

/// Undoes what the session before did to the logical unit.
pub(crate) fn refresh(lu: &LogicalUnit) {
    let start = Instant::now();
    while lu.state().busy.is_some_and(|busy| busy.key == 2) {
        assert!(start.elapsed() < PATIENCE, "a format never ends");
        thread::sleep(Duration::from_micros(50));
    }
    lu.update(|state| {
        assert_eq!(state.aca, None);
        state.reservations = Reservations::default();
        state.modes.reset();
        (state.stopped, state.ejected, state.sanitize_failed) = (false, false, false);
        state.busy = None;
    });
}

/// A target that lives as long as the process.
struct Running {
    shared: Arc<Shared>,
    lu: Arc<LogicalUnit>,
    address: SocketAddr,
    turn: Mutex<()>,
}

/// The target; `None` when the system has no loopback or memory for it.
fn running() -> Option<&'static Running> {
    static RUNNING: OnceLock<Option<Running>> = OnceLock::new();
    RUNNING.get_or_init(|| Running::start().ok()).as_ref()
}

impl Running {
    fn start() -> io::Result<Self> {
        let Core { postboxes, model, lu } = Core::new()?;
        let inbox = Inbox::new(0, postboxes);
        let router = Arc::new(Only(Arc::clone(&inbox)));
        let shared = share(&model, router)?;
        let bound = Bound::new((Ipv4Addr::LOCALHOST, 0).into(), 1).map_err(io::Error::other)?;
        let address = bound.portal.address;
        inbox.open(bound.seed(Arc::clone(&shared)));
        run(model, inbox);
        Ok(Self { shared, lu, address, turn: Mutex::default() })
    }

    fn log_in(&self, keys: &str) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let text = format!("InitiatorName={HOST}\0TargetName={TARGET}\0SessionType=Normal\0{keys}");
        let mut header = [0; BHS_LEN];
        let request = LoginRequest {
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
        };
        request.emit(&mut header);
        let mut bytes = Vec::new();
        append(&mut bytes, &header, text.as_bytes(), false);
        stream.write_all(&bytes)?;
        stream.read_exact(&mut header)?;
        let reply = Reply::parse(&header);
        let is_in = matches!(reply, Ok(Reply::LoginResponse(login)) if login.status.0 == 0 && login.transit);
        assert!(is_in, "the login failed: {reply:?}");
        let mut answer = vec![0; (data_segment_len(&header) as usize).next_multiple_of(4)];
        stream.read_exact(&mut answer)?;
        Ok(stream)
    }
}

#[derive(Debug)]
struct Only(Arc<Inbox<Endpoint>>);

impl Router for Only {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, _: u16, seed: EndpointSeed) {
        self.0.open(seed);
    }

    fn note(&self, to: Place, note: Note) {
        self.0.note(to.endpoint, note);
    }
}

const KEYS: [&str; 4] = [
    "InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536\0",
    "InitialR2T=Yes\0ImmediateData=No\0MaxRecvDataSegmentLength=512\0MaxBurstLength=512\0\
     FirstBurstLength=512\0",
    "HeaderDigest=CRC32C\0DataDigest=CRC32C\0",
    "InitialR2T=No\0ImmediateData=No\0FirstBurstLength=1024\0MaxOutstandingR2T=4\0",
];
pub(crate) const TARGET: &str = "iqn.2026-11.org.example:san";
pub(crate) const HOST: &str = "iqn.1994-05.com.redhat:host9";
const MAX_PDUS: usize = 32;
const MAX_DATA: usize = 4096;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
