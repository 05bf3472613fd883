//! A target with a RAM logical unit, and an initiator that does as it is told.

use crate::{
    header::{HEADER_LEN, Header, Tag, Tags},
    mock::{Endpoint, Message, Wire},
    mover::Link,
};
use iscsi::{
    applicant::Arrival,
    endpoint::{Note, Seed},
    negotiate::{Preferences, Transport},
    pdu::{
        BHS_LEN, Isid, LoginRequest, LoginResponse, Reply, Request, ScsiCommand, ScsiResponse,
        Stage, data_segment_len,
    },
    portal::{HalfOpen, Portal},
    registry::Place,
    shared::{Access, Allow, Limits, Router, Shared},
};
use libsrp::{Lun, TaskAttribute};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use vscsi_target::{
    backend::{Backend, Mem},
    engine::Engine,
    model::{Identity, LogicalUnit, LuConfig, Model, reservation::Reservations},
    reactor::{Inbox, Postboxes, Reactor, pool::Pool, ring::Ring, workers::Workers},
    spc::mode::Modes,
};

pub const TARGET: &str = "iqn.2026-11.test:t";
pub const LIMIT: Duration = Duration::from_secs(10);
/// What open-iscsi offers, as far as it matters here.
pub const KEYS: &str = "InitialR2T=No\0ImmediateData=Yes\0\
    InitiatorRecvDataSegmentLength=262144\0TargetRecvDataSegmentLength=262144\0\
    RDMAExtensions=Yes\0";

/// A target.
pub struct Target {
    pub shared: Arc<Shared>,
    portal: Arc<Portal>,
    inbox: Arc<Inbox<Endpoint>>,
    postboxes: Arc<Postboxes>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Only(Arc<Inbox<Endpoint>>);

impl Router for Only {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, _: u16, _: Seed) {}

    fn note(&self, to: Place, note: Note) {
        self.0.note(to.endpoint, note);
    }
}

impl Target {
    pub fn start(preferences: Preferences) -> Self {
        let postboxes = Postboxes::new(1).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target(TARGET).unwrap();
        target.add_port(1, 5, format!("{TARGET},t,0x0001"));
        let backend = Backend::Mem(Mem::new(8 << 20, 512).unwrap());
        let config = LuConfig {
            identity: Identity::derive("iser", None),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let lu = LogicalUnit::new(
            config,
            backend,
            Reservations::default(),
            modes,
            Arc::clone(&postboxes),
        );
        target.map(0, lu, None).unwrap();
        let inbox = Inbox::new(0, Arc::clone(&postboxes));
        let router = Arc::new(Only(Arc::clone(&inbox)));
        let shared =
            Shared::new(Arc::clone(&model), router, preferences, Limits::default()).unwrap();
        shared.set_access(
            TARGET,
            Access {
                allow: Allow::Any,
                chap: None,
                alias: None,
                redirect: None,
                portal_groups: None,
            },
        );
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (inbox, stop) = (Arc::clone(&inbox), Arc::clone(&stop));
            std::thread::spawn(move || {
                let workers = Arc::new(Workers::new(1));
                let engine = Engine::new(model, 0, Pool::new(64 << 20), Ring::new(64), workers);
                Reactor::new(engine, inbox).unwrap().run(&stop);
            })
        };
        let portal = Portal::new("192.0.2.1:3260".parse().unwrap(), 1, Transport::Rdma);
        shared.add_portal(Arc::clone(&portal));
        Self { shared, portal, inbox, postboxes, stop, thread: Some(thread) }
    }

    /// A connection whose initiator says this by private data.
    pub fn connect(&self, private: &[u8], strict: bool) -> Initiator {
        let wire = Wire::new(private).unwrap();
        let link = Link {
            request: Arc::clone(&wire),
            strict,
            shared_receives: None,
            window: self.shared.limits.window,
            wanted: self.shared.preferences.rdma,
        };
        self.inbox.open(Arrival {
            shared: Arc::clone(&self.shared),
            link,
            peer: "192.0.2.7:50000".parse().unwrap(),
            local: self.portal.address,
            slot: HalfOpen::take(&self.portal, 8).unwrap(),
        });
        Initiator { wire, cmd_sn: 1, itt: 0, isid: Isid([0x80, 0, 0, 0, 0, 1]) }
    }

    /// A session as Linux has it.
    pub fn linux(&self) -> Initiator {
        let mut initiator = self.connect(&[0x80, 0, 0, 0], false);
        assert_eq!(initiator.log_in(KEYS).0.status.0, 0);
        initiator.clear_attention();
        initiator
    }

