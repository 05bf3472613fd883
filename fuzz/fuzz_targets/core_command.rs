//! Runs [`vscsi_fuzz::core::command`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::core::command(data));
