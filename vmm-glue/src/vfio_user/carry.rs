//! Carries what is in memory without a descriptor: see `courier`.

use std::sync::atomic::{Ordering, fence};

use super::{
    connection::{Broken, Connection},
    courier::{self, MOST_CARRIED, MOST_TABLE},
    message::{Head, command, flag},
    socket::SocketError,
};

impl Connection {
    /// Carries what waits. Messages that come meanwhile are handled.
    pub(super) fn carry(&mut self) -> Result<(), Broken> {
        for index in self.device.rung() {
            if self.fetch(index)? == Carried::No {
                self.device.fail();
            }
        }
        if self.device.has_carried() {
            for index in self.device.carried() {
                if self.bring(index)? == Carried::No {
                    self.device.fail();
                }
            }
        }
        Ok(())
    }

    /// Carries what the driver made available to the copy, and tells the queue.
    fn fetch(&mut self, index: u16) -> Result<Carried, Broken> {
        let Some((size, areas)) = self.device.ring(index) else { return Ok(Carried::Gone) };
        let epoch = self.device.epoch();
        let size = usize::from(size);
        let driver = self.dma_read(areas[1], 4 + 2 * size)?;
        let table = self.dma_read(areas[0], 16 * size)?;
        let (Some(driver), Some(table)) = (driver, table) else {
            return Ok(self.outcome(epoch));
        };
        let Some(courier) = self.device.courier(index, epoch) else { return Ok(Carried::Gone) };
        let Some(heads) = courier.heads(&driver) else { return Ok(Carried::No) };
        for &head in &heads {
            let mut chain = courier::chain(&table, head);
            if let [only] = chain[..]
                && only.is_table()
            {
                if only.len > MOST_TABLE {
                    return Ok(Carried::No);
                }
                let Some(inner) = self.dma_read(only.address, only.len as usize)? else {
                    return Ok(self.outcome(epoch));
                };
                self.device.memory().put(only.address, &inner);
                chain = courier::chain(&inner, 0);
            }
            let total: u64 = chain.iter().map(|descriptor| u64::from(descriptor.len)).sum();
            if total > MOST_CARRIED {
                return Ok(Carried::No);
            }
            let mut written = Vec::new();
            for descriptor in chain {
                if descriptor.is_written() {
                    written.push((descriptor.address, descriptor.len));
                    continue;
                }
                let parts = self.device.memory().copied(descriptor.address, descriptor.len.into());
                for (address, len) in parts {
                    let Some(data) = self.dma_read(address, len)? else {
                        return Ok(self.outcome(epoch));
                    };
                    self.device.memory().put(address, &data);
                }
            }
            let Some(courier) = self.device.courier(index, epoch) else {
                return Ok(Carried::Gone);
            };
            if let Some(place) = courier.chains.get_mut(usize::from(head)) {
                *place = written;
            }
        }
        let Some(courier) = self.device.courier(index, epoch) else { return Ok(Carried::Gone) };
        let available = courier.available.wrapping_add(heads.len() as u16);
        courier.available = available;
        let kick = courier.kick.try_clone()?;
        self.device.memory().put(areas[0], &table);
        self.device.memory().put(areas[1] + 4, driver.get(4..).unwrap_or_default());
        fence(Ordering::Release);
        self.device.memory().put(areas[1] + 2, &available.to_le_bytes());
        kick.write(1)?;
        Ok(Carried::Yes)
    }

