//! The switch of a profiler that records a part of a program.

use super::{open, run, stand_ins};
use warpsmith::device::cuda::driver::Driver;

#[test]
#[ignore = "runs in a process of its own"]
fn case_switch() {
    let mut gpu = open();
    // Another thread may work with the GPU: each call makes the context its own.
    std::thread::scope(|scope| {
        scope.spawn(|| gpu.record_for_profiler(true).unwrap());
    });
    println!("between");
    gpu.record_for_profiler(false).unwrap();
}

#[test]
fn a_profiler_is_started_and_stopped() {
    let said = run("profiler::case_switch", stand_ins().path(), &[]);
    let lines = said.lines().filter_map(|line| line.rsplit(" ... ").next());
    let told: Vec<_> = lines.filter(|line| line.starts_with("profiler ") || *line == "between").collect();
    assert_eq!(told, ["profiler started", "between", "profiler stopped"], "{said}");
}
