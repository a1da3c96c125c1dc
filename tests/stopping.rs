//! Stopping a run, by a signal or in time, and fatal errors: nothing that was computed is lost, and
//! the run that goes on is bit for bit the one that never stopped.
#![cfg(unix)]

mod common;

use common::{Corpus, as_rank, losses, refuse, signal, stderr, stdout, steps, succeed, wait_for_steps};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const FLAGS: &str = "-l 1e-3 -d 64 --threads 1";

/// Starts the processes of a run; standard output of rank 0 goes to `stdout-0`.
fn start(corpus: &Corpus, world_size: usize, flags: &str) -> Vec<Child> {
    let rank = |rank: usize| {
        let mut command = corpus.train();
        command.args(FLAGS.split(' ')).args(flags.split(' '));
        let shown = std::fs::File::create(corpus.path(&format!("stdout-{rank}"))).unwrap();
        as_rank(&mut command, rank, world_size).stdout(shown).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..world_size).map(rank).collect()
}

/// Waits until a file holds some text.
fn wait_for(path: &Path, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(path).is_ok_and(|found| found.contains(text)) {
        assert!(Instant::now() < deadline, "{text:?} took more than a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs to step `last` without a stop, goes on to it from the checkpoint in `dir`, and compares.
fn compare_with_an_unbroken_run(corpus: &Corpus, dir: &str, flags: &str, last: usize) {
    let whole = format!("{dir}-whole");
    let run = |dir: &str, more: &str| {
        let all = format!("{FLAGS} {flags} -x {last} -o {dir}{more}");
        succeed(corpus.train().args(all.split(' ')));
    };
    run(dir, " -y 1");
    run(&whole, "");
    let read = |dir: &str, name: &str| std::fs::read(corpus.path(dir).join(name)).unwrap();
    assert_eq!(losses(&corpus.path(dir)), losses(&corpus.path(&whole)));
    let text = |dir: &str| String::from_utf8(read(dir, "main.log")).unwrap();
    assert_eq!(text(dir), text(&whole), "no line is lost or doubled");
    for name in [format!("model_{last:08}.bin"), format!("state_{last:08}_00000.bin")] {
        assert!(read(dir, &name) == read(&whole, &name), "{name} differs");
    }
}

fn has_checkpoint(corpus: &Corpus, dir: &str, step: usize) -> bool {
    corpus.path(dir).join(format!("DONE_{step:08}")).exists()
}

/// Two signals within milliseconds are what `timeout`, launchers and a dying parent send.
#[test]
fn every_signal_and_every_pair_of_them_leaves_a_checkpoint() {
    let corpus = Corpus::new();
    for (first, second, code) in [
        ("INT", None, 2),
        ("USR1", None, 10),
        ("HUP", Some("HUP"), 1),
        ("TERM", Some("TERM"), 15),
        ("INT", Some("TERM"), 2),
    ] {
        let dir = format!("{first}-{}", second.unwrap_or("alone"));
        let run = start(&corpus, 1, &format!("-x 100000 -o {dir}")).remove(0);
        wait_for_steps(&corpus.path(&dir), 3);
        signal(run.id(), first);
        second.iter().for_each(|second| {
            std::thread::sleep(Duration::from_millis(2));
            // It may have ended already.
            let _ = Command::new("kill").args([&format!("-{second}"), &run.id().to_string()]).output();
        });
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + code), "{dir}: {}", stderr(&output));
        let done = steps(&corpus.path(&dir));
        assert!(has_checkpoint(&corpus, &dir, done), "{dir}: no checkpoint of step {done}");
        let said = stderr(&output);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[0].starts_with(&format!("SIG{first}: ")), "{said}");
        let again = if first == "INT" { "press Ctrl-C again" } else { "send a second signal" };
        assert!(lines[0].contains(&format!("then writing a checkpoint to {dir}; {again}")), "{said}");
        let last = format!("stopped after step {done}; to continue, run the same command with -y 1");
        assert_eq!(lines[1], last);
        compare_with_an_unbroken_run(&corpus, &dir, "-n 0", done + 2);
    }
}

#[test]
fn a_run_under_nohup_ignores_a_hangup() {
    let corpus = Corpus::new();
    let train = corpus.train();
    let mut command = Command::new("sh");
    command.current_dir(corpus.dir.path()).args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    command.arg(train.get_program()).args(train.get_args()).args("-x 100000 -o out".split(' '));
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    signal(run.id(), "HUP");
    let done = steps(&corpus.path("out"));
    wait_for_steps(&corpus.path("out"), done + 20);
    signal(run.id(), "TERM");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15));
    assert!(!stderr(&output).contains("SIGHUP"), "{}", stderr(&output));
}

