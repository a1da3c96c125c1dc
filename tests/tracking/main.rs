//! Trackers that follow real runs: each line of the log arrives once, whatever fails or is killed.

#[path = "../common/mod.rs"]
mod common;
mod server;

use common::{Corpus, TRAIN_GPT2, WARPSMITH, refuse, signal, stderr, succeed, wait_for_steps};
use server::{Fault, Run, Server};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use warpsmith::track::{Line, events};

/// A run of a few steps with all kinds of lines; more flags may follow.
fn train(corpus: &Corpus, flags: &str) -> Command {
    let mut command = corpus.train();
    command.args("-o out -v 4 -m 1 -s 6 -g 4 -n 10".split(' ')).args(flags.split(' '));
    clean(&mut command);
    command
}

fn track(corpus: &Corpus, flags: &str) -> Command {
    let mut command = common::warpsmith(corpus.dir.path(), "track out");
    command.args(flags.split(' '));
    clean(&mut command);
    command
}

/// Removes what decides about connections from an environment.
fn clean(command: &mut Command) {
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_TOKEN"] {
        command.env_remove(name);
    }
    command.env_remove("MLFLOW_TRACKING_USERNAME");
}

fn log(corpus: &Corpus) -> Vec<Line> {
    Line::parse_all(&fs::read(corpus.path("out/metrics.jsonl")).unwrap())
}

/// The metrics of the log, by name and step, without those that measure time or memory.
fn logged(corpus: &Corpus) -> Vec<(String, u64, f64)> {
    let of_line = |line: Line| line.numbers.into_iter().map(move |(name, value)| (name, line.step, value));
    measured(log(corpus).into_iter().flat_map(of_line).collect())
}

fn measured(mut metrics: Vec<(String, u64, f64)>) -> Vec<(String, u64, f64)> {
    metrics.retain(|(name, ..)| !["ms", "tok_per_s"].contains(&name.as_str()));
    metrics.retain(|(name, ..)| !name.ends_with("rss_bytes"));
    metrics.retain(|(name, ..)| !name.starts_with("system/"));
    metrics.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    metrics
}

/// Checks that a server has all of a run's log, once.
fn expect_all(corpus: &Corpus, run: &Run) {
    let metrics =
        run.metrics.iter().map(|(name, step, value)| (name.clone(), *step, value.as_f64().unwrap()));
    assert_eq!(measured(metrics.collect()), logged(corpus));
    let times = run.metrics.iter().filter(|(name, ..)| name == "ms").count();
    assert_eq!(times, log(corpus).iter().filter(|line| line.numbers.iter().any(|n| n.0 == "ms")).count());
}

#[test]
fn a_run_arrives_whole() {
    let (corpus, server) = (Corpus::new(), Server::start());
    let output = succeed(&mut train(&corpus, &format!("-x 20 --mlflow {}", server.url())));
    assert_eq!(stderr(&output), "");
    let run = server.run();
    expect_all(&corpus, &run);
    assert_eq!((run.name.as_str(), run.status.as_str()), ("out", "FINISHED"));
    assert_eq!(run.params["num_layers L"], "2");
    assert_eq!(run.params["max_steps"], "20");
    assert!(run.tags["mlflow.source.name"].starts_with("train_gpt2 "));
    let memory = run.metrics.iter().filter(|m| m.0 == "system/process_memory_usage_megabytes");
    assert_eq!(memory.count(), if cfg!(target_os = "linux") { 20 } else { 0 });
    let state = server.state();
    let samples = log(&corpus).into_iter().filter_map(|line| Some((line.step, line.sample?)));
    let expected: Vec<(String, Vec<u8>)> = samples
        .map(|(step, sample)| {
            (format!("0/0/artifacts/samples/step_{step:08}_0.txt"), sample.text.into_bytes())
        })
        .collect();
    let found = state.artifacts.iter().filter(|(name, _)| name.contains("samples/"));
    assert_eq!(found.map(|(name, text)| (name.clone(), text.clone())).collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 4, "steps 6, 12, 18 and 20");
    assert!(state.artifacts["0/0/artifacts/plots/plot.png"].starts_with(b"\x89PNG"));
}

#[test]
fn a_server_that_is_away_gets_everything_later() {
    let (corpus, server) = (Corpus::new(), Server::start());
    server.fault(Some(Fault::Away));
    let output = succeed(&mut train(&corpus, &format!("-x 12 --mlflow {}", server.url())));
    let said = stderr(&output);
    let command = format!("to send the rest: warpsmith track out --mlflow {}", server.url());
    assert!(said.contains("training goes on") && said.contains(&command), "{said}");
    assert!(said.contains(&format!("up to {} lines", log(&corpus).len())), "{said}");
    refuse(&mut track(&corpus, &format!("--mlflow {}", server.url())), &["--mlflow", "cannot reach"]);
    server.fault(Some(Fault::Unavailable));
    refuse(&mut track(&corpus, &format!("--mlflow {}", server.url())), &["--mlflow", "503"]);
    server.fault(None);
    for _ in 0..2 {
        succeed(&mut track(&corpus, &format!("--mlflow {}", server.url())));
        expect_all(&corpus, &server.run());
        assert_eq!(server.run().status, "FINISHED");
    }
}

#[test]
fn a_lost_answer_doubles_nothing() {
    let (corpus, server) = (Corpus::new(), Server::start());
    succeed(&mut train(&corpus, "-x 20"));
    server.fault(Some(Fault::LosesAnswers));
    let mut failures = 0;
    while !track(&corpus, &format!("--mlflow {}", server.url())).output().unwrap().status.success() {
        failures += 1;
        assert!(failures < 40);
        // Otherwise each attempt would fail at the same place.
        server.fault((failures % 3 != 2).then_some(Fault::LosesAnswers));
    }
    assert!(failures > 0);
    server.fault(None);
    succeed(&mut track(&corpus, &format!("--mlflow {}", server.url())));
    expect_all(&corpus, &server.run());
}

