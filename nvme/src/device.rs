//! A PCI function that VFIO gives us: its registers, configuration space and interrupts.
#![allow(unsafe_code)] // Descriptors are borrowed, and closed in an order of our own.

use crate::{
    error::{Fault, OpenError},
    registers::Registers,
    space::{Interface, Space},
    sysfs::{self, Bdf},
    wire::offset::DOORBELLS,
};
use nix::{
    errno::Errno,
    sys::uio::{pread, pwrite},
};
use std::{
    fmt,
    mem::ManuallyDrop,
    num::NonZeroUsize,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioDevice, VfioError, VfioOps};
use vmm_sys_util::eventfd::EventFd;

/// An open device. While it is open the kernel keeps it from other drivers.
pub(crate) struct Device {
    bdf: Bdf,
    bus: Bus,
    space: Arc<Space>,
    /// Unmapped before anything else goes.
    registers: Option<Registers>,
    /// The kernel wants it back, because it is being unplugged.
    unplugged: AtomicBool,
}

/// How it is reached.
enum Bus {
    /// By VFIO. See `Drop` of the device.
    Vfio { vfio: ManuallyDrop<VfioDevice>, ops: Arc<dyn VfioOps> },
    /// It is a model in this process.
    #[cfg(any(test, feature = "model"))]
    Model,
}

impl Device {
    /// Opens it, maps its registers for `queues` pairs of doorbells, and makes it a bus master.
    pub(crate) fn open(bdf: Bdf, interface: Interface) -> Result<Self, OpenError> {
        let failed = |error: VfioError| explain(bdf, interface, error);
        let space = Space::shared(interface).map_err(failed)?;
        let ops = space.ops().ok_or(VfioError::DowncastVfioOps).map_err(failed)?;
        let vfio = VfioDevice::new(&bdf.path(), Arc::clone(&ops), true).map_err(failed)?;
        let vfio = ManuallyDrop::new(vfio);
        space.attached();
        let registers = map_registers(&vfio);
        // From here on `Drop` closes it.
        let bus = Bus::Vfio { vfio, ops };
        let mut device =
            Self { bdf, bus, space, registers: None, unplugged: AtomicBool::new(false) };
        match registers {
            Ok(registers) => device.registers = Some(registers),
            Err(fault) => return Err(OpenError::Controller { bdf, fault }),
        }
        device.set_master(true);
        Ok(device)
    }

    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// A model with these registers.
    #[cfg(any(test, feature = "model"))]
    pub(crate) fn of_model(bdf: Bdf, space: Arc<Space>, registers: Registers) -> Self {
        space.attached();
        let registers = Some(registers);
        Self { bdf, bus: Bus::Model, space, registers, unplugged: AtomicBool::new(false) }
    }

    /// Bytes of registers that are mapped.
    pub(crate) fn len(&self) -> usize {
        self.registers.as_ref().map_or(0, Registers::len)
    }

    /// Reads a register; all ones behind the end, as of a device that is gone.
    pub(crate) fn read(&self, at: usize) -> u32 {
        self.registers.as_ref().map_or(u32::MAX, |registers| registers.read(at))
    }

    /// Writes a register. Everything written to memory before is seen by the device after it.
    pub(crate) fn write(&self, at: usize, value: u32) {
        if let Some(registers) = &self.registers {
            registers.write(at, value);
        }
    }

    /// Reads a register of 8 bytes, as two halves: not all devices take it at once.
    pub(crate) fn read_long(&self, at: usize) -> u64 {
        u64::from(self.read(at)) | u64::from(self.read(at + 4)) << 32
    }

    /// Writes a register of 8 bytes.
    pub(crate) fn write_long(&self, at: usize, value: u64) {
        self.write(at, value as u32);
        self.write(at + 4, (value >> 32) as u32);
    }

    /// It is being unplugged: when it is closed its place in /sys is not looked at.
    pub(crate) fn unplug(&self) {
        self.unplugged.store(true, Ordering::Release);
    }

    /// Resets the function, if it can be.
    pub(crate) fn reset(&self) {
        if let Some(vfio) = self.vfio() {
            vfio.reset();
        }
        self.set_master(true);
    }

