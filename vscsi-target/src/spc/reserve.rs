//! RESERVE, RELEASE and the PERSISTENT RESERVE commands over the model of
//! [`crate::model::reservation`].
//!
//! They change reservations one at a time, in the order of [`LogicalUnit::take_turn`]: what has to
//! survive a power loss is stored before it takes effect, and what could not be stored never does.
//!
//! [`LogicalUnit::take_turn`]: crate::model::LogicalUnit::take_turn

use crate::{
    engine::Call,
    model::{
        LuConfig,
        reservation::{
            Reservations,
            persist::{Store, StoreError},
        },
    },
    opcode::Fail,
    sense::Sense,
};
use std::error::Error;

/// RESERVE(6) and RESERVE(10).
pub fn reserve(call: &mut Call<'_>) -> Result<(), Fail> {
    legacy(call, |next, call| next.reserve(&call.itl.nexus.identity, call.cdb))
}

/// RELEASE(6) and RELEASE(10).
pub fn release(call: &mut Call<'_>) -> Result<(), Fail> {
    legacy(call, |next, call| next.release(&call.itl.nexus.identity, call.cdb))
}

fn legacy(
    call: &Call<'_>,
    change: impl FnOnce(&mut Reservations, &Call<'_>) -> Result<bool, Fail>,
) -> Result<(), Fail> {
    let lu = call.lu();
    let _turn = lu.take_turn();
    let mut next = lu.state().reservations.clone();
    if !change(&mut next, call)? {
        return Ok(());
    }
    lu.store_then(
        |live| live.set_reservations(next.clone()),
        || lu.update(|state| state.reservations = next.clone()),
    )
    .map_err(not_stored)?;
    Ok(())
}

/// What cannot be stored is not done.
fn not_stored(error: impl Error) -> Sense {
    tracing::error!(%error, "reservations cannot be stored");
    Sense::INTERNAL_FAILURE
}

/// PERSISTENT RESERVE IN, every service action.
pub fn persistent_in(call: &mut Call<'_>) -> Result<(), Fail> {
    let data = call.state().reservations.read_in(call.cdb)?;
    call.put(&data);
    Ok(())
}

/// PERSISTENT RESERVE OUT, every service action.
pub fn persistent_out(call: &mut Call<'_>) -> Result<(), Fail> {
    let nexus = &call.itl.nexus;
    let lu = call.lu();
    let mut ports = nexus.target.ports();
    let protocol = ports.iter().find(|port| port.relative_id == nexus.port).map(|p| p.protocol);
    ports.retain(|port| Some(port.protocol) == protocol);
    let ports: Vec<u16> = ports.iter().map(|port| port.relative_id).collect();

    let turn = lu.take_turn();
    let before = lu.state().reservations.clone();
    let (after, effects) = before.prepare_out(&nexus.identity, call.cdb, call.data, &ports)?;
    let itls = lu.itls();
    let aborted: Vec<u64> = itls
        .iter()
        .filter(|itl| effects.abort.contains(&itl.nexus.identity))
        .map(|itl| itl.nexus.id)
        .collect();
    let swap_in = || {
        if let Some(store) = store(&lu.config) {
            store.apply(effects.persist, &after)?;
        }
        lu.update(|state| {
            state.reservations = after.clone();
            state.preventers.retain(|id| !aborted.contains(id));
            state.aca = state.aca.filter(|id| !aborted.contains(id));
            for waiting in &mut state.waiting {
                if effects.abort.contains(&waiting.nexus) {
                    (waiting.prevents, waiting.aca) = (false, false);
                }
            }
        });
        Ok::<_, StoreError>(())
    };
    lu.store_then(|live| live.set_reservations(after.clone()), swap_in)
        .map_err(not_stored)?
        .map_err(|error| {
            // The live state says already what does not come true.
            lu.update(|_| ());
            not_stored(error)
        })?;
    for (told, attention) in &effects.attentions {
        lu.establish_for(told, *attention);
    }
    drop(turn);
    call.abort.extend(effects.abort);
    Ok(())
}

/// Where a logical unit's reservations survive a power loss, if they do.
pub fn store(config: &LuConfig) -> Option<Store> {
    let name = format!("{:016x}.reservations.json", config.identity.naa);
    config.state_dir.as_ref().map(|directory| Store::new(directory.join(name)))
}