    pub fn wait_for(&self, what: &str, mut ready: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if ready() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("waited in vain for {what}");
    }

    pub fn wait_for_no_session(&self) {
        self.wait_for("the end of all sessions", || self.shared.sessions().is_empty());
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.stop(Duration::ZERO);
        self.stop.store(true, Ordering::SeqCst);
        self.postboxes.wake(0);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// An initiator.
pub struct Initiator {
    pub wire: Arc<Wire>,
    pub cmd_sn: u32,
    pub itt: u32,
    pub isid: Isid,
}

/// A PDU of the target.
#[derive(Debug)]
pub struct Received {
    pub reply: Reply,
    pub data: Vec<u8>,
    pub message: Message,
}

impl Initiator {
    pub fn send(&self, tags: Tags, request: Request, data: &[u8]) {
        self.wire.send(message(tags, request, data));
    }

    pub fn receive(&self) -> Received {
        let message = self.wire.receive(LIMIT).expect("the target is silent");
        let bytes = &message.bytes;
        assert_eq!(bytes[..HEADER_LEN], [&[0x10][..], &[0; 27]].concat());
        let header = bytes[HEADER_LEN..].first_chunk::<BHS_LEN>().unwrap();
        let len = data_segment_len(header) as usize;
        let start = HEADER_LEN + BHS_LEN;
        assert_eq!(bytes.len(), start + len.next_multiple_of(4));
        let data = bytes[start..start + len].to_vec();
        Received { reply: Reply::parse(header).unwrap(), data, message }
    }

    pub fn response(&self) -> (ScsiResponse, Received) {
        let received = self.receive();
        let Reply::ScsiResponse(response) = received.reply else { panic!("{received:?}") };
        (response, received)
    }

    pub fn log_in(&mut self, keys: &str) -> (LoginResponse, String) {
        let who = match keys.contains("SessionType=Discovery") {
            true => String::new(),
            false => format!("TargetName={TARGET}\0"),
        };
        let text = format!("InitiatorName=iqn.2026-11.test:a\0{who}{keys}");
        let request = LoginRequest {
            immediate: true,
            transit: true,
            more: false,
            current: Stage::Operational,
            next: Stage::FullFeature,
            version_max: 0,
            version_min: 0,
            data_len: text.len() as u32,
            isid: self.isid,
            tsih: 0,
            itt: 0,
            cid: 0,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
        };
        self.send(Tags::default(), Request::LoginRequest(request), text.as_bytes());
        let received = self.receive();
        let Reply::LoginResponse(response) = received.reply else { panic!("{received:?}") };
        (response, String::from_utf8(received.data).unwrap().replace('\0', " "))
    }

    pub fn clear_attention(&mut self) {
        let command = self.command(&[0; 6], false, 0);
        self.send(Tags::default(), Request::ScsiCommand(command), &[]);
        self.response();
    }

    pub fn command(&mut self, cdb: &[u8], write: bool, edtl: u32) -> ScsiCommand {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        self.itt += 1;
        let command = ScsiCommand {
            immediate: false,
            is_final: true,
            read: !write && edtl > 0,
            write,
            attribute: TaskAttribute::Simple,
            priority: 0,
            ahs_words: 0,
            data_len: 0,
            lun: Lun::default(),
            itt: self.itt,
            edtl,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
            cdb: whole,
        };
        self.cmd_sn += 1;
        command
    }

    /// Reads blocks by a READ(10) into memory of its own.
    pub fn read(&mut self, lba: u32, blocks: u16) -> Vec<u8> {
        let len = usize::from(blocks) * 512;
        let key = 0x100 + self.itt;
        self.wire.register(key, 0x1_0000_0200, vec![0; len]);
        let read = Some(Tag { key, base: 0x1_0000_0200 });
        let command = self.command(&read_10(lba, blocks), false, len as u32);
        self.send(Tags { write: None, read }, Request::ScsiCommand(command), &[]);
        let (response, _) = self.response();
        assert_eq!((response.status.0, response.itt), (0, command.itt));
        self.wire.take(key).unwrap()
    }
}

pub fn message(tags: Tags, request: Request, data: &[u8]) -> Vec<u8> {
    let (mut first, mut header) = ([0; HEADER_LEN], [0; BHS_LEN]);
    Header::Control(tags).emit(&mut first);
    request.emit(&mut header);
    header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    [&first[..], &header, data].concat()
}

pub fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [0x28, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

pub fn write_10(lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = read_10(lba, blocks);
    cdb[0] = 0x2A;
    cdb
}
