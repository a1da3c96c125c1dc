//! The meeting of ranks, with pauses, strangers and processes that do not belong to the run.

use super::{DATA, RECIPE, corpus, finish};
use crate::common::{Corpus, TRAIN_GPT2, losses, signal, stderr};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A rank that meets the others on `port`.
fn rank(corpus: &Corpus, rank: usize, world_size: usize, port: u16, flags: &str) -> Command {
    let mut command = Command::new(TRAIN_GPT2);
    command.current_dir(corpus.dir.path()).args(format!("{RECIPE} -x 3 {flags}").split_whitespace());
    let numbers =
        [("-pn", world_size), ("-pr", rank)].map(|(flag, number)| [flag.to_owned(), number.to_string()]);
    command.args(numbers.as_flattened()).args(["-pi", "tcp", "-ps", &format!("127.0.0.1:{port}")]);
    command.env("WARPSMITH_TOKEN", SECRET).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until rank 0 listens, and keeps a connection to it.
fn stranger(port: u16) -> TcpStream {
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
fn a_rank_0_that_was_paused_at_the_start_still_trains_with_the_others() {
    let (corpus, port, flags) = (corpus(), free_port(), "-d 96 -o out");
    let mut ranks = vec![rank(&corpus, 0, 3, port, flags).spawn().unwrap()];
    drop(stranger(port));
    signal(ranks[0].id(), "STOP");
    ranks.extend((1..3).map(|number| rank(&corpus, number, 3, port, flags).spawn().unwrap()));
    sleep(Duration::from_secs(3));
    signal(ranks[0].id(), "CONT");
    for (number, output) in finish(ranks).iter().enumerate() {
        assert_eq!(output.status.code(), Some(0), "rank {number}: {}", stderr(output));
    }
    assert_eq!(losses(&corpus.path("out")).len(), 3);
}

#[test]
fn strangers_do_not_hinder_a_run_and_a_rank_without_the_secret_is_named() {
    let (corpus, port) = (corpus(), free_port());
    let first = rank(&corpus, 0, 2, port, "-o out").spawn().unwrap();
    let idle: Vec<TcpStream> = (0..40).map(|_| stranger(port)).collect();
    let _ = stranger(port).write_all(b"{\"run\":\"\",\"world_size\":7,\"rank\":1,\"port\":1}\n");
    let mut intruder = rank(&corpus, 1, 2, port, "-o out");
    let intruder = intruder.env("WARPSMITH_TOKEN", "fedcba9876543210").spawn().unwrap();
    sleep(Duration::from_millis(1500));
    let began = Instant::now();
    let second = rank(&corpus, 1, 2, port, "-o out").spawn().unwrap();
    let outputs = finish(vec![first, second]);
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(losses(&corpus.path("out")).len(), 3);
    drop(idle);
    // It says for whom it waits and why, and a signal ends it at once.
    let signaled = Instant::now();
    signal(intruder.id(), "TERM");
    let output = intruder.wait_with_output().unwrap();
    assert!(signaled.elapsed() < Duration::from_secs(2) && output.status.code().is_none(), "{output:?}");
    let said = stderr(&output);
    let expected = format!(
        "rank 1: warning: waiting for rank 0 at 127.0.0.1:{port} (-pn 2): the process there does not know the secret"
    );
    assert!(said.starts_with(&expected) && said.lines().count() == 1, "{said}");
}

#[test]
fn a_rank_says_at_once_for_whom_it_waits() {
    let (corpus, port) = (corpus(), free_port());
    let mut alone = Command::new(TRAIN_GPT2);
    alone.current_dir(corpus.dir.path()).args(format!("{DATA} -e small.bin -b 1 -t 32 -x 1").split(' '));
    alone.envs([("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")]);
    alone.env("MASTER_PORT", port.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let alone = alone.spawn().unwrap();
    sleep(Duration::from_secs(3));
    signal(alone.id(), "TERM");
    let output = alone.wait_with_output().unwrap();
    let expected = format!(
        "rank 0: warning: waiting at localhost:{port} for rank 1 of 2 (WORLD_SIZE=2 in the environment)\n"
    );
    assert_eq!(stderr(&output), expected);
}

#[test]
fn a_meeting_that_leaves_the_machine_without_a_secret_is_warned_of() {
    let corpus = corpus();
    let port = free_port();
    let start = |number: usize| {
        let mut command = rank(&corpus, number, 2, port, "-o out");
        command.args(["-ps", &format!("0.0.0.0:{port}")]).env_remove("WARPSMITH_TOKEN").spawn().unwrap()
    };
    let outputs = finish(vec![start(0), start(1)]);
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let warning = format!("rank 0: warning: whoever reaches port {port} can join this run");
    assert!(stderr(&outputs[0]).contains(&warning), "{}", stderr(&outputs[0]));
    assert!(stderr(&outputs[0]).contains("set WARPSMITH_TOKEN to the same random text for all ranks"));
}
