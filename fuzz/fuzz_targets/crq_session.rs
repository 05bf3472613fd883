//! Runs [`vscsi_fuzz::crq::session`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::crq::session(data));
