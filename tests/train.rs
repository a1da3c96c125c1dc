//! `train_gpt2` as a user runs it: its files, that it learns, and that stopping it loses nothing.

mod common;

use common::{Corpus, losses, stderr, stdout, succeed};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_run_learns_and_leaves_logs_and_checkpoints() {
    let corpus = Corpus::new();
    let output =
        succeed(corpus.train().args("-l 1e-2 -x 30 -v 10 -m 5 -s 15 -g 5 -n 10 -nk 2 -o out".split(' ')));
    let out = corpus.path("out");
    let losses = losses(&out);
    assert_eq!(losses.len(), 30);
    let (first, last): (f64, f64) = (losses[0].1.parse().unwrap(), losses[29].1.parse().unwrap());
    assert!(last < first - 2.0, "from {first} to {last}");

    let text = stdout(&output);
    for expected in
        ["step   30/30 | loss ", "val loss ", "generating:\n---\n", "total average iteration time: "]
    {
        assert!(text.contains(expected), "{expected:?} not in\n{text}");
    }
    let log = std::fs::read_to_string(out.join("main.log")).unwrap();
    assert_eq!(log.lines().filter(|l| l.contains(" trl:")).count(), 30);
    assert_eq!(log.lines().filter(|l| l.contains(" tel:")).count(), 4, "at 0, 10, 20 and the end");
    assert!(!out.join("DONE_00000010").exists(), "-nk 2 keeps two");
    for name in
        ["DONE_00000020", "DONE_00000030", "model_00000030.bin", "state_00000030_00000.bin", "model_best.bin"]
    {
        assert!(out.join(name).exists(), "{name}");
    }
}

#[test]
fn zero_turns_every_interval_off() {
    let corpus = Corpus::new();
    let text = stdout(&succeed(corpus.train().args("-x 2 -v 0 -s 0 -n 0 -h 0".split(' '))));
    assert!(
        !text.contains("val loss") && !text.contains("generating") && text.contains("step    2/2"),
        "{text}"
    );
}

/// The type depends on this machine's CPU. On every machine the run names the type it chose, and
/// computes in it.
#[test]
fn auto_takes_a_type_and_says_which() {
    let corpus = Corpus::new();
    let run = |name: &str, flags: &str| {
        let output =
            succeed(corpus.train().args("-x 3 -o".split(' ')).arg(name).args(flags.split_whitespace()));
        (stdout(&output), losses(&corpus.path(name)))
    };
    let (text, auto) = run("auto", "--dtype auto");
    let row = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let taken = if row(&text, "| dtype").unwrap().contains("auto (bf16)") { "bf16" } else { "f32" };
    assert!(row(&text, "| running on").unwrap().contains(&format!(", {taken}")), "{text}");
    assert!(row(&text, "| dtype").unwrap().contains(&format!("auto ({taken})")), "{text}");
    assert_eq!(auto, run("named", &format!("--dtype {taken}")).1);
    let (text, _) = run("default", "");
    assert!(row(&text, "| dtype").unwrap().contains(" f32 "), "{text}");
}

#[test]
fn auto_resumes_in_the_type_of_the_checkpoint() {
    let corpus = Corpus::new();
    let run = |name: &str, flags: &str| {
        let output = succeed(corpus.train().args(["-n", "2", "-o", name]).args(flags.split_whitespace()));
        (stdout(&output), losses(&corpus.path(name)))
    };
    let (_, whole) = run("whole", "--dtype f32 -x 4");
    run("parts", "--dtype f32 -x 4");
    common::forget_after(&corpus.path("parts"), 2);
    let (text, parts) = run("parts", "--dtype auto -x 4 -y 1");
    assert!(text.contains("auto (f32)") && !text.contains("WARNING"), "{text}");
    assert_eq!(whole, parts);
    // A checkpoint from before the type was recorded resumes in the type of a new run.
    let file = corpus.path("parts/run_00000004.json");
    let old = std::fs::read_to_string(&file).unwrap();
    let mut old: serde_json::Value = serde_json::from_str(&old).unwrap();
    assert_eq!(old["trainer"]["operand_dtype"].as_str(), Some("f32"));
    old["trainer"].as_object_mut().unwrap().remove("operand_dtype");
    std::fs::write(&file, old.to_string()).unwrap();
    let (text, _) = run("parts", "--dtype auto -x 6 -y 1");
    assert!(text.contains("step    6/6") && !text.contains("WARNING"), "{text}");
}