#[test]
fn a_signal_long_after_the_first_ends_at_once() {
    let corpus = Corpus::new();
    // A step of many seconds.
    let run = start(&corpus, 1, "-x 10 -d 6400000 -o out").remove(0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !corpus.path("out/main.log").exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    signal(run.id(), "TERM");
    std::thread::sleep(Duration::from_millis(2200));
    let again = Instant::now();
    signal(run.id(), "TERM");
    let output = run.wait_with_output().unwrap();
    assert!(again.elapsed() < Duration::from_secs(1), "{:?}", again.elapsed());
    assert_eq!(output.status.signal(), Some(15));
    assert!(stderr(&output).starts_with("SIGTERM: finishing step 1, then writing"), "{}", stderr(&output));
}

#[test]
fn a_signal_during_set_up_ends_at_once() {
    let corpus = Corpus::new();
    let mut command = corpus.train();
    command.args("--channels 512 -x 10 -o out".split(' '));
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("memory in all")).unwrap().unwrap();
    signal(run.id(), "TERM");
    let output = run.wait_with_output().unwrap();
    assert_eq!((output.status.signal(), stderr(&output).as_str()), (Some(15), ""));
    let left: Vec<_> =
        std::fs::read_dir(corpus.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"], "a lock without a process locks nothing");
    succeed(corpus.train().args("-x 1 -o out".split(' ')));
}

/// Every evaluation here would take many seconds.
#[test]
fn a_signal_cuts_evaluations_short_and_they_run_again() {
    let corpus = Corpus::new();
    write_questions(&corpus.path("h.jsonl"), 20_000);
    for (name, world_size, flags) in [
        ("validation", 1, "-v 5 -m 100000"),
        ("validation", 2, "-v 5 -m 100000"),
        ("HellaSwag", 2, "-v 5 -m 2 -h 1 --hellaswag-data h.jsonl"),
        ("the sample", 2, "-s 5 -g 1000000"),
        ("the sample", 2, "-s 5 -g 1000000 -z 3"),
    ] {
        let dir = format!("{}-{world_size}{}", name.replace(' ', "-"), flags.len());
        let mut ranks = start(&corpus, world_size, &format!("-x 100000 {flags} -o {dir}"));
        match name {
            "validation" => wait_for(&corpus.path(&dir).join("main.log"), ""),
            "HellaSwag" => wait_for(&corpus.path(&dir).join("main.log"), "s:5 tel:"),
            _ => wait_for(&corpus.path("stdout-0"), "generating:"),
        }
        let began = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        signal(ranks[world_size - 1].id(), "TERM");
        if name == "the sample" && world_size > 1 {
            // Rank 0 draws alone, so a launcher's signal to all ranks is what counts.
            signal(ranks[0].id(), "TERM");
        }
        let output = ranks.remove(0).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + 15), "{dir}: {}", stderr(&output));
        assert!(began.elapsed() < Duration::from_secs(20), "{dir}: {:?}", began.elapsed());
        for rank in ranks {
            assert_eq!(rank.wait_with_output().unwrap().status.code(), Some(128 + 15), "{dir}");
        }
        let step = if name == "validation" { 0 } else { 5 };
        assert!(has_checkpoint(&corpus, &dir, step), "{dir}");
        let log = std::fs::read_to_string(corpus.path(&dir).join("main.log")).unwrap();
        let reported = if name == "HellaSwag" { "s:5 eval:" } else { "s:0 tel:" };
        assert!(!log.contains(reported), "{dir}: {log}");
        if world_size == 1 || name == "the sample" {
            assert!(
                stderr(&output).contains(&format!("SIGTERM: cutting {name} short")),
                "{}",
                stderr(&output)
            );
        }
    }
}

/// Writes HellaSwag questions that a model of 16 positions can answer.
fn write_questions(path: &Path, count: usize) {
    let question = |i: usize| {
        format!(
            "{{\"ctx\": \"A man\", \"label\": {}, \"endings\": [\"runs.\", \"eats a lot.\", \"sleeps.\", \
             \"sings to them.\"]}}\n",
            i % 4
        )
    };
    std::fs::write(path, (0..count).map(question).collect::<String>()).unwrap();
}

/// Validation at step 5 is cut in the middle, and the resumed run has the log of an unbroken one.
#[test]
fn a_resumed_run_repeats_the_evaluation_that_was_cut() {
    let corpus = Corpus::new();
    let flags = "-v 5 -m 3000";
    for attempt in 1.. {
        let dir = format!("out{attempt}");
        let run = start(&corpus, 1, &format!("{flags} -x 100000 -o {dir}")).remove(0);
        wait_for_steps(&corpus.path(&dir), 5);
        std::thread::sleep(Duration::from_millis(30));
        signal(run.id(), "INT");
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + 2));
        if stderr(&output).contains("cutting validation short") {
            let log = std::fs::read_to_string(corpus.path(&dir).join("main.log")).unwrap();
            assert!(log.contains("s:0 tel:") && !log.contains("s:5 tel:"), "{log}");
            compare_with_an_unbroken_run(&corpus, &dir, flags, 8);
            break;
        }
        assert!(attempt < 5, "never in validation: {}", stderr(&output));
    }
}

