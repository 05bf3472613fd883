//! The images that move between processes with the guest: held while a queue runs.

use std::{io, sync::Arc};

use vscsi_target::model::LogicalUnit;

use crate::controller::Controller;

/// The logical units of a controller that this process has taken over for it.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    held: Vec<Arc<LogicalUnit>>,
    /// It was told that one cannot be had.
    told: bool,
}

impl Holding {
    /// Takes over what is not held yet, and gives up what the controller does not show any more.
    ///
    /// # Errors
    /// While another process has one: which, and what the system says.
    pub(crate) fn acquire(&mut self, controller: &Controller) -> Result<(), (u16, io::Error)> {
        let units = units(controller);
        self.held.retain(|held| units.iter().any(|(_, lu)| Arc::ptr_eq(lu, held)) || stays(held));
        for (number, lu) in units {
            if !self.held.iter().any(|held| Arc::ptr_eq(held, &lu)) {
                lu.acquire().map_err(|error| (number, error))?;
                self.held.push(lu);
            }
        }
        self.told = false;
        Ok(())
    }

    /// As [`Holding::acquire`], and tells once why it has to wait.
    pub(crate) fn try_acquire(&mut self, controller: &Controller) -> bool {
        let Err((number, error)) = self.acquire(controller) else { return true };
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                controller = controller.name,
                lun = number,
                "the guest's requests wait until this process has the image: {error}"
            );
        }
        false
    }

    /// Gives up everything, when no queue runs any more.
    pub(crate) fn release(&mut self) {
        self.held.retain(stays);
        self.told = false;
    }

    /// Whether there is anything that moves.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

/// Gives one up; true if that is not possible, and it has to be tried again.
fn stays(lu: &Arc<LogicalUnit>) -> bool {
    let released = lu.release();
    if let Err(error) = &released {
        tracing::error!(
            lu = lu.id,
            "an image cannot be given up, and this process keeps it: {error}"
        );
    }
    released.is_err()
}

/// The logical units that move, each once, and a number that each has.
fn units(controller: &Controller) -> Vec<(u16, Arc<LogicalUnit>)> {
    let mut units: Vec<(u16, Arc<LogicalUnit>)> = Vec::new();
    for (_, nexus) in controller.nexuses() {
        for (number, itl) in nexus.table().iter() {
            let is_new = units.iter().all(|(_, lu)| !Arc::ptr_eq(lu, &itl.lu));
            if itl.lu.backend.is_handed_over() && is_new {
                units.push((number, Arc::clone(&itl.lu)));
            }
        }
    }
    units
}
