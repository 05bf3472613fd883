//! What a logical unit kept over a restart: its reservations and its mode parameters.

use super::{mode, mode::Modes, reserve};
use crate::{
    backend::Properties,
    model::{
        LuConfig,
        reservation::{Capabilities, Reservations, persist::StoreError},
    },
};

/// Why a logical unit's saved state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Its reservations.
    #[error(transparent)]
    Reservations(#[from] StoreError),
    /// Its mode parameters.
    #[error(transparent)]
    Modes(#[from] mode::SaveError),
}

/// The state that [`LogicalUnit::new`] takes, as a power on finds it: what was saved, or defaults.
/// Blocks.
///
/// # Errors
/// What is there and cannot be understood is an error, never taken for nothing: whoever starts the
/// target has to decide what becomes of it.
///
/// [`LogicalUnit::new`]: crate::model::LogicalUnit::new
pub fn restore(
    config: &LuConfig,
    properties: &Properties,
) -> Result<(Reservations, Modes), RestoreError> {
    let store = reserve::store(config);
    let capabilities =
        Capabilities { persist_through_power_loss: store.is_some(), ..Capabilities::default() };
    let saved = store.map(|store| store.load(capabilities)).transpose()?.flatten();
    let mut reservations = saved.unwrap_or_else(|| Reservations::new(capabilities));
    reservations.power_on();
    let settings = mode::file(config).map(|path| mode::load(&path)).transpose()?.flatten();
    Ok((reservations, Modes::for_backend(properties, settings)))
}
