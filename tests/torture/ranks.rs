//! Ranks that are killed while they train together.

use crate::common::{TRAIN_GPT2, WARPSMITH, stderr};
use crate::random;
use crate::random::amount;
use crate::runs::{Bed, Files, files, logged_steps, same, saved_step};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const RANKS: usize = 3;

/// The run on several ranks. Each writes its process id to a file.
fn launch(bed: &Bed, out: &str, stage: &str) -> Command {
    let mut command = Command::new(WARPSMITH);
    command.args(["launch", "-n", &RANKS.to_string(), "--", "sh", "-c"]);
    let script = format!("echo $$ > '{}'.$RANK; exec \"$@\"", bed.path(out).display());
    command.args([&script, "sh", TRAIN_GPT2]);
    bed.flags(&mut command, out);
    command.args(["-d", &(8 * RANKS).to_string(), "-z", stage]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(bed: &Bed, out: &str, stage: &str) -> Files {
    let output = launch(bed, out, stage).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
    files(&bed.path(out))
}

/// The process id of a rank, once it has started.
fn pid(bed: &Bed, out: &str, rank: usize) -> Option<i32> {
    std::fs::read_to_string(format!("{}.{rank}", bed.path(out).display())).ok()?.trim().parse().ok()
}

/// Starts the run, kills a rank after `moment`, and waits for the end of all.
fn kill(bed: &Bed, out: &str, stage: &str, rank: usize, moment: Duration) -> Output {
    let job = launch(bed, out, stage).spawn().unwrap();
    std::thread::sleep(moment);
    if let Some(pid) = pid(bed, out, rank) {
        // SAFETY: a plain system call. The rank may have ended; its number is not reused that soon.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let killed = Instant::now();
    let output = job.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(20), "it took {:?}", killed.elapsed());
    output
}

#[test]
fn a_killed_rank_ends_all_and_the_run_resumes_to_the_same_bits() {
    let bed = Bed::new();
    let mut chance = random("kills of ranks");
    let per_stage = amount("TORTURE_KILLS", 12).div_ceil(6);
    for stage in ["0", "3"] {
        let started = Instant::now();
        let expected = finish(&bed, &format!("unbroken{stage}"), stage);
        let length = started.elapsed();
        for n in 0..per_stage {
            let out = format!("stage{stage}-{n}");
            let moment = length.mul_f64(chance.below(1000) as f64 / 1000.0);
            let rank = chance.below(RANKS);
            let output = kill(&bed, &out, stage, rank, moment);
            for rank in 0..RANKS {
                // SAFETY: signal 0 sends nothing.
                let alive = pid(&bed, &out, rank).is_some_and(|pid| unsafe { libc::kill(pid, 0) } == 0);
                assert!(!alive, "rank {rank} lives on: {}", stderr(&output));
            }
            let [logged, saved] = [logged_steps(&bed.path(&out)), saved_step(&bed.path(&out))];
            // Rank 0 has the whole state, and saves it when another rank is lost.
            let kept = stage != "0" || rank == 0 || saved + 1 >= logged;
            assert!(kept, "{logged} steps, but a checkpoint of step {saved}: {}", stderr(&output));
            same(&finish(&bed, &out, stage), &expected).unwrap_or_else(|why| panic!("{out}: {why}"));
            std::fs::remove_dir_all(bed.path(&out)).unwrap();
        }
        println!("{per_stage} kills of a rank at -z {stage}: all resumed to the same files");
    }
}
