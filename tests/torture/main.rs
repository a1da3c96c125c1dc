//! Torture: a run is killed or its disk fails, anywhere; resumed, it ends with the files of a run
//! that nothing disturbed, bit for bit.
//!
//! `make test` does a little of it. `make torture` does as much as `TORTURE_KILLS` asks for, at
//! every call that changes a file, and prints the counts. `TORTURE_SEED` repeats a sequence of
//! random moments, which each failure names.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod faults;
#[path = "../common/random.rs"]
mod random;
mod ranks;
mod runs;

#[cfg(target_arch = "x86_64")]
use faults::Fault;
use random::{Random, amount};
use runs::{Bed, same};
use std::fs;
#[cfg(target_arch = "x86_64")]
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Instant;

/// A new sequence of random numbers, or the one that `TORTURE_SEED` names.
fn random(purpose: &str) -> Random {
    let seed = Random::seed("TORTURE_SEED");
    println!("{purpose}: TORTURE_SEED={seed}");
    Random::new(seed)
}

#[test]
fn runs_killed_at_random_moments_resume_to_the_same_bits() {
    let bed = Bed::new();
    let started = Instant::now();
    let expected = bed.finish("unbroken");
    let length = started.elapsed();
    let (wanted, mut kills, mut runs) = (amount("TORTURE_KILLS", 12), 0, 0);
    let mut chance = random("kills at random moments");
    while kills < wanted {
        runs += 1;
        let out = format!("run{runs}");
        for _ in 0..3 {
            let mut child = bed.train(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(length.mul_f64(chance.below(1000) as f64 / 1000.0));
            child.kill().unwrap();
            kills += usize::from(child.wait().unwrap().code().is_none());
        }
        let found = bed.finish(&out);
        same(&found, &expected).unwrap_or_else(|why| panic!("run {runs}, after kills: {why}"));
        fs::remove_dir_all(bed.path(&out)).unwrap();
    }
    println!("{kills} kills at random moments, {runs} runs: all ended with the same files");
}

/// Runs under a fault at some of the calls (at all of them for `TORTURE_CALLS=all`), of a fresh run
/// and of one that resumes after a kill, and hands over how each ended. Each is then resumed and
/// has to end as if nothing had happened.
#[cfg(target_arch = "x86_64")]
fn at_calls(what: &str, fault: Fault, check: impl Fn(&faults::Ending, &Left)) {
    at_calls_of(&Bed::new(), what, fault, check);
}

/// Does the same with the run of another bed.
#[cfg(target_arch = "x86_64")]
fn at_calls_of(bed: &Bed, what: &str, fault: Fault, check: impl Fn(&faults::Ending, &Left)) {
    let expected = bed.finish("unbroken");
    let mut chance = random(what);
    let run = |name: &str, at, fault| faults::run(bed.train(name), &bed.path(name), at, fault);
    let all = run("fresh", usize::MAX, Fault::Kill).calls;
    assert!(all > 100, "found {all} calls that change files");
    run("killed", all * 3 / 5, Fault::Kill);
    for (stage, killed) in [("a fresh run", false), ("a resumed run", true)] {
        let begin = |name: &str| {
            if killed {
                copy(&bed.path("killed"), &bed.path(name));
            }
        };
        begin(stage);
        let calls = run(stage, usize::MAX, Fault::Kill).calls;
        for at in choose(calls, &mut chance) {
            let name = format!("run{at}");
            begin(&name);
            let logged = runs::logged_steps(&bed.path(&name));
            let ending = run(&name, at, fault);
            if amount("TORTURE_QUIET", 0) == 0 {
                println!("{what} at call {at} of {stage}, {:?}: {}", ending.hit, ending.status);
            }
            check(&ending, &Left { directory: &bed.path(&name), expected: &expected, logged });
            let found = bed.finish(&name);
            same(&found, &expected)
                .unwrap_or_else(|why| panic!("{stage}, call {at}, {:?}: {why}", ending.hit));
            fs::remove_dir_all(bed.path(&name)).unwrap();
        }
        println!("{what} in {stage} of {calls} calls: all resumed to the same files");
    }
}

/// The calls to tamper with.
#[cfg(target_arch = "x86_64")]
fn choose(calls: usize, chance: &mut Random) -> Vec<usize> {
    match std::env::var("TORTURE_CALLS").as_deref() {
        Ok("all") => (0..calls).collect(),
        _ => (0..6).map(|_| chance.below(calls)).collect(),
    }
}

#[cfg(target_arch = "x86_64")]
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The state in which a run under a fault left its directory.
#[cfg(target_arch = "x86_64")]
struct Left<'a> {
    directory: &'a Path,
    /// The files of the unbroken run.
    expected: &'a runs::Files,
    /// Steps in the log before the run began.
    logged: usize,
}

