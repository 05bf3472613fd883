//! Runs [`vscsi_fuzz::srp::iu`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::srp::iu(data));
