//! What each message of the VMM does, as the `vhost` crate hands them on.

use std::{
    fs::File,
    sync::{Arc, mpsc::sync_channel},
};

use vhost::vhost_user::{
    self, Backend, GpuBackend, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
        VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig,
        VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
        VhostUserVringState,
    },
};

use super::Device;
use crate::{
    door::reach,
    memory::{MAX_REGIONS, dirty::DirtyLog},
    queue::Note,
    ring::inflight::InflightArea,
    scsi::config::Config,
    vhost::{
        fault::Fault,
        transfer::{Transfer, TransferError},
        vring::{Addresses, Vring},
    },
};

type Answer<T> = vhost_user::Result<T>;

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Answer<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Answer<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Answer<()> {
        self.stop();
        // What a reset changes is kept with the image. Nobody misses it in a process without the image.
        let _ = self.holding.acquire(&self.controller);
        self.controller.reset();
        self.holding.release();
        self.config = Config::new(self.controller.queues);
        self.status = 0;
        for vring in &mut self.vrings {
            // The eventfd for faults is given once a connection.
            let error = vring.error.take();
            *vring = Vring { error, ..Vring::new(vring.index) };
        }
        Ok(())
    }

    fn get_features(&mut self) -> Answer<u64> {
        let ours = VhostUserVirtioFeatures::LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        Ok(self.controller.features() | ours.bits())
    }

    fn set_features(&mut self, features: u64) -> Answer<()> {
        let before = std::mem::replace(&mut self.features, features);
        if (before ^ features) & VhostUserVirtioFeatures::LOG_ALL.bits() != 0 {
            self.change_log();
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Answer<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let done = self.set_mem(regions, files);
        self.answer(done).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Answer<()> {
        let done = self.vring(index).and_then(|vring| {
            let size = u16::try_from(num).ok().filter(|&size| size > 0).ok_or(Fault::Size(num))?;
            vring.changed |= vring.size != size;
            vring.size = size;
            Ok(())
        });
        self.answer(done)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Answer<()> {
        // The log finds the ring by its guest address itself.
        let addresses = Addresses { descriptor, driver: available, device: used };
        let done = self.vring(index).map(|vring| {
            vring.changed |= vring.addresses != Some(addresses);
            vring.addresses = Some(addresses);
        });
        self.answer(done)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Answer<()> {
        let done = self.vring(index).map(|vring| {
            (vring.changed, vring.based) = (true, true);
            vring.base = base;
        });
        self.answer(done)
    }

    fn get_vring_base(&mut self, index: u32) -> Answer<VhostUserVringState> {
        let base = self.stop_one(index);
        self.answer(base).map(|base| VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let done = self.set_event(index, fd, |vring| &mut vring.kick, Note::Kick);
        let done = done.and_then(|()| {
            let vring = self.vring(index.into())?;
            vring.kicked = true;
            if vring.running && !vring.changed { Ok(()) } else { self.start(index.into()) }
        });
        self.answer(done)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let done = self.set_event(index, fd, |vring| &mut vring.call, Note::Call);
        self.answer(done)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let done = self.set_event(index, fd, |vring| &mut vring.error, Note::Error);
        self.answer(done)
    }

    fn get_protocol_features(&mut self) -> Answer<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Answer<()> {
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Answer<u64> {
        // QEMU compares it with the request queues alone, others count all.
        Ok(self.controller.virtqueues().into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Answer<()> {
        let done = self.vring(index).map(|vring| {
            vring.enabled = enable;
            vring.running.then_some(vring.index)
        });
        let running = self.answer(done)?;
        if let Some(number) = running {
            let (done, answer) = sync_channel(1);
            reach::note(&self.controller, number, Note::Enable(enable, done));
            let _ = reach::wait(&self.controller, number, &answer);
        }
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Answer<Vec<u8>> {
        Ok(self.read_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Answer<()> {
        self.write_config(offset, buf);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self._backend = Some(backend);
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Answer<()> {
        self.answer(Err(Fault::Unsupported("a GPU")))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Answer<File> {
        self.answer(Err(Fault::Unsupported("sharing objects")))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Answer<(VhostUserInflight, File)> {
        let (queues, size) = (asked.num_queues, asked.queue_size);
        let made = InflightArea::create(queues, size, self.features).map_err(Fault::from);
        let (file, len) = self.answer(made)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, log: &VhostUserInflight, file: File) -> Answer<()> {
        let done = self.map_inflight(log, file);
        self.answer(done)
    }

    fn get_max_mem_slots(&mut self) -> Answer<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Answer<Option<vhost::VhostUserMemoryRegionBase>> {
        let done = self.add_region(region, file);
        self.answer(done).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Answer<()> {
        let done = self.remove_region(region);
        self.answer(done)
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Answer<Option<File>> {
        let begun = if self.vrings.iter().any(|vring| vring.running) {
            Err(TransferError::Running)
        } else if direction == VhostTransferStateDirection::SAVE {
            Transfer::save(&self.controller, file)
        } else {
            Transfer::load(file)
        };
        self.transfer = Some(self.answer(begun.map_err(Fault::from))?);
        // The front end's own pipe is used.
        Ok(None)
    }

    fn check_device_state(&mut self) -> Answer<()> {
        let done = match self.transfer.take() {
            Some(transfer) => transfer.finish(&self.controller),
            None => Err(TransferError::Nothing),
        };
        self.answer(done.map_err(Fault::from))
    }

    fn get_shmem_config(&mut self) -> Answer<VhostUserShMemConfig> {
        self.answer(Err(Fault::Unsupported("shared memory of the device")))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Answer<()> {
        let mapped = DirtyLog::map(log.mmap_size, log.mmap_offset, file).map_err(Fault::from);
        self.log = Some(Arc::new(self.answer(mapped)?));
        if self.dirty_log().is_some() {
            self.change_log();
        }
        Ok(())
    }
}

/// The protocol features offered. In-band notifications are not: QEMU accepts them if they are.
pub const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::DEVICE_STATE);
