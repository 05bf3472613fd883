//! Runs [`vscsi_fuzz::iser::message`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::iser::message(data));
