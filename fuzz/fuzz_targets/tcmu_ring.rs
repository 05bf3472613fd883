//! Runs [`vscsi_fuzz::tcmu::ring`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::tcmu::ring(data));
