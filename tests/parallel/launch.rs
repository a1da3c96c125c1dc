//! The launcher `warpsmith launch`.

use super::{RECIPE, assert_alike, corpus, run};
use crate::common::{Corpus, TRAIN_GPT2, WARPSMITH, losses, refuse, signal, stderr, stdout, wait_for_steps};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `warpsmith launch FLAGS -- COMMAND`, in the corpus's directory.
fn launch(corpus: &Corpus, flags: &str, command: &[&str]) -> Command {
    let mut launch = Command::new(WARPSMITH);
    launch.current_dir(corpus.dir.path()).arg("launch").args(flags.split(' ')).arg("--").args(command);
    launch.stdout(Stdio::piped()).stderr(Stdio::piped());
    launch
}

/// A trainer that writes its process id to a file named after its rank.
fn trainer(flags: &str) -> [String; 3] {
    let script = format!("echo $$ > pid-$RANK; exec {TRAIN_GPT2} {RECIPE} {flags}").replace('*', "\\*");
    ["sh", "-c", &script].map(str::to_owned)
}

#[test]
fn the_launcher_starts_ranks_and_shows_their_output() {
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 1, "-x 3", "alone");
    let command = trainer("-x 3 -o launched");
    let output = launch(&corpus, "-n 2", &command.each_ref().map(String::as_str)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).lines().all(|line| line.starts_with("[0] ")), "{}", stdout(&output));
    let row = format!("| {:<50} |", "2 processes over TCP, by warpsmith launch");
    assert!(stdout(&output).contains(&row), "{}", stdout(&output));
    assert_alike(&losses(&corpus.path("launched")), &alone, 1e-5, 1e-4);
}