    /// Lets it reach memory and be reached, or not.
    pub(crate) fn set_master(&self, on: bool) {
        let Some(vfio) = self.vfio() else { return };
        let at = vfio.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX) + 4;
        let (Ok(at), fd) = (i64::try_from(at), vfio.as_raw_fd()) else { return };
        // SAFETY: the descriptor belongs to `vfio` and stays open while this borrows it.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut command = [0; 2];
        if pread(fd, &mut command, at) != Ok(2) {
            return;
        }
        command[0] = command[0] & !4 | 2 | if on { 4 } else { 0 };
        let _ = pwrite(fd, &command, at);
    }

    /// How many interrupts of its own (MSI-X) it has.
    pub(crate) fn vectors(&self) -> usize {
        let irq = self.vfio().and_then(|vfio| vfio.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX));
        irq.map_or(0, |irq| irq.count as usize)
    }

    /// Lets each of these be written by the vector of its place.
    pub(crate) fn set_vectors(&self, events: Vec<&EventFd>) -> Result<(), VfioError> {
        match self.vfio() {
            Some(vfio) if !events.is_empty() => vfio.enable_msix(events),
            _ => Ok(()),
        }
    }

    /// Lets `request` be written when the kernel wants the device back, and `error` when the bus
    /// reports an error that cannot be corrected; not every device has both.
    pub(crate) fn set_notices(&self, request: &EventFd, error: &EventFd) {
        if let Some(vfio) = self.vfio() {
            let _ = vfio.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![request]);
            let _ = vfio.enable_irq(VFIO_PCI_ERR_IRQ_INDEX, vec![error]);
        }
    }

    fn vfio(&self) -> Option<&VfioDevice> {
        match &self.bus {
            Bus::Vfio { vfio, .. } => Some(vfio),
            #[cfg(any(test, feature = "model"))]
            Bus::Model => None,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.set_master(false);
        self.registers = None;
        let is_there = !self.unplugged.load(Ordering::Acquire) && sysfs::group(self.bdf).is_some();
        match &mut self.bus {
            Bus::Vfio { vfio, .. }
                if is_there && self.space.interface() == Interface::Container =>
            {
                // SAFETY: it is not used again. This gives its group back, too.
                unsafe { ManuallyDrop::drop(vfio) };
            }
            Bus::Vfio { vfio, ops } => {
                // vfio-ioctls takes for granted that the device is still in /sys and that the kernel
                // still lets go of it, and panics otherwise. So its descriptor is closed here, and
                // what it holds of the container is given up for it.
                // SAFETY: the descriptor belongs to `vfio`, which is not used again and never closes
                // it.
                drop(unsafe { OwnedFd::from_raw_fd(vfio.as_raw_fd()) });
                // SAFETY: `vfio` holds one count of the same value, and is forgotten.
                unsafe { Arc::decrement_strong_count(Arc::as_ptr(ops)) };
            }
            #[cfg(any(test, feature = "model"))]
            Bus::Model => {}
        }
        self.space.detached();
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("space", &self.space).finish_non_exhaustive()
    }
}

fn map_registers(vfio: &VfioDevice) -> Result<Registers, Fault> {
    let size = vfio.get_region_size(VFIO_PCI_BAR0_REGION_INDEX);
    let flags = vfio.get_region_flags(VFIO_PCI_BAR0_REGION_INDEX);
    let offset = vfio.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
    // The registers, and doorbells for a few queues with the usual stride.
    let enough = size >= DOORBELLS as u64 + 64 && flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
    let len = usize::try_from(size.min(MOST)).ok().filter(|_| enough);
    let len = len.and_then(NonZeroUsize::new).ok_or(Fault::Registers(size))?;
    let offset = i64::try_from(offset).map_err(|_| Fault::Registers(size))?;
    // SAFETY: the descriptor belongs to `vfio` and stays open while this borrows it.
    let fd = unsafe { BorrowedFd::borrow_raw(vfio.as_raw_fd()) };
    Registers::map(fd, len, offset).map_err(|_| Fault::Registers(size))
}

/// What a failure to open means for who reads it.
fn explain(bdf: Bdf, interface: Interface, error: VfioError) -> OpenError {
    let group = sysfs::group(bdf).unwrap_or(0);
    let by_errno = |errno: i32, path: PathBuf, what| match Errno::from_raw(errno) {
        Errno::EBUSY => OpenError::Busy(bdf),
        Errno::EACCES | Errno::EPERM => {
            OpenError::Permission { path, source: Errno::from_raw(errno).into() }
        }
        other => OpenError::Vfio { bdf, what, reason: other.to_string() },
    };
    match &error {
        VfioError::GroupViable => OpenError::NotViable { bdf, group, others: sysfs::others(bdf) },
        VfioError::OpenGroup(source, _) => by_errno(
            source.raw_os_error().unwrap_or(0),
            format!("/dev/vfio/{group}").into(),
            "opening its group",
        ),
        VfioError::OpenContainer(source) => by_errno(
            source.raw_os_error().unwrap_or(0),
            "/dev/vfio/vfio".into(),
            "opening a container",
        ),
        VfioError::OpenDeviceCdev(source) => by_errno(
            source.raw_os_error().unwrap_or(0),
            "/dev/vfio/devices".into(),
            "opening its device file",
        ),
        VfioError::VfioDeviceBindIommufd(source) => {
            by_errno(source.errno(), "/dev/iommu".into(), "binding it to an iommufd")
        }
        VfioError::ContainerSetIOMMU(source) if source.errno() == libc::EPERM => OpenError::Vfio {
            bdf,
            what: "the IOMMU",
            reason: "it does not remap interrupts (the module vfio_iommu_type1 has the option \
                     allow_unsafe_interrupts for that)"
                .to_owned(),
        },
        _ => OpenError::Vfio {
            bdf,
            what: match interface {
                Interface::Container => "opening it in a container",
                Interface::Iommufd => "opening it with an iommufd",
            },
            reason: error.to_string(),
        },
    }
}

/// As much of the registers as is mapped at most: doorbells of all queues with the usual stride.
const MOST: u64 = 1 << 20;