#[test]
fn gradient_accumulation_and_recomputation_change_nothing_that_matters() {
    let corpus = Corpus::new();
    let run = |name: &str, flags: &str| {
        succeed(corpus.train().args(flags.split(' ')).args(["-x", "5", "-o", name]));
        losses(&corpus.path(name))
    };
    let base = run("r1", "-r 1");
    assert_eq!(base, run("r0", "-r 0"), "recomputing gives the same bits");
    assert_eq!(base, run("r2", "-r 2"), "recomputing gives the same bits");
    assert_eq!(base, run("threads", "--threads 1"), "the number of threads changes no bit");
    // Overfitting takes the first tokens of a shard, so two micro-batches of one row equal one of
    // two.
    let whole = run("whole", "-a 1 -d 32");
    let split = run("split", "-a 1 -b 1 -d 32");
    for (a, b) in whole.iter().zip(&split) {
        let (a, b): (f64, f64) = (a.1.parse().unwrap(), b.1.parse().unwrap());
        assert!((a - b).abs() <= 1e-5 * a, "{a} in one micro-batch, {b} in two");
    }
}

#[test]
fn resuming_continues_bit_for_bit() {
    let corpus = Corpus::new();
    let flags = "-l 1e-3 -u 5 -q 0.1 -d 64 -n 7";
    let run = |extra: &str| succeed(corpus.train().args(flags.split(' ')).args(extra.split(' ')));
    // 150 steps of 64 tokens over 8,000: several shards and epochs.
    run("-x 150 -o whole");
    run("-x 150 -o parts");
    // As if the process had died after step 70, before it wrote newer checkpoints.
    common::forget_after(&corpus.path("parts"), 70);
    let text = stdout(&run("-x 150 -o parts -y 1"));
    assert!(text.contains("checkpoint of step 70"), "{text}");
    assert_eq!(losses(&corpus.path("whole")), losses(&corpus.path("parts")));
    let log = |dir: &str| std::fs::read_to_string(corpus.path(dir).join("main.log")).unwrap();
    assert_eq!(log("whole"), log("parts"), "no line is lost or doubled");
    let model = |dir: &str| std::fs::read(corpus.path(dir).join("model_00000150.bin")).unwrap();
    assert!(model("whole") == model("parts"), "the final weights differ");
}