#[test]
fn the_launcher_ends_all_ranks_when_one_fails() {
    let corpus = corpus();
    let started = Instant::now();
    let script = "if [ $RANK = 1 ]; then echo no more >&2; exit 7; fi; exec sleep 100";
    let output = launch(&corpus, "-n 3", &["sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let said = "[1] no more\nwarning: launch: rank 1 ended with exit code 7; ending the others\n";
    let mut lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, said.lines().collect::<Vec<_>>());
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    refuse(&mut launch(&corpus, "-n 2", &["/nowhere/program"]), &["cannot start /nowhere/program"]);
    refuse(&mut launch(&corpus, "-n 0", &["true"]), &["-n/--processes", "found 0"]);
    refuse(&mut launch(&corpus, "-n 65537", &["true"]), &["-n/--processes", "65536", "found 65537"]);
    let mut bare = Command::new(WARPSMITH);
    refuse(bare.args(["launch", "-n", "2", "./train", "-b", "1"]), &["./train: put -- before the program"]);
    refuse(&mut launch(&corpus, "-n 2 --restarts 1", &["true"]), &["--restarts 1", "-y 1"]);
}

/// Exit code 75 is that of --max-hours: the job is queued again instead.
#[test]
fn a_job_whose_time_is_up_is_not_restarted() {
    let corpus = corpus();
    let script = "echo $RANK >> started; exit 75";
    let output = launch(&corpus, "-n 2 --restarts 3", &["sh", "-c", script, "-y", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    let started = std::fs::read_to_string(corpus.path("started")).unwrap();
    assert!(started.lines().count() <= 2, "{started}");
}

#[test]
fn the_launcher_restarts_from_the_last_checkpoint() {
    let corpus = corpus();
    let flags = "-x 30 -n 5 -y 1";
    let whole = run(&corpus, TRAIN_GPT2, 2, flags, "whole");
    let command = trainer(&format!("{flags} -o out"));
    // --restarts requires this flag among the words of the command.
    let words = command.each_ref().map(String::as_str).into_iter().chain(["sh", "-y", "1"]);
    let job = launch(&corpus, "-n 2 --restarts 3", &words.collect::<Vec<_>>()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !corpus.path("out/DONE_00000010").exists() {
        assert!(Instant::now() < deadline, "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = std::fs::read_to_string(corpus.path("pid-1")).unwrap();
    signal(pid, "KILL");
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for line in ["warning: launch: rank 1 was killed by SIGKILL", "warning: launch: restart 1 of 3\n"] {
        assert!(stderr(&output).contains(line), "{}", stderr(&output));
    }
    assert!(stdout(&output).contains("checkpoint of step"), "{}", stdout(&output));
    assert_eq!(losses(&corpus.path("out")), whole, "bit for bit");
}

#[test]
fn a_signal_to_the_launcher_stops_the_run_with_a_checkpoint() {
    let corpus = corpus();
    let command = trainer("-d 64 -x 100000 -o out");
    let job = launch(&corpus, "-n 2", &command.each_ref().map(String::as_str)).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    signal(job.id(), "TERM");
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{}", stderr(&output));
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
}

/// Waits for a file with a process id in it.
fn pid_in(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match std::fs::read_to_string(path) {
            Ok(pid) if pid.ends_with('\n') => return pid,
            _ => assert!(Instant::now() < deadline, "no {}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and has not ended.
fn is_alive(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The words of a wrapper script, whose child writes its process id to a file.
fn wrapped(child: &str) -> [String; 3] {
    let script = format!("echo $$ > wrapper-$RANK; sh -c 'echo $$ > child-$RANK; {child}'; echo ends");
    ["sh", "-c", &script].map(str::to_owned)
}

#[test]
fn a_signal_reaches_the_trainers_behind_wrappers_and_all_end_with_a_checkpoint() {
    let corpus = corpus();
    let trainer = format!("exec {TRAIN_GPT2} {RECIPE} -d 64 -x 100000 -o out").replace('*', "\\*");
    let job = launch(&corpus, "-n 2", &wrapped(&trainer).each_ref().map(String::as_str)).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    signal(job.id(), "HUP");
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 1), "{}", stderr(&output));
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
    for rank in 0..2 {
        assert!(
            !is_alive(&pid_in(&corpus.path(&format!("child-{rank}")))),
            "the trainer of rank {rank} runs on"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn trainers_behind_wrappers_stop_with_a_checkpoint_when_the_launcher_is_killed() {
    let corpus = corpus();
    let trainer = format!("exec {TRAIN_GPT2} {RECIPE} -d 64 -x 100000 -o out").replace('*', "\\*");
    let mut job = launch(&corpus, "-n 2", &wrapped(&trainer).each_ref().map(String::as_str)).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    job.kill().unwrap();
    job.wait().unwrap();
    let killed = Instant::now();
    for rank in 0..2 {
        let pid = pid_in(&corpus.path(&format!("child-{rank}")));
        while is_alive(&pid) {
            assert!(killed.elapsed() < Duration::from_secs(20), "the trainer of rank {rank} runs on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
}

#[test]
fn the_children_of_a_wrapper_that_was_killed_end_before_a_restart() {
    let corpus = corpus();
    // With the files of the first attempt, the second one ends at once. A checkpoint may take
    // longer than ranks have to notice a failure.
    let child = "[ -e old-$RANK ] && exit 0; trap \"sleep 7; touch saved-$RANK; exit 0\" TERM; \
                 touch old-$RANK; while :; do sleep 1; done";
    let command = wrapped(child);
    let words = command.each_ref().map(String::as_str).into_iter().chain(["sh", "-y", "1"]);
    let mut command = launch(&corpus, "-n 2 --restarts 1", &words.collect::<Vec<_>>());
    let job = command.spawn().unwrap();
    let children = [0, 1].map(|rank| pid_in(&corpus.path(&format!("child-{rank}"))));
    while !corpus.path("old-0").exists() || !corpus.path("old-1").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(pid_in(&corpus.path("wrapper-1")), "KILL");
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("rank 1 was killed by SIGKILL; ending the others"), "{said}");
    assert!(said.contains("restart 1 of 1"), "{said}");
    assert!(!children.iter().any(|pid| is_alive(pid)));
    assert!(corpus.path("saved-0").exists() && corpus.path("saved-1").exists(), "{said}");
}

#[test]
fn a_second_signal_ends_ranks_that_hang() {
    let corpus = corpus();
    let script = "trap \"\" INT TERM; echo $$ > pid-$RANK; while :; do sleep 1; done";
    let job = launch(&corpus, "-n 2", &["sh", "-c", script]).spawn().unwrap();
    let ranks = [0, 1].map(|rank| pid_in(&corpus.path(&format!("pid-{rank}"))));
    let began = Instant::now();
    signal(job.id(), "INT");
    // Later than signals that belong to the first one.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(ranks.iter().all(|pid| is_alive(pid)));
    signal(job.id(), "INT");
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    assert!(!ranks.iter().any(|pid| is_alive(pid)));
}

#[test]
fn output_without_an_end_is_cut_and_a_pipe_that_stays_open_is_left() {
    let corpus = corpus();
    let began = Instant::now();
    // The process that keeps the pipe open has left the group.
    let script = "head -c 200000 /dev/zero | tr '\\0' x; echo; setsid sleep 30 & exit 0";
    let output = launch(&corpus, "-n 1", &["sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    let lengths: Vec<usize> = stdout(&output).lines().map(str::len).collect();
    assert_eq!(lengths, [65540, 65540, 65540, 3396]);
}