    /// Carries what the queue has used to the driver, and interrupts it.
    fn bring(&mut self, index: u16) -> Result<Carried, Broken> {
        let Some((size, areas)) = self.device.ring(index) else { return Ok(Carried::Gone) };
        let epoch = self.device.epoch();
        let mut used = [0; 2];
        self.device.memory().get(areas[2] + 2, &mut used);
        fence(Ordering::Acquire);
        let until = u16::from_le_bytes(used);
        let Some(courier) = self.device.courier(index, epoch) else { return Ok(Carried::Gone) };
        if courier.used == until {
            return Ok(Carried::Yes);
        }
        let mut at = courier.used;
        while at != until {
            let place = areas[2] + 4 + 8 * u64::from(at % size);
            let mut entry = [0; 8];
            self.device.memory().get(place, &mut entry);
            let [i0, i1, _, _, l0, l1, l2, l3] = entry;
            let head = usize::from(u16::from_le_bytes([i0, i1]));
            let mut left = u32::from_le_bytes([l0, l1, l2, l3]);
            let Some(courier) = self.device.courier(index, epoch) else {
                return Ok(Carried::Gone);
            };
            let written = courier.chains.get_mut(head).map(std::mem::take).unwrap_or_default();
            for (address, len) in written {
                let part = len.min(left);
                left -= part;
                for (address, len) in self.device.memory().copied(address, part.into()) {
                    let mut data = vec![0; len];
                    self.device.memory().get(address, &mut data);
                    if !self.dma_write(address, &data)? {
                        return Ok(self.outcome(epoch));
                    }
                }
            }
            if !self.dma_write(place, &entry)? {
                return Ok(self.outcome(epoch));
            }
            at = at.wrapping_add(1);
        }
        if !self.dma_write(areas[2] + 2, &until.to_le_bytes())? {
            return Ok(self.outcome(epoch));
        }
        let Some(courier) = self.device.courier(index, epoch) else { return Ok(Carried::Gone) };
        courier.used = until;
        self.device.interrupt(index);
        Ok(Carried::Yes)
    }

    /// The client refused, or the device began anew meanwhile.
    fn outcome(&self, epoch: u64) -> Carried {
        if self.device.epoch() == epoch { Carried::No } else { Carried::Gone }
    }

    /// Reads the client's memory; `None` if it refuses.
    fn dma_read(&mut self, address: u64, len: usize) -> Result<Option<Vec<u8>>, Broken> {
        let at = self.data_at()?;
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let part = (len - data.len()).min(self.version.data());
            let from = address.wrapping_add(data.len() as u64);
            let body = [from, part as u64].map(u64::to_ne_bytes);
            let Some(reply) = self.ask(command::DMA_READ, [body.as_flattened(), &[]])? else {
                return Ok(None);
            };
            match reply.get(at..at + part) {
                Some(bytes) => data.extend_from_slice(bytes),
                None => return Ok(None),
            }
        }
        Ok(Some(data))
    }

    /// Writes the client's memory; false if it refuses.
    fn dma_write(&mut self, address: u64, data: &[u8]) -> Result<bool, Broken> {
        let at = self.data_at()?;
        let most = self.version.data();
        for (number, part) in (0u64..).zip(data.chunks(most)) {
            let to = address.wrapping_add(number * most as u64);
            let head = [to, part.len() as u64].map(u64::to_ne_bytes);
            let mut body = head.as_flattened().get(..at).unwrap_or_default().to_vec();
            body.extend_from_slice(part);
            body.resize(16 + part.len(), 0);
            if self.ask(command::DMA_WRITE, [&body, &[]])?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the data begins in the body of DMA_READ and DMA_WRITE.
    ///
    /// The specification has a count of 64 bits before it. QEMU's client (11.1) has one of 32 bits, and
    /// the data 12 bytes from the beginning. A count of 2^32 tells: that client sees a count of 0.
    fn data_at(&mut self) -> Result<usize, Broken> {
        if let Some(at) = self.data_at {
            return Ok(at);
        }
        let body = [0u64, 1 << 32].map(u64::to_ne_bytes);
        let is_short = self.ask(command::DMA_READ, [body.as_flattened(), &[]])?.is_some();
        let at = if is_short { 12 } else { 16 };
        self.data_at = Some(at);
        Ok(at)
    }

    /// Sends a command and waits for its reply; `None` if that is an error.
    fn ask(&mut self, command: u16, body: [&[u8]; 2]) -> Result<Option<Vec<u8>>, Broken> {
        self.asked = self.asked.wrapping_add(1);
        let (id, size) = (self.asked, Head::LEN + body[0].len() + body[1].len());
        let head = Head { id, command, size: size as u32, flags: 0, error: 0 };
        self.socket.send(&head, body, &[])?;
        loop {
            let Some(message) = self.socket.receive()? else {
                return Err(Broken::Socket(SocketError::Partial));
            };
            let Head { id: answered, command: of, flags, .. } = message.head;
            if flags & flag::TYPE == 0 {
                self.handle(message)?;
            } else if (answered, of) == (id, command) {
                return Ok((flags & flag::ERROR == 0).then_some(message.body));
            } else {
                return Err(Broken::Reply(of));
            }
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Yes,
    /// It cannot be done.
    No,
    /// The ring is not there any more.
    Gone,
}
