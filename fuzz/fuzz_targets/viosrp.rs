//! Runs [`vscsi_fuzz::srp::viosrp`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::srp::viosrp(data));
