//! What the fuzz targets run, as plain functions, so that the stable toolchain replays their
//! corpora too (`cargo test --no-default-features`).
//!
//! A function takes any bytes and returns; it panics only when a promise is broken: what parses
//! must be emitted and parse to the same again, and nothing may leave its bounds. To add a target:
//! a function and its seeds in the file of its crate, a row in [`TARGETS`], a wrapper in
//! `fuzz_targets/` with its `[[bin]]`, then `cargo run --no-default-features --example seeds`.

pub mod channel;
pub mod core;
pub mod crq;
pub mod iscsi;
pub mod iser;
pub mod nvme;
pub mod ring;
pub mod session;
pub mod srp;
pub mod tcmu;
pub mod vfio;
pub mod vhost;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its binary and of its folder in `corpus/`.
    pub name: &'static str,
    /// What it runs.
    pub run: fn(&[u8]),
    /// The inputs to start from.
    pub seeds: fn() -> Vec<Seed>,
}

/// An input to start from.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The name of its file.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "srp_iu", run: srp::iu, seeds: srp::iu_seeds },
    Target { name: "srp_descriptors", run: srp::descriptors, seeds: srp::descriptor_seeds },
    Target { name: "srp_channel", run: channel::channel, seeds: channel::channel_seeds },
    Target { name: "srp_login", run: channel::login, seeds: channel::login_seeds },
    Target { name: "viosrp", run: srp::viosrp, seeds: srp::viosrp_seeds },
    Target { name: "core_command", run: core::command, seeds: core::command_seeds },
    Target { name: "core_parameters", run: core::parameters, seeds: core::parameters_seeds },
    Target { name: "core_saved", run: core::saved, seeds: core::saved_seeds },
    Target { name: "core_live", run: core::live, seeds: core::live_seeds },
    Target { name: "iscsi_pdu", run: iscsi::pdu, seeds: iscsi::pdu_seeds },
    Target { name: "iscsi_text", run: iscsi::text, seeds: iscsi::text_seeds },
    Target { name: "iscsi_login", run: iscsi::login, seeds: iscsi::login_seeds },
    Target { name: "iscsi_session", run: session::session, seeds: session::session_seeds },
    Target { name: "iser_message", run: iser::message, seeds: iser::message_seeds },
    Target { name: "iser_session", run: iser::session, seeds: iser::session_seeds },
    Target { name: "nvme_identify", run: nvme::identify, seeds: nvme::identify_seeds },
    Target { name: "nvme_completion", run: nvme::completion, seeds: nvme::completion_seeds },
    Target { name: "ring", run: ring::ring, seeds: ring::ring_seeds },
    Target { name: "virtio_scsi", run: ring::virtio_scsi, seeds: ring::virtio_scsi_seeds },
    Target { name: "crq_session", run: crq::session, seeds: crq::session_seeds },
    Target { name: "crq_adapter", run: crq::adapter, seeds: crq::adapter_seeds },
    Target { name: "tcmu_ring", run: tcmu::ring, seeds: tcmu::ring_seeds },
    Target { name: "vhost_user", run: vhost::vhost, seeds: vhost::vhost_seeds },
    Target { name: "vfio_user", run: vfio::vfio, seeds: vfio::vfio_seeds },
];
