//! Runs [`vscsi_fuzz::vfio::vfio`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vscsi_fuzz::vfio::vfio(data));