/// Expects a run that met an error to have ended well all the same, with nothing missing, or to
/// have said so: exit code 2 and a line that names a file of the run.
#[cfg(target_arch = "x86_64")]
fn never_silent(ending: &faults::Ending, left: &Left) {
    match ending.status.code() {
        Some(0) => same(&runs::files(left.directory), left.expected)
            .unwrap_or_else(|why| panic!("{ending:?}: {why}")),
        Some(2) => assert!(ending.stderr.contains("run"), "{ending:?}"),
        _ => panic!("{ending:?}"),
    }
    assert!(!ending.stderr.contains("panicked"), "{ending:?}");
}

/// Expects a run that met one error to have kept each step that it logged.
#[cfg(target_arch = "x86_64")]
fn keeps_all_steps(ending: &faults::Ending, left: &Left) {
    let [logged, saved] = [runs::logged_steps(left.directory), runs::saved_step(left.directory)];
    // A log may have the line of a step that another log lacks, and that is not complete.
    let unchanged = logged == left.logged;
    assert!(saved + 1 >= logged || unchanged, "{logged} steps, but a checkpoint of step {saved}: {ending:?}");
}

#[cfg(target_arch = "x86_64")]
mod calls {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn runs_killed_at_a_call_resume_to_the_same_bits() {
        at_calls("kill", Fault::Kill, |ending, _| {
            assert_eq!(ending.status.signal(), Some(libc::SIGKILL), "{ending:?}");
        });
    }

    /// Checkpoints that are folders in part, and the model beside them.
    #[test]
    fn runs_with_adapters_survive_kills_and_errors() {
        let bed = || Bed::with_flags("--lora-rank 2 --lora-targets all");
        at_calls_of(&bed(), "kill", Fault::Kill, |ending, _| {
            assert_eq!(ending.status.signal(), Some(libc::SIGKILL), "{ending:?}");
        });
        at_calls_of(&bed(), "a disk full once", Fault::Error(libc::ENOSPC), |ending, left| {
            never_silent(ending, left);
            keeps_all_steps(ending, left);
        });
    }

    #[test]
    fn a_full_disk_is_never_silent_and_loses_nothing() {
        at_calls("a full disk", Fault::ErrorsFromHere(libc::ENOSPC), never_silent);
        at_calls("a disk full once", Fault::Error(libc::ENOSPC), |ending, left| {
            never_silent(ending, left);
            keeps_all_steps(ending, left);
        });
    }

    #[test]
    fn a_failing_disk_is_never_silent_and_loses_nothing() {
        at_calls("a disk that fails once", Fault::Error(libc::EIO), |ending, left| {
            never_silent(ending, left);
            keeps_all_steps(ending, left);
        });
    }

    #[test]
    fn short_and_interrupted_writes_change_nothing() {
        for (what, fault) in
            [("a short write", Fault::ShortWrite), ("an interrupted call", Fault::Error(libc::EINTR))]
        {
            at_calls(what, fault, |ending, left| {
                never_silent(ending, left);
                assert!(fault != Fault::ShortWrite || ending.status.success(), "{ending:?}");
            });
        }
    }
}