#[test]
fn killing_a_run_at_any_moment_loses_nothing_but_time() {
    let corpus = Corpus::new();
    let flags = "-l 1e-3 -x 60 -n 3 -nk 2 -y 1";
    succeed(corpus.train().args(flags.split(' ')).args(["-o", "whole"]));
    for attempt in 0.. {
        let mut child = corpus
            .train()
            .args(flags.split(' '))
            .args(["-o", "killed"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_millis(80 + 70 * attempt);
        let finished = loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                break true;
            }
            if Instant::now() >= deadline {
                child.kill().unwrap(); // SIGKILL: no warning, no clean-up
                child.wait().unwrap();
                break false;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if finished {
            break;
        }
    }
    assert_eq!(losses(&corpus.path("whole")), losses(&corpus.path("killed")));
}

#[cfg(unix)]
#[test]
fn sigterm_ends_a_run_with_a_checkpoint() {
    let corpus = Corpus::new();
    let mut child =
        corpus.train().args("-x 100000 -o out".split(' ')).stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !corpus.path("out/metrics.jsonl").exists() || losses(&corpus.path("out")).len() < 3 {
        assert!(Instant::now() < deadline, "the run never got going");
        std::thread::sleep(Duration::from_millis(20));
    }
    succeed(Command::new("kill").arg(child.id().to_string()));
    // The pipe must be read, or the child blocks once it is full.
    let mut text = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "no checkpoint of step {steps}");
}

#[test]
fn a_fresh_run_does_not_mix_with_an_old_one() {
    let corpus = Corpus::new();
    succeed(corpus.train().args("-x 2 -n 1 -o out".split(' ')));
    common::refuse(corpus.train().args("-x 2 -n 1 -o out".split(' ')), &["out", "-y 1"]);
    let log = fs_text(&corpus, "out/metrics.jsonl");
    let resume = |flags: &str, words: &[&str]| {
        common::refuse(corpus.train().args("-n 1 -o out -y 1".split(' ')).args(flags.split(' ')), words);
    };
    resume("-x 4 -b 4", &["-d 64", "-d 32"]);
    resume("-x 4 -t 8 -d 32 --context 16", &["-t 8", "-t 16"]);
    resume("-x 4 --shuffle llmc", &["--shuffle llmc", "--shuffle sequences"]);
    resume("-x 4 -i x_train_000001.bin", &["-i", "8000 in 2"]);
    resume("-x 4 --channels 32", &["--channels"]);
    resume("-x 1", &["-x 1", "step 2"]);
    assert_eq!(log, fs_text(&corpus, "out/metrics.jsonl"), "what is refused loses nothing");
}

/// Losses of the first steps in each order of the training text, with two rows per batch and with
/// one.
#[test]
fn only_llmcs_order_depends_on_the_micro_batch() {
    let corpus = Corpus::new();
    let run = |flags: &str| {
        let name = flags.replace(['-', ' '], "");
        succeed(corpus.train().args(flags.split(' ')).args("-d 64 -x 4 -o".split(' ')).arg(&name));
        losses(&corpus.path(&name))
            .into_iter()
            .map(|(_, loss, _)| loss.parse::<f64>().unwrap())
            .collect::<Vec<_>>()
    };
    let alike = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() <= 1e-5);
    let [sequences, off, llmc] = ["sequences", "off", "llmc"].map(|order| {
        let losses = run(&format!("--shuffle {order} -b 2"));
        assert_eq!(alike(&losses, &run(&format!("--shuffle {order} -b 1"))), order != "llmc", "{order}");
        losses
    });
    assert!(!alike(&sequences, &off) && !alike(&sequences, &llmc) && !alike(&off, &llmc));
    assert_eq!(run("-b 2"), sequences, "sequences is the default");
}

/// A checkpoint from before `--shuffle` goes on in llm.c's order, which only its micro-batch fits.
#[test]
fn early_checkpoints_go_on_in_llmcs_order() {
    let corpus = Corpus::new();
    let flags = "-n 3 -o out -d 64";
    let run = |extra: &str| stdout(&succeed(corpus.train().args(flags.split(' ')).args(extra.split(' '))));
    run("-x 6 --shuffle llmc");
    let whole = losses(&corpus.path("out"));
    common::forget_after(&corpus.path("out"), 3);
    let file = corpus.path("out/run_00000003.json");
    let mut old: serde_json::Value =
        serde_json::from_str(&fs_text(&corpus, "out/run_00000003.json")).unwrap();
    assert_eq!(old["trainer"].as_object_mut().unwrap().remove("shuffle").unwrap(), "llmc");
    std::fs::write(&file, old.to_string()).unwrap();
    let resume = |extra: &str, words: &[&str]| {
        common::refuse(
            corpus.train().args(flags.split(' ')).args("-x 6 -y 1".split(' ')).args(extra.split(' ')),
            words,
        );
    };
    resume("-b 1", &["-b 1", "-b 2"]);
    resume("--shuffle sequences", &["--shuffle sequences", "--shuffle llmc"]);
    let text = run("-x 6 -y 1");
    assert!(text.lines().any(|line| line.starts_with("| shuffle ") && line.contains(" llmc ")), "{text}");
    assert_eq!(losses(&corpus.path("out")), whole);
}

fn fs_text(corpus: &Corpus, name: &str) -> String {
    std::fs::read_to_string(corpus.path(name)).unwrap()
}

#[test]
fn presets_need_only_data() {
    let output = Command::new(common::TRAIN_GPT2)
        .args(["--preset", "gpt2-124m", "-n", "0", "-h", "0", "-i", "no/such*.bin"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such*.bin"), "{}", stderr(&output));
}
