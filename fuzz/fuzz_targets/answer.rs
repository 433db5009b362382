//! `fusebox::proxy::fuzz::answer`, over whatever bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fusebox::proxy::fuzz::answer(data));
