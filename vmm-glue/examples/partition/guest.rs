//! A toy partition: memory, a window that maps it, and a client as simple as Open Firmware's.

use std::{
    error::Error,
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libsrp::{
    Lun, Tag,
    cmd::{Cmd, SolicitedNotification},
    descriptor::{DataBuffer, DataBuffers, Descriptor},
    login::{BufferFormats, LoginReq, MultiChannelAction, PortId},
    viosrp::{
        crq::{Element, ElementStatus, Format, Init, Message},
        lun::VscsiLun,
    },
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_glue::{
    controller::Export,
    crq::{Adapter, Config, Delivery, Hcall, Router, Window},
    memory::{GuestMap, Region},
};

/// The client's queue, as I/O bus address.
pub const QUEUE: u64 = IOBA;
/// Where its units are.
pub const UNITS: u64 = IOBA + 0x1_0000;
/// Where its data is.
pub const DATA: u64 = IOBA + 0x10_0000;
/// Where the window begins, and the guest's memory is mapped.
pub const IOBA: u64 = 0x4000_0000;
/// Bytes of memory.
pub const MEMORY: u64 = 0x40_0000;
/// Slots of the queue, which is one page.
pub const SLOTS: u64 = 256;

/// What works, or why not.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// A partition.
#[derive(Debug)]
pub struct Guest {
    /// The VMM's handle of its adapter.
    pub adapter: Adapter,
    /// Its window.
    pub window: Arc<Window>,
    /// Its memory: what a VMM has mapped into the guest.
    pub memory: File,
    /// Interrupts so far.
    pub interrupts: Arc<AtomicU64>,
    next: u64,
}

impl Guest {
    /// A partition with an adapter that reaches these targets.
    pub fn new(config: Config, exports: Vec<Export>, router: &dyn Router) -> Outcome<Self> {
        let memory = File::from(memfd_create("partition", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(MEMORY)?;
        let region = Region::map(0, MEMORY, 0, 0, memory.try_clone()?)?;
        let map = Arc::new(GuestMap::new(vec![region])?);
        let window = Window::new(map, 0x1000_0001, IOBA, MEMORY / 4096);
        // What the guest does by H_PUT_TCE: every page may be read and written.
        for page in (0..MEMORY).step_by(4096) {
            let _ = window.put_tce(IOBA + page, page | 3);
        }
        let interrupts = Arc::new(AtomicU64::new(0));
        let raised = Arc::clone(&interrupts);
        let interrupt = move || {
            raised.fetch_add(1, Ordering::Relaxed);
        };
        let delivery = Delivery::Memory(Box::new(interrupt));
        let adapter = Adapter::new(config, exports, Arc::clone(&window), router, delivery)?;
        Ok(Self { adapter, window, memory, interrupts, next: 0 })
    }

    /// Reads memory.
    pub fn read(&self, ioba: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.memory.read_exact_at(&mut bytes, ioba - IOBA);
        assert!(read.is_ok(), "{read:?}");
        bytes
    }

    /// Writes memory.
    pub fn write(&self, ioba: u64, bytes: &[u8]) {
        let written = self.memory.write_all_at(bytes, ioba - IOBA);
        assert!(written.is_ok(), "{written:?}");
    }

    /// Registers the queue, which is zeroed first.
    pub fn register(&mut self) -> Hcall {
        self.next = 0;
        self.write(QUEUE, &[0; 4096]);
        self.adapter.reg_crq(QUEUE, 4096)
    }

    /// Frees the queue, as often as it takes.
    pub fn free(&self) -> Outcome<()> {
        let since = Instant::now();
        loop {
            match self.adapter.free_crq() {
                Hcall::Success => return Ok(()),
                Hcall::Busy if since.elapsed() < PATIENCE => thread::sleep(SHORT),
                other => return Err(format!("H_FREE_CRQ: {other:?}").into()),
            }
        }
    }

    /// Sends an element.
    pub fn send(&self, element: Element) -> Hcall {
        let word = u128::from_be_bytes(element.to_bytes());
        self.adapter.send_crq((word >> 64) as u64, word as u64)
    }

    /// Sends an element that points at a unit, which is written first.
    pub fn send_unit(&self, format: Format, ioba: u64, unit: &[u8], len: u16) -> Hcall {
        self.write(ioba, unit);
        let pointer = ioba.to_be_bytes();
        let status = ElementStatus::Ok;
        self.send(Element::Message(Message { format, status, timeout: 0, len, pointer }))
    }

    /// Takes the next element out of the queue, if there is one.
    pub fn poll(&mut self) -> Option<Element> {
        let slot = QUEUE + 16 * self.next;
        let bytes = self.read(slot, 16);
        if bytes[0] & 0x80 == 0 {
            return None;
        }
        // The first byte may have been there before the others were read.
        let bytes = self.read(slot, 16);
        self.write(slot, &[0]);
        self.next = (self.next + 1) % SLOTS;
        bytes.first_chunk().map(Element::parse)
    }

    /// Waits for the next element.
    pub fn wait(&mut self) -> Outcome<Element> {
        let since = Instant::now();
        loop {
            if let Some(element) = self.poll() {
                return Ok(element);
            }
            if since.elapsed() > PATIENCE {
                return Err("no element came".into());
            }
            thread::sleep(SHORT);
        }
    }

    /// Waits for the answer to a request: its element, and the unit that was written over it.
    pub fn answer(&mut self, ioba: u64) -> Outcome<(Message, Vec<u8>)> {
        match self.wait()? {
            Element::Message(message) => Ok((message, self.read(ioba, message.len.into()))),
            other => Err(format!("expected an answer, got {other:?}").into()),
        }
    }

    /// Registers the queue, and initializes the connection.
    pub fn connect(&mut self) -> Outcome<()> {
        match self.register() {
            Hcall::Success => {}
            other => return Err(format!("H_REG_CRQ: {other:?}").into()),
        }
        match self.send(Element::Init(Init::Init)) {
            Hcall::Success => {}
            other => return Err(format!("H_SEND_CRQ: {other:?}").into()),
        }
        match self.wait()? {
            Element::Init(Init::Complete) => Ok(()),
            other => Err(format!("expected INIT COMPLETE, got {other:?}").into()),
        }
    }

    /// Logs in as Linux does: the answer.
    pub fn log_in(&mut self) -> Outcome<Vec<u8>> {
        let mut unit = [0; 256];
        linux_login(Tag([7; 8])).emit(&mut unit)?;
        let _ = self.send_unit(Format::Srp, UNITS, &unit, 256);
        Ok(self.answer(UNITS)?.1)
    }

    /// Sends a command, and waits for its answer.
    pub fn command(&mut self, tag: Tag, lun: Lun, cdb: &[u8], data: Data) -> Outcome<Vec<u8>> {
        let unit = command(tag, lun, cdb, data)?;
        let _ = self.send_unit(Format::Srp, UNITS, &unit, 256);
        let (message, unit) = self.answer(UNITS)?;
        if message.status != ElementStatus::Ok || message.tag() != tag {
            return Err(format!("the answer is {message:?}").into());
        }
        Ok(unit)
    }
}

/// Where the data of a command is: one segment.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    /// There is none.
    None,
    /// To the guest.
    In(u64, u32),
    /// From the guest.
    Out(u64, u32),
}

/// A command as Linux sends it, in 256 bytes.
pub fn command(tag: Tag, lun: Lun, cdb: &[u8], data: Data) -> Outcome<[u8; 256]> {
    let direct = |address, len| DataBuffer::Direct(Descriptor { address, key: 0, len });
    let data = match data {
        Data::None => DataBuffers::default(),
        Data::In(at, len) => DataBuffers { data_in: direct(at, len), ..DataBuffers::default() },
        Data::Out(at, len) => DataBuffers { data_out: direct(at, len), ..DataBuffers::default() },
    };
    let mut padded = [0; 16];
    padded[..cdb.len()].copy_from_slice(cdb);
    let notify = SolicitedNotification::default();
    let attribute = libsrp::TaskAttribute::Simple;
    let mut unit = [0; 256];
    Cmd { tag, notify, lun, attribute, cdb: &padded, data }.emit(&mut unit)?;
    Ok(unit)
}

/// Linux's login: formats, no port identifiers.
pub fn linux_login(tag: Tag) -> LoginReq {
    LoginReq {
        tag,
        max_initiator_iu: 256,
        formats: BufferFormats::ALL,
        action: MultiChannelAction::Single,
        solicit_logout: false,
        solicit_credit: false,
        solicit_aer: false,
        immediate: None,
        initiator_port: PortId::default(),
        target_port: PortId::default(),
    }
}

/// A logical unit's address.
pub fn lun(target: u8, number: u8) -> Lun {
    VscsiLun::new(target, 0, number).map_or(Lun([0xFF; 8]), VscsiLun::to_lun)
}

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_micros(200);
