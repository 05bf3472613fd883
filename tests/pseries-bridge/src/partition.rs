//! The partition's hypervisor calls that concern the adapter: all of them are answered here, and
//! QEMU sees none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use vmm_glue::{
    crq::{Adapter, Hcall, Window},
    memory::GuestMap,
};
use vscsi_target::reactor::sg;

use crate::frame::Frame;

/// What answers.
#[derive(Debug)]
pub struct Partition {
    /// The unit address, which is its window's number too.
    pub unit: u64,
    /// Its memory.
    pub memory: Arc<GuestMap>,
    /// The adapter's DMA window.
    pub window: Arc<Window>,
    /// The server.
    pub adapter: Adapter,
    /// Calls answered.
    pub calls: AtomicU64,
    /// Calls of H_FREE_CRQ that were too early.
    pub busy: AtomicU64,
}

impl Partition {
    /// Answers a call; `None` if it is not for the adapter.
    pub fn call(&self, frame: &Frame) -> Option<i64> {
        let [unit, a, b, c, ..] = frame.arguments();
        if unit != self.unit {
            return None;
        }
        let result = match frame.call() {
            H_PUT_TCE => self.window.put_tce(a, b),
            H_STUFF_TCE => self.window.stuff_tce(a, b, c),
            H_PUT_TCE_INDIRECT => match self.entries(b, c) {
                Some(entries) => self.window.put_tce_list(a, &entries),
                None => Hcall::Parameter,
            },
            H_REG_CRQ => {
                // Firmware names memory as it is, which it asks for by an RTAS call.
                self.window.set_bypass(frame.site() < KERNEL);
                let result = self.adapter.reg_crq(a, b);
                tracing::info!(queue = format_args!("{a:#x}"), bytes = b, ?result, "H_REG_CRQ");
                result
            }
            H_FREE_CRQ => {
                let mut result = self.adapter.free_crq();
                // Firmware does not call again.
                for _ in 0..FREE_TRIES {
                    if result != Hcall::Busy || frame.site() >= KERNEL {
                        break;
                    }
                    thread::sleep(Duration::from_millis(1));
                    result = self.adapter.free_crq();
                }
                if result == Hcall::Busy {
                    self.busy.fetch_add(1, Ordering::Relaxed);
                } else {
                    tracing::info!(?result, "H_FREE_CRQ");
                }
                result
            }
            H_SEND_CRQ => self.adapter.send_crq(a, b),
            H_ENABLE_CRQ => {
                let result = self.adapter.enable_crq();
                tracing::info!(?result, "H_ENABLE_CRQ");
                result
            }
            H_VIO_SIGNAL => self.adapter.vio_signal(a & 1 != 0),
            _ => return None,
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        Some(result.code())
    }

    /// The entries of a list in guest memory.
    fn entries(&self, at: u64, count: u64) -> Option<Vec<u64>> {
        let count = usize::try_from(count).ok().filter(|&count| count <= ENTRIES)?;
        let mut bytes = vec![0; count * 8];
        let mut segments = Vec::new();
        let len = u32::try_from(bytes.len()).ok()?;
        self.memory.translate(&mut 0, at, len, &mut segments).then_some(())?;
        sg::gather(&segments, &mut bytes);
        let entry = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or_default();
        Some(bytes.chunks_exact(8).map(entry).collect())
    }
}

// Hypervisor calls (LoPAR, "Hypervisor Call Function Table").
const H_PUT_TCE: u64 = 0x20;
const H_REG_CRQ: u64 = 0xFC;
const H_FREE_CRQ: u64 = 0x100;
const H_VIO_SIGNAL: u64 = 0x104;
const H_SEND_CRQ: u64 = 0x108;
const H_STUFF_TCE: u64 = 0x138;
const H_PUT_TCE_INDIRECT: u64 = 0x13C;
const H_ENABLE_CRQ: u64 = 0x2B0;
/// Addresses from here on are a kernel's; firmware's are below.
const KERNEL: u64 = 0xC000_0000_0000_0000;
/// How often H_FREE_CRQ is tried for who does not try it itself, a millisecond apart.
const FREE_TRIES: u32 = 1000;
/// The most entries of one call.
const ENTRIES: usize = 512;
