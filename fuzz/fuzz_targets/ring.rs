//! Runs [`vscsi_fuzz::ring::ring`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::ring::ring(data));
