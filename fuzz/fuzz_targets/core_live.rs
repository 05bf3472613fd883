//! Runs [`vscsi_fuzz::core::live`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::core::live(data));