/// Kills a run between two checkpoints, and goes on with it.
fn kill_and_resume(corpus: &Corpus, flags: &str, arrived: impl Fn() -> bool) {
    let mut child = train(corpus, &format!("-x 100000 {flags}")).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !arrived() {
        assert!(start.elapsed() < Duration::from_secs(300), "nothing arrived");
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_for_steps(&corpus.path("out"), 14);
    child.kill().unwrap();
    child.wait().unwrap();
    // As if the last checkpoints had not been written, so that steps run again.
    common::forget_after(&corpus.path("out"), 10);
    let steps = common::steps(&corpus.path("out")) + 10;
    succeed(&mut train(corpus, &format!("-x {steps} -y 1 {flags}")));
    assert_eq!(log(corpus).iter().filter(|line| line.numbers.iter().any(|n| n.0 == "loss")).count(), steps);
}

#[test]
fn a_killed_run_that_resumes_is_one_run_without_doubles() {
    let (corpus, server) = (Corpus::new(), Server::start());
    let flags = format!("--mlflow {} -k constant", server.url());
    kill_and_resume(&corpus, &flags, || {
        server.state().runs.first().is_some_and(|run| run.metrics.len() > 60)
    });
    let run = server.run();
    expect_all(&corpus, &run);
    assert_eq!(run.status, "FINISHED");
    assert_eq!((run.params["max_steps"].as_str(), run.params["resume"].as_str()), ("100000", "0"));
    assert_eq!(run.tags["resumed.resume"], "1");
}

/// The events that count in the files of a run.
fn events_of(corpus: &Corpus) -> Vec<(u64, f64)> {
    let mut files: Vec<_> =
        fs::read_dir(corpus.path("out/tensorboard")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut places = Vec::new();
    files.iter().for_each(|path| events::read(path, &mut places).unwrap());
    places
}

fn expect_events(corpus: &Corpus) {
    let lines: Vec<_> = log(corpus).iter().map(|line| (line.step, line.time.unwrap())).collect();
    assert_eq!(events_of(corpus), lines);
}

#[test]
fn event_files_hold_the_log_of_a_run_that_was_killed() {
    let corpus = Corpus::new();
    kill_and_resume(&corpus, "--tensorboard 1 -k constant", || {
        corpus.path("out/tensorboard").exists() && events_of(&corpus).len() > 12
    });
    expect_events(&corpus);
    fs::remove_dir_all(corpus.path("out/tensorboard")).unwrap();
    succeed(&mut track(&corpus, "--tensorboard"));
    expect_events(&corpus);
}

#[test]
fn a_full_disk_costs_no_event() {
    let corpus = Corpus::new();
    succeed(&mut train(&corpus, "-x 30"));
    // A limit on file size stands in for a full disk.
    let limit = |blocks: usize| {
        let mut limited = Command::new("sh");
        limited.current_dir(corpus.dir.path());
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        limited.args(["-c", &script, "sh", WARPSMITH, "track", "out", "--tensorboard"]);
        limited
    };
    for blocks in [2, 3, 4] {
        refuse(&mut limit(blocks), &["--tensorboard: cannot write", "tfevents"]);
    }
    succeed(&mut track(&corpus, "--tensorboard"));
    expect_events(&corpus);
}

#[test]
fn a_token_is_sent_and_a_refusal_is_one_line() {
    let (corpus, server) = (Corpus::new(), Server::start());
    succeed(&mut train(&corpus, "-x 2"));
    server.fault(Some(Fault::WantsToken));
    let flags = format!("--mlflow {}", server.url());
    refuse(&mut track(&corpus, &flags), &["401", "no token"]);
    let mut command = track(&corpus, &flags);
    succeed(command.env("MLFLOW_TRACKING_TOKEN", server::TOKEN).env("MLFLOW_EXPERIMENT_NAME", "gpt2"));
    assert_eq!(server.state().experiments, ["Default", "gpt2"]);
    expect_all(&corpus, &server.run());
}

#[test]
fn a_run_is_followed_by_one_process() {
    let corpus = Corpus::new();
    let mut child = train(&corpus, "-x 100000 --tensorboard 1").stdout(Stdio::null()).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 2);
    refuse(&mut track(&corpus, "--tensorboard"), &["out is in use by process"]);
    signal(child.id(), "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    expect_events(&corpus);
    let last = log(&corpus).pop().unwrap();
    assert_eq!(last.end.map(|end| end.name()), Some("stopped"));
}

#[test]
fn flags_that_cannot_be_honored_are_refused() {
    let corpus = Corpus::new();
    let train = |flags: &str| {
        let mut command = Command::new(TRAIN_GPT2);
        command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -e d12".split(' '));
        command.args(flags.split(' '));
        command
    };
    refuse(&mut train("--tensorboard 1"), &["--tensorboard 1", "-o/--output-dir"]);
    refuse(&mut train("--mlflow http://a:1"), &["--mlflow", "-o/--output-dir"]);
    refuse(&mut train("-o out --mlflow a:1"), &["--mlflow", "a URL such as", "a:1"]);
    let track = |line: &str| common::warpsmith(corpus.dir.path(), line);
    refuse(&mut track("track ."), &["nowhere to pass the run on to"]);
    refuse(&mut track("track no --tensorboard"), &["no: expected the directory of a run"]);
    refuse(&mut track("track . --tensorboard"), &["metrics.jsonl"]);
    assert!(!Path::new(&corpus.path("tensorboard")).exists(), "nothing is left behind");
}
