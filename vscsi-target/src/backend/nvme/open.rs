//! Opening namespaces: a controller is opened once and shared, a namespace is used once.

use super::{Address, Nvme, OpenError, Properties, Zeroing};
use crate::{
    limits,
    reactor::dma::{self, Bounce},
};
use nvme::{Bdf, Controller, Interface, NamespaceData, Options};
use std::{
    env,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64},
    },
};

/// The controllers that are open, and the namespaces of them in use.
static OPEN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Known {
    bdf: Bdf,
    controller: Weak<Controller>,
    used: Vec<u32>,
}

/// Nobody else of this process uses the namespace.
#[derive(Debug)]
pub(super) struct Claim {
    controller: u64,
    nsid: u32,
}

/// Opens a namespace for so many reactors, reading only if `read_only`.
///
/// # Errors
/// What is in the way, with what to do about it.
pub fn open(address: Address, reactors: usize, read_only: bool) -> Result<Nvme, OpenError> {
    let bdf = address.bdf;
    let mut open = lock();
    open.retain(|known| known.controller.strong_count() > 0);
    let known = open.iter().find(|known| known.bdf == bdf);
    let controller = match known.and_then(|known| known.controller.upgrade()) {
        Some(controller) if !controller.is_gone() => controller,
        _ => {
            let controller = Arc::new(Controller::open(&Options {
                bdf,
                pairs: u16::try_from(reactors).unwrap_or(u16::MAX),
                polled: address.polled,
                interface: chosen(),
            })?);
            dma::introduce(controller.space());
            let weak = Arc::downgrade(&controller);
            open.retain(|known| known.bdf != bdf);
            open.push(Known { bdf, controller: weak, used: Vec::new() });
            controller
        }
    };
    let nsid = match address.nsid {
        Some(nsid) => nsid,
        None => *controller.namespaces()?.first().ok_or(OpenError::Empty(bdf))?,
    };
    let data = controller.namespace(nsid)?;
    let Some(known) = open.iter_mut().find(|known| known.bdf == bdf) else {
        return Err(OpenError::Missing(bdf));
    };
    if known.used.contains(&nsid) {
        return Err(OpenError::InUse { bdf, nsid });
    }
    let claim = Claim { controller: controller.number(), nsid };
    known.used.push(nsid);
    drop(open);
    let read_only = read_only || data.write_protected;
    over(controller, Address { nsid: Some(nsid), ..address }, &data, read_only, claim)
}

/// The backend over a namespace of an open controller.
fn over(
    controller: Arc<Controller>,
    address: Address,
    data: &NamespaceData,
    read_only: bool,
    claim: Claim,
) -> Result<Nvme, OpenError> {
    let nsid = claim.nsid;
    let bounce = Bounce::new(controller.space())
        .map_err(|source| OpenError::Memory { bdf: address.bdf, source })?;
    let about = controller.data();
    let zeroing = match (about.writes_zeroes, data.zeroes_deallocate, about.deallocates) {
        (true, true, _) => Zeroing::Deallocating,
        (true, false, true) => Zeroing::ThenDeallocated,
        (true, false, false) => Zeroing::Zeroes,
        (false, ..) => Zeroing::Writes,
    };
    let thin =
        data.reads_zeroes && matches!(zeroing, Zeroing::Deallocating | Zeroing::ThenDeallocated);
    let properties = Properties {
        block_size: data.block_size,
        physical_block_size: data.block_size,
        read_only,
        volatile_cache: controller.caches_writes(),
        thin,
        unmap_granularity: match thin {
            true => data.deallocation_granularity.saturating_mul(data.block_size),
            false => 0,
        },
        optimal_transfer: (controller.most_bytes() as u32).min(OPTIMAL),
        rotational: false,
        untorn_writes: never_tears(&controller, data),
        description: address.to_string(),
    };
    Ok(Nvme {
        properties,
        nsid,
        len: AtomicU64::new(data.blocks * u64::from(data.block_size)),
        zeroing,
        failed: AtomicBool::new(false),
        bounces: AtomicU64::new(0),
        bounce,
        identity: identity(about, data, nsid),
        controller,
        _claim: claim,
    })
}

/// The backend over namespace 1 of a model.
#[cfg(test)]
pub(crate) fn over_model(model: &nvme::model::Model) -> Nvme {
    let controller = Arc::new(model.open(1).unwrap());
    let data = controller.namespace(1).unwrap();
    let claim = Claim { controller: controller.number(), nsid: 1 };
    let address = Address { bdf: controller.bdf(), nsid: Some(1), polled: true };
    over(controller, address, &data, false, claim).unwrap()
}

/// Names of the device itself, which it has in every slot.
fn identity(about: &nvme::ControllerData, data: &NamespaceData, nsid: u32) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if data.nguid != [0; 16] {
        return format!("nvme nguid {}", hex(&data.nguid));
    }
    if data.eui64 != [0; 8] {
        return format!("nvme eui64 {}", hex(&data.eui64));
    }
    format!("nvme {:04x} {} {} {nsid}", about.vendor, about.model, about.serial)
}

/// Whether no write of the largest atomic size is torn by a power failure: it is one command, and
/// the controller promises so for as many blocks.
fn never_tears(controller: &Controller, data: &NamespaceData) -> bool {
    let blocks = data.atomic_blocks.unwrap_or_else(|| controller.data().atomic_blocks);
    let bytes = u64::from(blocks) * u64::from(data.block_size);
    let most = u64::from(limits::MAX_ATOMIC);
    bytes >= most && controller.most_bytes() as u64 >= most && data.atomic_boundary == 0
}

/// `VSCSI_VFIO` in the environment overrides what is chosen by what the kernel has.
fn chosen() -> Option<Interface> {
    let wanted = env::var("VSCSI_VFIO").ok()?;
    [Interface::Container, Interface::Iommufd].into_iter().find(|one| one.name() == wanted)
}

fn lock() -> MutexGuard<'static, Vec<Known>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Claim {
    fn drop(&mut self) {
        for known in lock().iter_mut() {
            // The controller may have been opened anew meanwhile, for another one.
            let is_it = |controller: Arc<Controller>| controller.number() == self.controller;
            if known.controller.upgrade().is_some_and(is_it) {
                known.used.retain(|nsid| *nsid != self.nsid);
            }
        }
    }
}

/// Preferred transfer size in bytes, if the controller takes that much.
const OPTIMAL: u32 = 128 << 10;