#[test]
fn max_hours_end_a_run_in_time_with_a_checkpoint() {
    let corpus = Corpus::new();
    for world_size in [1, 2] {
        let dir = format!("out{world_size}");
        let began = Instant::now();
        // 2.52 s.
        let ranks = start(&corpus, world_size, &format!("--max-hours 0.0007 -x 1000000 -v 50 -m 5 -o {dir}"));
        let outputs: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        let done = steps(&corpus.path(&dir));
        for (rank, output) in outputs.iter().enumerate() {
            assert_eq!(output.status.code(), Some(75), "rank {rank}: {}", stderr(output));
        }
        let last =
            format!("--max-hours: stopped after step {done}; to continue, run the same command with -y 1\n");
        assert_eq!(stderr(&outputs[0]), last);
        assert!(has_checkpoint(&corpus, &dir, done) && done > 3, "step {done}");
        if world_size == 1 {
            compare_with_an_unbroken_run(&corpus, &dir, "-v 50 -m 5", done + 2);
        }
    }
    // Within the hours, the last step is reached.
    let output = succeed(corpus.train().args("--max-hours 1 -x 5 -o short".split(' ')));
    assert!(stdout(&output).contains("step    5/5"));
    // A job that is queued again and again must not go on for ever.
    refuse(corpus.train().args("--max-hours 0.00001 -x 5 -o never".split(' ')), &["--max-hours", "raise it"]);
}

/// Makes tokens of a file invalid, in place.
fn spoil(corpus: &Corpus, name: &str, tokens: std::ops::Range<u64>) {
    let file = std::fs::OpenOptions::new().write(true).open(corpus.path(name)).unwrap();
    for token in tokens {
        file.write_all_at(&60_000u16.to_le_bytes(), 1024 + 2 * token).unwrap();
    }
}

/// The text was sound at the start of the run, when all of it is checked.
#[test]
fn a_token_that_goes_bad_costs_no_step() {
    for (world_size, name, flags) in [
        (1, "x_train_000002.bin", "-n 50 -sl 6"),
        (2, "x_train_000002.bin", "-n 50"),
        (1, "x_val_000000.bin", "-n 0 -v 40 -m 5"),
    ] {
        let corpus = Corpus::new();
        let good = std::fs::read(corpus.path(name)).unwrap();
        let ranks = start(&corpus, world_size, &format!("{flags} -x 100000 -o out"));
        wait_for_steps(&corpus.path("out"), 60);
        spoil(&corpus, name, 20..900);
        let outputs: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
        let done = steps(&corpus.path("out"));
        assert!(done >= 60 && has_checkpoint(&corpus, "out", done), "step {done}: {}", stderr(&outputs[0]));
        let said = stderr(&outputs[0]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((outputs[0].status.code(), lines.len()), (Some(2), 2), "{said}");
        assert!(
            lines[0].contains(&format!("wrote the checkpoint of step {done} to out; fix the error")),
            "{said}"
        );
        if world_size == 1 {
            assert!(lines[1].contains(&format!("{name}: token ")) && lines[1].contains("60000"), "{said}");
            std::fs::write(corpus.path(name), good).unwrap();
            compare_with_an_unbroken_run(&corpus, "out", flags, done + 10);
        }
    }
}

#[test]
fn a_full_disk_of_logs_costs_no_step() {
    let corpus = Corpus::new();
    std::fs::create_dir(corpus.path("out")).unwrap();
    // A limit on file size stands in for a full disk: the log reaches it long before a checkpoint.
    let padding = "x".repeat(9_000_000);
    let run = |more: &str| {
        let flags = format!("{FLAGS} -x 40 -n 10 -o out{more}");
        let train = corpus.train();
        let mut limited = Command::new("sh");
        limited.current_dir(corpus.dir.path());
        limited.args(["-c", "trap '' XFSZ; ulimit -f 18000; exec \"$@\"", "sh"]).arg(train.get_program());
        limited.args(train.get_args()).args(flags.split(' ')).output().unwrap()
    };
    let stop = run(" --max-hours 1");
    assert!(stop.status.success(), "{}", stderr(&stop));
    common::forget_after(&corpus.path("out"), 20);
    let log = corpus.path("out/metrics.jsonl");
    let old = std::fs::read_to_string(&log).unwrap();
    // Room for two or three more lines, so that the log is full between two checkpoints.
    let kept = &old[..old.find("{\"step\":20,").unwrap()];
    let used = padding.len() + kept.len() + 500;
    let note = format!("{{\"note\": \"{padding}{}\"}}\n", "x".repeat(18_000 * 512 - used));
    std::fs::write(&log, note + kept).unwrap();
    let output = run(" -y 1");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("metrics.jsonl: cannot write to the log"), "{said}");
    let saved = said.split("wrote the checkpoint of step ").nth(1).and_then(|text| text.split(' ').next());
    let saved: usize = saved.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    assert!((21..30).contains(&saved) && has_checkpoint(&corpus, "out", saved), "{saved}");
    std::fs::write(&log, old).unwrap();
    compare_with_an_unbroken_run(&corpus, "out", "-n 10", 40);
}
