//! A target over loopback TCP with a RAM logical unit, and an initiator small enough to do
//! everything wrong.

#![allow(dead_code)] // Each test file uses a part of it.

use iscsi::{
    discovery::TargetAddress,
    endpoint::{Endpoint, Note, Seed},
    negotiate::Preferences,
    pdu::{
        BHS_LEN, Bhs, Digests, Isid, LoginRequest, LoginResponse, Reply, Request, ScsiCommand,
        Stage, data_segment_len,
    },
    portal::Bound,
    registry::Place,
    shared::{Access, Allow, Limits, Router, Shared},
};
use libsrp::{Lun, TaskAttribute};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
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
    model::{
        Identity, LogicalUnit, LuConfig, Model, reservation::Capabilities,
        reservation::Reservations,
    },
    reactor::{Inbox, Postboxes, Reactor, pool::Pool, ring::Ring, workers::Workers},
    spc::mode::Modes,
};

pub const TARGET: &str = "iqn.2026-11.test:t";
pub const INITIATOR: &str = "iqn.2026-11.test:a";

/// A running target.
pub struct Target {
    pub shared: Arc<Shared>,
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    postboxes: Arc<Postboxes>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inboxes(Vec<Arc<Inbox<Endpoint>>>);

impl Router for Inboxes {
    fn reactors(&self) -> u16 {
        self.0.len() as u16
    }

    fn open(&self, reactor: u16, seed: Seed) {
        self.0[usize::from(reactor)].open(seed);
    }

    fn note(&self, to: Place, note: Note) {
        self.0[usize::from(to.reactor)].note(to.endpoint, note);
    }
}

impl Target {
    pub fn start() -> Self {
        Self::with(Preferences::default(), Limits::default(), 1)
    }

