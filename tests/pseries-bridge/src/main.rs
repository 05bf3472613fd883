//! Puts vmm-glue's CRQ server under an unmodified QEMU pseries machine, so that a kernel's own
//! `ibmvscsi` driver uses it.
//!
//! QEMU's `spapr-vscsi` without disks supplies the device tree node and the interrupt's number. The
//! machine stops at every hypervisor call of the kernel's, through the gdb stub; those of the adapter
//! are answered here and QEMU does not see them. Data, IUs and queue are in the guest's memory, whose
//! file is mapped; the interrupt is raised through the qtest socket. So only calls cost time.

mod control;
mod firmware;
mod frame;
mod gdb;
mod interrupt;
mod kernel;
mod machine;
mod partition;
mod storage;

use std::{
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Parser;
use libsrp::viosrp::crq::TransportEvent;
use vmm_glue::{
    controller::Export,
    crq::{self, Adapter, Delivery, OsType, Window},
    memory::{GuestMap, Region},
};
use vscsi_target::{
    model::reservation::{NexusId, TransportId},
    reactor::Inbox,
};

use firmware::Firmware;
use gdb::Gdb;
use interrupt::Interrupt;
use machine::Site;
use partition::Partition;
use storage::{Lun, Storage};

/// The server of a virtual SCSI adapter of a QEMU pseries machine.
#[derive(Debug, Parser)]
struct Args {
    /// Socket of the machine's gdb stub
    #[arg(long)]
    gdb: PathBuf,
    /// Socket of its qtest protocol
    #[arg(long)]
    qtest: PathBuf,
    /// File of its memory
    #[arg(long)]
    memory: PathBuf,
    /// The kernel it boots, uncompressed; may be given several times
    #[arg(long)]
    kernel: Vec<PathBuf>,
    /// The firmware, when that shall use the adapter too
    #[arg(long)]
    firmware: Option<PathBuf>,
    /// Unit address of the adapter
    #[arg(long, value_parser = unit, default_value = "71000010")]
    unit: u64,
    /// TARGET:LUN:PATH or TARGET:LUN:ram=BYTES
    #[arg(long = "lun", required = true)]
    luns: Vec<Lun>,
    /// Longest transfer that the client is told of, in bytes
    #[arg(long, default_value_t = 1 << 20)]
    max_transfer: u32,
    /// Requests that the client may have in progress
    #[arg(long, default_value_t = 128)]
    request_limit: u32,
    /// Operating system that the server claims: 2 is Linux, 3 a Virtual I/O Server
    #[arg(long, default_value_t = 3)]
    os_type: u32,
    /// Where a test asks for events
    #[arg(long)]
    control: Option<PathBuf>,
}

fn unit(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text, 16)
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "giving up");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut sites = Vec::new();
    for path in &args.kernel {
        let kernel::Sites { call, twin } = kernel::sites(path)?;
        sites.push(Site { at: call, twin: Some(twin) });
    }
    sites.dedup();
    let firmware = args.firmware.as_deref().map(Firmware::read).transpose()?;
    let mut gdb = Gdb::connect(&args.gdb)?;
    let file = fs::File::options().read(true).write(true).open(&args.memory)?;
    let size = file.metadata()?.len();
    let memory = Arc::new(GuestMap::new(vec![Region::map(0, size, 0, 0, file)?])?);
    let window = Window::new(Arc::clone(&memory), args.unit as u32, 0, WINDOW / 4096);
    let interrupt = Interrupt::connect(&args.qtest, args.unit)?;
    let storage = Arc::new(Storage::open(&args.luns)?);
    let router = One(storage.start()?);
    let mut config = crq::Config::new("partition");
    config.partition_name = "lab".into();
    config.partition_number = 7;
    config.os_type = OsType::from_code(args.os_type);
    config.max_transfer = args.max_transfer;
    config.request_limit = args.request_limit;
    let pulsed = interrupt.clone();
    let delivery = Delivery::Memory(Box::new(move || pulsed.pulse()));
    let adapter = Adapter::new(config, exports(&storage), Arc::clone(&window), &router, delivery)?;
    let partition = Arc::new(Partition {
        unit: args.unit,
        memory,
        window,
        adapter,
        calls: AtomicU64::new(0),
        busy: AtomicU64::new(0),
    });
    if let Some(path) = &args.control {
        let (partition, interrupt) = (Arc::clone(&partition), interrupt.clone());
        control::serve(path, move |word| answer(word, &partition, &interrupt, &storage))?;
    }
    if let Some(firmware) = &firmware {
        sites.extend(machine::start(&mut gdb, firmware, &partition.memory)?);
    }
    machine::run(&mut gdb, &sites, &partition)?;
    tracing::info!("{}", told(&partition, &interrupt));
    Ok(())
}

/// The targets, each with a port for the partition.
fn exports(storage: &Storage) -> Vec<Export> {
    let initiator = TransportId::srp(*b"pseries guest   ");
    let exports = storage.targets.iter().map(|(&id, target)| {
        let name = format!("eui.{:016X}{:016X}", 0xA5C5_1000_0000_0000_u64, id);
        let port = target.add_port(1, SRP, name);
        let initiator = NexusId::new(initiator.clone(), port);
        Export { id, target: Arc::clone(target), port, initiator }
    });
    exports.collect()
}

/// Does what a test asks for.
fn answer(word: &str, partition: &Partition, interrupt: &Interrupt, storage: &Storage) -> String {
    match word {
        "failed" => partition.adapter.disconnect(TransportEvent::PartnerFailed),
        "offline" => partition.adapter.set_online(false),
        "online" => partition.adapter.set_online(true),
        "migrated" => partition.adapter.migrated(),
        "hold" => interrupt.hold(true),
        "release" => interrupt.hold(false),
        "stall" => storage.stall(true),
        "resume" => storage.stall(false),
        "stats" => return told(partition, interrupt),
        _ => return format!("unknown: {word}"),
    }
    "ok".into()
}

fn told(partition: &Partition, interrupt: &Interrupt) -> String {
    let stats = partition.adapter.stats();
    format!(
        "commands={} full={} faults={} violations={} dropped={} calls={} interrupts={} busy={}",
        stats.commands,
        stats.full,
        stats.faults,
        stats.violations,
        stats.dropped,
        partition.calls.load(Ordering::Relaxed),
        interrupt.pulses(),
        partition.busy.load(Ordering::Relaxed),
    )
}

/// The only reactor.
#[derive(Debug)]
struct One(Arc<Inbox<crq::Server>>);

impl crq::Router for One {
    fn reactors(&self) -> u16 {
        1
    }

    fn open(&self, _reactor: u16, seed: crq::Seed) {
        self.0.open(seed);
    }
}

/// Bytes of the window that QEMU's device tree gives a virtual SCSI adapter.
const WINDOW: u64 = 256 << 20;
/// SRP's protocol identifier (SPC-5).
const SRP: u8 = 4;
