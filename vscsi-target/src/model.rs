//! What a target consists of: logical units, targets with ports and LUN maps, I_T nexuses, unit
//! attentions, reservations, task-set gates.
//!
//! State that every reactor shares lives here. The fast path reads it through a few atomics
//! ([`Itl::attention`], [`LogicalUnit::flags`], the gate's counters); everything else is behind
//! mutexes that only slow paths take.

pub mod attention;
pub mod gate;
pub mod handover;
pub mod identity;
pub mod live;
pub mod lu;
pub mod nexus;
pub mod reservation;
pub mod snapshot;
pub mod target;

pub use attention::Attention;
pub use identity::Identity;
pub use lu::{LogicalUnit, LuConfig, LuState};
pub use nexus::{Change, Itl, Nexus, NexusInfo, NexusView, Observer};
pub use target::{Model, ModelError, Target, TargetPort};
