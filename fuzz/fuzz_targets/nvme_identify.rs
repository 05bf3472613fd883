//! Runs [`vscsi_fuzz::nvme::identify`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::nvme::identify(data));