    pub fn with(preferences: Preferences, limits: Limits, reactors: usize) -> Self {
        let postboxes = Postboxes::new(reactors).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target(TARGET).unwrap();
        target.add_port(1, 5, format!("{TARGET},t,0x0001"));
        let backend = Backend::Mem(Mem::new(8 << 20, 512).unwrap());
        let config = LuConfig {
            identity: Identity::derive("seed", Some("SN0001")),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let reservations = Reservations::new(Capabilities::default());
        let lu = LogicalUnit::new(config, backend, reservations, modes, Arc::clone(&postboxes));
        target.map(0, lu, None).unwrap();

        let inboxes: Vec<_> =
            (0..reactors as u16).map(|n| Inbox::new(n, Arc::clone(&postboxes))).collect();
        let router = Arc::new(Inboxes(inboxes.clone()));
        let shared = Shared::new(Arc::clone(&model), router, preferences, limits).unwrap();
        shared.set_access(
            TARGET,
            Access {
                allow: Allow::Only(vec![INITIATOR.parse().unwrap()]),
                chap: None,
                alias: None,
                redirect: None,
                portal_groups: None,
            },
        );
        let stop = Arc::new(AtomicBool::new(false));
        let workers = Arc::new(Workers::new(2));
        let threads = inboxes
            .iter()
            .zip(0u16..)
            .map(|(inbox, number)| {
                let (inbox, model) = (Arc::clone(inbox), Arc::clone(&model));
                let (workers, stop) = (Arc::clone(&workers), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let pool = Pool::new(64 << 20);
                    let engine = Engine::new(model, number, pool, Ring::new(64), workers);
                    Reactor::new(engine, inbox).unwrap().run(&stop);
                })
            })
            .collect();
        let bound = Bound::new("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = bound.portal.address;
        inboxes[0].open(bound.seed(Arc::clone(&shared)));
        Self { shared, address, stop, postboxes, threads }
    }

    /// A connection that is logged in with these operational keys.
    pub fn login(&self, keys: &str) -> Initiator {
        let mut initiator = self.connect();
        let response = initiator.login(keys);
        assert_eq!(response.status.0, 0, "login failed");
        initiator
    }

    pub fn connect(&self) -> Initiator {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Initiator {
            stream,
            isid: Isid([0x80, 0, 0, 0, 0, 1]),
            cmd_sn: 0xFFFF_FFFE,
            exp_stat_sn: 5,
            tsih: 0,
            cid: 0,
            itt: 1,
            digests: Digests::NONE,
            name: INITIATOR.to_owned(),
        }
    }

    /// What TargetAddress of the only portal is.
    pub fn target_address(&self) -> String {
        TargetAddress { address: self.address, portal_group_tag: 1 }.to_string()
    }

    /// Waits until `ready` holds.
    pub fn wait_for(&self, what: &str, mut ready: impl FnMut(&Shared) -> bool) {
        for _ in 0..500 {
            if ready(&self.shared) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited in vain for {what}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.stop(Duration::ZERO);
        self.stop.store(true, Ordering::SeqCst);
        for n in 0..self.threads.len() as u16 {
            self.postboxes.wake(n);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// A PDU of the target.
#[derive(Debug)]
pub struct Received {
    pub reply: Reply,
    pub header: Bhs,
    pub data: Vec<u8>,
}

/// One connection of an initiator.
pub struct Initiator {
    pub stream: TcpStream,
    pub isid: Isid,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub tsih: u16,
    pub cid: u16,
    pub itt: u32,
    pub digests: Digests,
    pub name: String,
}

impl Initiator {
    pub fn login(&mut self, keys: &str) -> LoginResponse {
        let session = if keys.contains("SessionType=Discovery") {
            String::new()
        } else {
            format!("TargetName={TARGET}\0")
        };
        let text = format!("InitiatorName={}\0{session}{keys}", self.name);
        let mut first = Some(text);
        loop {
            let data = first.take().unwrap_or_default();
            let request = LoginRequest {
                immediate: true,
                transit: true,
                more: false,
                current: Stage::Operational,
                next: Stage::FullFeature,
                version_max: 0,
                version_min: 0,
                data_len: data.len() as u32,
                isid: self.isid,
                tsih: self.tsih,
                itt: 0,
                cid: self.cid,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: self.exp_stat_sn,
            };
            self.send(Request::LoginRequest(request), data.as_bytes());
            let received = self.receive().unwrap();
            let Reply::LoginResponse(response) = received.reply else {
                panic!("expected a Login Response, got {received:?}");
            };
            self.exp_stat_sn = response.numbers.stat_sn.wrapping_add(1);
            if response.status.0 != 0 || response.transit {
                self.tsih = response.tsih;
                self.digests = Digests {
                    header: keys.contains("HeaderDigest=CRC32C"),
                    data: keys.contains("DataDigest=CRC32C"),
                };
                return response;
            }
        }
    }

    pub fn send(&mut self, request: Request, data: &[u8]) {
        let mut header = [0; BHS_LEN];
        request.emit(&mut header);
        self.send_raw(&header, data);
    }

    pub fn bytes_of(&self, header: &Bhs, data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests.header {
            bytes.extend_from_slice(&iscsi::digest::crc32c(header));
        }
        if !data.is_empty() {
            let mut padded = data.to_vec();
            padded.resize(data.len().next_multiple_of(4), 0);
            bytes.extend_from_slice(&padded);
            if self.digests.data {
                bytes.extend_from_slice(&iscsi::digest::crc32c(&padded));
            }
        }
        bytes
    }

    pub fn send_raw(&mut self, header: &Bhs, data: &[u8]) {
        let bytes = self.bytes_of(header, data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next PDU; `None` when the target closed the connection.
    pub fn receive(&mut self) -> Option<Received> {
        let mut header = [0; BHS_LEN];
        self.stream.read_exact(&mut header).ok()?;
        if self.digests.header {
            let mut digest = [0; 4];
            self.stream.read_exact(&mut digest).ok()?;
            assert_eq!(digest, iscsi::digest::crc32c(&header), "header digest");
        }
        let len = data_segment_len(&header) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data).ok()?;
        if self.digests.data && len > 0 {
            let mut digest = [0; 4];
            self.stream.read_exact(&mut digest).ok()?;
            assert_eq!(digest, iscsi::digest::crc32c(&data), "data digest");
        }
        data.truncate(len);
        Some(Received { reply: Reply::parse(&header).unwrap(), header, data })
    }

    pub fn command(&mut self, cdb: &[u8], data_in: u32, data_out: u32) -> ScsiCommand {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        self.itt += 1;
        let command = ScsiCommand {
            immediate: false,
            is_final: true,
            read: data_in > 0,
            write: data_out > 0,
            attribute: TaskAttribute::Simple,
            priority: 0,
            ahs_words: 0,
            data_len: 0,
            lun: Lun::default(),
            itt: self.itt,
            edtl: data_in.max(data_out),
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            cdb: whole,
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        command
    }

    /// Clears the power-on unit attention.
    pub fn clear_attention(&mut self) {
        let command = self.command(&[0; 6], 0, 0);
        self.send(Request::ScsiCommand(command), &[]);
        self.receive().unwrap();
    }

    /// Runs a command that reads, and gives the data and the status.
    pub fn read(&mut self, cdb: &[u8], len: u32) -> (Vec<u8>, u8) {
        let command = self.command(cdb, len, 0);
        self.send(Request::ScsiCommand(command), &[]);
        let mut data = Vec::new();
        loop {
            let received = self.receive().unwrap();
            match received.reply {
                Reply::DataIn(pdu) => {
                    assert_eq!(pdu.offset as usize, data.len());
                    data.extend_from_slice(&received.data);
                    if let Some(status) = pdu.status {
                        return (data, status.0);
                    }
                }
                Reply::ScsiResponse(pdu) => return (data, pdu.status.0),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
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
