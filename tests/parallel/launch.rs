//! The launcher `warpsmith launch`.

use super::{RECIPE, assert_alike, corpus, run, wait_for_steps};
use crate::common::{Corpus, TRAIN_GPT2, WARPSMITH, losses, refuse, stderr, stdout};
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
    assert_eq!(stderr(&output), "[1] no more\n");
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    refuse(&mut launch(&corpus, "-n 2", &["/nowhere/program"]), &["cannot start /nowhere/program"]);
    refuse(&mut launch(&corpus, "-n 0", &["true"]), &["-n/--processes", "found 0"]);
    refuse(&mut launch(&corpus, "-n 2 --restarts 1", &["true"]), &["--restarts 1", "-y 1"]);
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
    assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("rank 1 ended with signal: 9 (SIGKILL); restart 1 of 3"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).contains("checkpoint of step"), "{}", stdout(&output));
    assert_eq!(losses(&corpus.path("out")), whole, "bit for bit");
}

#[test]
fn a_signal_to_the_launcher_stops_the_run_with_a_checkpoint() {
    let corpus = corpus();
    let command = trainer("-d 64 -x 100000 -o out");
    let job = launch(&corpus, "-n 2", &command.each_ref().map(String::as_str)).spawn().unwrap();
    wait_for_steps(&corpus.path("out"));
    assert!(Command::new("kill").args(["-TERM", &job.id().to_string()]).status().unwrap().success());
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{}", stderr(&output));
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
}
