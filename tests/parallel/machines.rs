//! Machines simulated by network namespaces.

use super::{RECIPE, corpus, run};
use crate::common::{Corpus, TRAIN_GPT2, losses, stderr, stdout, wait_for_steps};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Two machines of two processes each.
fn on_machines(corpus: &Corpus, own_flags: &[&str], flags: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dev/machines.sh");
    let mut command = Command::new(script);
    command
        .env("WARPSMITH_TOKEN", "the secret of this job")
        .current_dir(corpus.dir.path())
        .args(own_flags)
        .args(["2", "2", TRAIN_GPT2]);
    command.args(RECIPE.split(' ')).args(flags.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
#[cfg_attr(
    not(has_network_namespaces),
    ignore = "needs network namespaces (as root: dev/machines.sh 1 1 true says more; then touch build.rs)"
)]
fn two_machines_train_as_one_does() {
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 4, "-x 5", "one");
    for (flags, out) in [(&[][..], "two"), (&["-6"], "two-6")] {
        let mut command = on_machines(&corpus, flags, &format!("-x 5 -o {out}"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("4 processes over TCP"), "{}", stdout(&output));
        assert_eq!(losses(&corpus.path(out)), alone, "bit for bit");
    }
}

#[test]
#[cfg_attr(
    not(has_network_namespaces),
    ignore = "needs network namespaces (as root: dev/machines.sh 1 1 true says more; then touch build.rs)"
)]
fn a_machine_that_is_cut_off_is_named_on_both_sides() {
    let corpus = corpus();
    let flags = ["-c", "cut"];
    let mut command = on_machines(&corpus, &flags, "-d 128 -x 100000 -o out");
    let job = command.spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    std::fs::write(corpus.path("cut"), "").unwrap();
    let cut = Instant::now();
    let output = job.wait_with_output().unwrap();
    // A minute without heartbeats, some seconds for last messages, and slack for a busy machine.
    assert!(cut.elapsed() < Duration::from_secs(100), "it took {:?}", cut.elapsed());
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    for rank in 0..4 {
        let own = said.lines().filter(|line| line.starts_with(&format!("[{rank}]")));
        // Rank 0 also says which checkpoint it wrote.
        let own: Vec<&str> = own.filter(|line| !line.contains("wrote the checkpoint of step")).collect();
        let there = |other: &usize| own[0].contains(&format!("rank {other} has sent no heartbeat for 60 s"));
        let blamed: Vec<usize> = (0..4).filter(there).collect();
        assert!(own.len() == 1 && blamed.len() == 1 && blamed[0] / 2 != rank / 2, "{said}");
    }
}
