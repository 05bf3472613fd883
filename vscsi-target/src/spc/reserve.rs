//! RESERVE, RELEASE and the PERSISTENT RESERVE commands over the model of
//! [`crate::model::reservation`].
//!
//! They change reservations one at a time, in the order of [`LogicalUnit::take_turn`]: what has to
//! survive a power loss is stored before it takes effect, and what could not be stored never does.
//!
//! [`LogicalUnit::take_turn`]: crate::model::LogicalUnit::take_turn

use crate::{
    engine::Call,
    model::{LuConfig, lu::LuState, reservation::persist::Store},
    opcode::Fail,
    sense::Sense,
};

/// RESERVE(6) and RESERVE(10).
pub fn reserve(call: &mut Call<'_>) -> Result<(), Fail> {
    legacy(call, |state, call| state.reservations.reserve(&call.itl.nexus.identity, call.cdb))
}

/// RELEASE(6) and RELEASE(10).
pub fn release(call: &mut Call<'_>) -> Result<(), Fail> {
    legacy(call, |state, call| state.reservations.release(&call.itl.nexus.identity, call.cdb))
}

fn legacy(
    call: &Call<'_>,
    change: impl FnOnce(&mut LuState, &Call<'_>) -> Result<bool, Fail>,
) -> Result<(), Fail> {
    let _turn = call.lu().take_turn();
    call.lu().update(|state| change(state, call)).map(|_| ())
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
    if let Some(store) = store(&lu.config) {
        store.apply(effects.persist, &after).map_err(|error| {
            tracing::error!(%error, "reservations cannot be stored");
            Sense::INTERNAL_FAILURE
        })?;
    }
    let itls = lu.itls();
    let aborted: Vec<u64> = itls
        .iter()
        .filter(|itl| effects.abort.contains(&itl.nexus.identity))
        .map(|itl| itl.nexus.id)
        .collect();
    lu.update(|state| {
        state.reservations = after;
        state.preventers.retain(|id| !aborted.contains(id));
        state.aca = state.aca.filter(|id| !aborted.contains(id));
        for waiting in &mut state.waiting {
            if effects.abort.contains(&waiting.nexus) {
                (waiting.prevents, waiting.aca) = (false, false);
            }
        }
    });
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
