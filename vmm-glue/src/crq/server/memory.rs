//! The partition's memory as the endpoint uses it, while the VMM may exchange it.

use std::sync::Arc;

use vscsi_target::reactor::sg::{self, Segment};

use super::super::window::{Access, Fault, Window};
use crate::memory::GuestMap;

/// The window, and the maps that are in use.
#[derive(Debug)]
pub(super) struct Memory {
    window: Arc<Window>,
    map: Arc<GuestMap>,
    version: u64,
    hint: usize,
    /// Counts maps.
    epoch: u32,
    /// Requests in progress on the present map.
    users: u32,
    /// Earlier maps that requests in progress still use.
    earlier: Vec<(u32, u32, Arc<GuestMap>)>,
    list: Vec<Segment>,
}

impl Memory {
    pub(super) fn new(window: Arc<Window>) -> Self {
        let (map, version) = window.map();
        Self {
            window,
            map,
            version,
            hint: 0,
            epoch: 0,
            users: 0,
            earlier: Vec::new(),
            list: Vec::new(),
        }
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    pub(super) fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Takes another map over if the VMM gave one: whether it did.
    #[inline]
    pub(super) fn refresh(&mut self) -> bool {
        self.version != self.window.version() && self.exchange()
    }

    #[cold]
    fn exchange(&mut self) -> bool {
        let (map, version) = self.window.map();
        let old = std::mem::replace(&mut self.map, map);
        if self.users > 0 {
            self.earlier.push((self.epoch, self.users, old));
        }
        (self.version, self.users, self.hint) = (version, 0, 0);
        self.epoch = self.epoch.wrapping_add(1);
        true
    }

    /// A request uses the present map from now on: what [`Memory::release`] is to be given.
    #[inline]
    pub(super) fn hold(&mut self) -> u32 {
        self.users += 1;
        self.epoch
    }

    /// A request is done.
    #[inline]
    pub(super) fn release(&mut self, epoch: u32) {
        if epoch == self.epoch {
            self.users = self.users.saturating_sub(1);
            return;
        }
        if let Some(at) = self.earlier.iter().position(|(earlier, ..)| *earlier == epoch)
            && let Some((_, users, _)) = self.earlier.get_mut(at)
        {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.earlier.swap_remove(at);
            }
        }
    }

    /// Appends where `len` bytes at an I/O bus address are.
    #[inline]
    pub(super) fn resolve(
        &mut self,
        ioba: u64,
        len: u32,
        access: Access,
        into: &mut Vec<Segment>,
    ) -> Result<(), Fault> {
        self.window.resolve(&self.map, &mut self.hint, ioba, len, access, into)
    }

    /// Reads bytes at an I/O bus address.
    pub(super) fn read(&mut self, ioba: u64, into: &mut [u8]) -> Result<(), Fault> {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        // Units, tables and payloads are short.
        let found = self.resolve(ioba, into.len() as u32, Access::Read, &mut list);
        if found.is_ok() {
            sg::gather(&list, into);
        }
        self.list = list;
        found
    }

    /// Writes bytes at an I/O bus address.
    pub(super) fn write(&mut self, ioba: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        let found = self.resolve(ioba, bytes.len() as u32, Access::Write, &mut list);
        if found.is_ok() {
            sg::scatter(bytes, &list);
        }
        self.list = list;
        found
    }
}
