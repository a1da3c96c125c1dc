//! One program for each reader of `tests/fuzz/targets.rs`, named after it.
#![no_main]

#[allow(dead_code)] // the tests alone use the seeds and costs
#[path = "../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let name = env!("CARGO_BIN_NAME");
    let target = targets::TARGETS.iter().find(|target| target.name == name).expect("a name in the table");
    (target.run)(bytes);
});
