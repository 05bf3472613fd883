//! Runs [`vscsi_fuzz::channel::login`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::channel::login(data));
