//! `train_gpt2` as a user runs it: its files, that it learns, and that stopping it loses nothing.

mod common;

use common::{Corpus, losses, signal, stderr, stdout, succeed, wait_for_steps};
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
    common::make_early(&corpus.path("parts"), 4, &["operand_dtype", "settings"]);
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
    wait_for_steps(&corpus.path("out"), 3);
    signal(child.id(), "TERM");
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
    resume("-x 4 -t 8", &["-t 8 makes a model of 8 positions", "add --context 16"]);
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
    common::make_early(&corpus.path("out"), 3, &["shuffle", "settings"]);
    let other = ["-x", "6", "-y", "1", "--shuffle", "sequences"];
    let refused = corpus.train().args(flags.split(' ')).args(other).output().unwrap();
    let said = stderr(&refused);
    assert_eq!((refused.status.code(), said.lines().count()), (Some(2), 2), "{said}");
    for word in ["warning: out/run_00000003.json", "--shuffle sequences", "--shuffle llmc"] {
        assert!(said.contains(word), "{said}");
    }
    let text = run("-x 6 -y 1");
    assert!(text.lines().any(|line| line.starts_with("| shuffle ") && line.contains(" llmc ")), "{text}");
    assert_eq!(losses(&corpus.path("out")), whole);
}

/// The step of each kind of warning that a resumed run gives, and the losses that follow.
#[test]
fn a_resumed_run_may_change_its_batch_and_says_what_differs() {
    let corpus = Corpus::new();
    let flags = "-l 1e-3 -n 4 -d 64";
    let run = |extra: &str| stdout(&succeed(corpus.train().args(flags.split(' ')).args(extra.split(' '))));
    let warnings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("WARNING: "));
        lines.filter(|line| !line.contains("untrained")).map(str::to_owned).collect()
    };
    let order = |name: &str| if name == "off" { "--shuffle off" } else { "--shuffle sequences" };
    for name in ["off", "sequences"] {
        run(&format!("-x 8 {} -o {name}", order(name)));
    }
    let resume = |name: &str, extra: &str| {
        common::forget_after(&corpus.path(name), 4);
        warnings(&run(&format!("-x 8 {} -o {name} -y 1 {extra}", order(name))))
    };
    let none = Vec::<String>::new();
    let whole = losses(&corpus.path("sequences"));
    assert_eq!(resume("sequences", "-b 2"), none);
    assert_eq!(losses(&corpus.path("sequences")), whole);
    // The micro-batch changes the order of sums, nothing else.
    assert_eq!(resume("sequences", "-b 4"), none);
    assert_eq!(resume("sequences", "-d 128"), ["-d 128: the run so far used 64"]);
    assert_eq!(resume("off", "-t 8 --context 16"), ["-t 8: the run so far used 16"]);
    let shuffled = resume("sequences", "-t 8 --context 16");
    assert!(shuffled.len() == 2 && shuffled[1].contains("pieces of 8 tokens"), "{shuffled:?}");
    assert_eq!(losses(&corpus.path("sequences")).len(), 8);
    assert_eq!(
        resume("off", "-l 3e-4 -k linear -u 2 -q 0.5 -c 0.1 --seed 1"),
        [
            "--seed 1: the run so far used 42",
            "-c 0.1: the run so far used 0",
            "-k linear: the run so far used cosine",
            "-l 0.0003: the run so far used 0.001",
            "-q 0.5: the run so far used 1",
            "-u 2: the run so far used 0",
        ]
    );
    // Without the fields that tell, there is nothing to say.
    common::forget_after(&corpus.path("off"), 4);
    common::make_early(&corpus.path("off"), 4, &["settings"]);
    assert_eq!(resume("off", "-l 3e-4"), none);
}

/// In file order the text goes on where it was left, also in pieces of another length.
#[test]
fn another_sequence_length_reads_on_in_file_order() {
    let corpus = Corpus::new();
    let tokens = "--shuffle off --context 16 -n 2 -l 0 -d 32";
    let run = |extra: &str| {
        succeed(corpus.train().args(tokens.split(' ')).args(extra.split(' ')));
    };
    run("-x 8 -t 8 -b 4 -o whole");
    run("-x 4 -t 16 -b 2 -o parts");
    run("-x 8 -t 8 -b 4 -o parts -y 1");
    // With a learning rate of 0, a step's loss depends on its text alone.
    assert_eq!(losses(&corpus.path("whole"))[4..], losses(&corpus.path("parts"))[4..]);
}

#[test]
fn resuming_needs_only_the_directory_of_the_run() {
    let corpus = Corpus::new();
    succeed(corpus.train().args("-x 2 -n 2 -o a".split(' ')));
    let convert = |line: &str| {
        succeed(Command::new(common::WARPSMITH).current_dir(corpus.dir.path()).args(line.split(' ')));
    };
    convert("convert a hf/model.safetensors");
    let tune = |extra: &str| {
        let mut command = Command::new(common::TRAIN_GPT2);
        let flags = "-i x_train_*.bin -j x_val_*.bin -e hf -b 2 -t 16 -v 0 -s 0 -n 2 -o tuned";
        command.current_dir(corpus.dir.path()).args(flags.split(' ')).args(extra.split(' '));
        command
    };
    let text = stdout(&succeed(&mut tune("-x 2")));
    assert!(text.contains("hf/model.safetensors"), "{text}");
    std::fs::rename(corpus.path("hf"), corpus.path("gone")).unwrap();
    let text = stdout(&succeed(&mut tune("-x 4 -y 1")));
    assert!(
        text.contains("checkpoint of step 2") && text.contains("checkpoint 4 written to tuned"),
        "{text}"
    );
    common::refuse(&mut tune("-x 4 -y 1 -o other"), &["no file hf", "d12"]);
}

#[test]
fn a_second_run_in_a_directory_leaves_the_first_alone() {
    let corpus = Corpus::new();
    let mut first =
        corpus.train().args("-x 100000 -n 50 -nk 2 -o out".split(' ')).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !corpus.path("out/DONE_00000050").exists() {
        assert!(Instant::now() < deadline, "the run never got going");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = format!("process {} on ", first.id());
    for extra in ["", "-y 1"] {
        let mut second = corpus.train();
        second.args("-x 4 -n 1 -o out".split(' ')).args(extra.split_whitespace());
        common::refuse(&mut second, &["-o/--output-dir", "out is in use by", &pid]);
    }
    signal(first.id(), "TERM");
    assert_eq!(first.wait().unwrap().code(), Some(128 + 15));
    assert!(!corpus.path("out/.lock").exists());
    let steps = losses(&corpus.path("out"));
    assert!((0..).zip(&steps).all(|(n, (step, ..))| n == *step), "no line is doubled");
    let resumed =
        succeed(corpus.train().args("-y 1 -n 50 -o out -x".split(' ')).arg(steps.len().to_string()));
    assert_eq!(stderr(&resumed), "", "its newest checkpoint is whole");
}

#[test]
fn the_logs_of_another_run_are_not_emptied() {
    let corpus = Corpus::new();
    // A run that was killed before its first checkpoint.
    std::fs::create_dir(corpus.path("out")).unwrap();
    for log in ["main.log", "metrics.jsonl"] {
        let path = corpus.path("out").join(log);
        std::fs::write(&path, "{\"step\":0}\n").unwrap();
        common::refuse(corpus.train().args("-x 2 -o out".split(' ')), &["-o out", log, "-y 1"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":0}\n");
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(corpus.path("out/main.log"), "s:0 trl:1.0\n").unwrap();
    succeed(corpus.train().args("-x 2 -o out -y 1".split(' ')));
    assert_eq!(losses(&corpus.path("out")).len(), 2);
}

/// A changed digit in the run file is found, and the checkpoint before leads to the same bits.
#[test]
fn a_damaged_run_file_costs_steps_and_nothing_else() {
    let corpus = Corpus::new();
    let run = |extra: &str| succeed(corpus.train().args("-n 3 -sl 1".split(' ')).args(extra.split(' ')));
    run("-x 9 -o whole");
    run("-x 6 -o parts");
    let path = corpus.path("parts/run_00000006.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let digit = text.find("window").map(|at| at + text[at..].find("5").unwrap()).unwrap();
    std::fs::write(&path, format!("{}6{}", &text[..digit], &text[digit + 1..])).unwrap();
    let output = run("-x 9 -o parts -y 1");
    assert!(stdout(&output).contains("checkpoint of step 3"), "{}", stdout(&output));
    assert!(stderr(&output).contains("run_00000006.json"), "{}", stderr(&output));
    for name in ["model_00000009.bin", "state_00000009_00000.bin", "main.log"] {
        let [whole, parts] =
            ["whole", "parts"].map(|dir| std::fs::read(corpus.path(dir).join(name)).unwrap());
        assert!(whole == parts, "{name}");
    }
}

#[test]
fn a_resumed_run_removes_old_checkpoints() {
    let corpus = Corpus::new();
    succeed(corpus.train().args("-x 6 -n 2 -o out".split(' ')));
    // As if a run had been killed while it removed, and while it wrote.
    std::fs::remove_file(corpus.path("out/DONE_00000002")).unwrap();
    std::fs::write(corpus.path("out/state_00000003_00000.bin"), "").unwrap();
    succeed(corpus.train().args("-x 6 -n 2 -nk 1 -o out -y 1".split(' ')));
    let mut names: Vec<_> = std::fs::read_dir(corpus.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("_0"))
        .collect();
    names.sort();
    let expected = ["DONE_00000006", "model_00000006.bin", "run_00000006.json", "state_00000006_00000.bin"];
    assert_eq!(names, expected);
}

#[cfg(unix)]
#[test]
fn a_directory_that_is_moved_away_costs_no_line() {
    let corpus = Corpus::new();
    let mut child = corpus
        .train()
        .args("-x 100000 -n 40 -nk 1 -o out".split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let wait_for = |name: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !corpus.path(name).exists() {
            assert!(Instant::now() < deadline, "{name} never came");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("out/DONE_00000040");
    std::fs::rename(corpus.path("out"), corpus.path("moved")).unwrap();
    wait_for("out/metrics.jsonl");
    common::refuse(corpus.train().args("-x 4 -o out -y 1".split(' ')), &["is in use by"]);
    signal(child.id(), "TERM");
    let mut text = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(text.contains("WARNING: out/metrics.jsonl: removed or replaced"), "{text}");
    let steps = losses(&corpus.path("out"));
    assert!((0..).zip(&steps).all(|(n, (step, ..))| n == *step), "all lines from the first on");
    assert!(corpus.path(&format!("out/DONE_{:08}", steps.len())).exists());
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

#[test]
fn openmps_number_of_threads_is_taken_and_shown() {
    let corpus = Corpus::new();
    let table = |flags: &str| {
        let mut command = corpus.train();
        command.args("-x 1".split(' ')).args(flags.split_whitespace()).env_remove("RAYON_NUM_THREADS");
        stdout(&succeed(command.env("OMP_NUM_THREADS", "3")))
    };
    let row = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let text = table("");
    assert!(row(&text, "| threads ").contains(" 3 (OMP_NUM_THREADS) "), "{text}");
    assert!(row(&text, "| running on").contains(" 3 threads"), "{text}");
    let text = table("--threads 2");
    assert!(row(&text, "| running on").contains(" 2 threads"), "{text}");
    // No quantity is shown twice.
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next()).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} twice in\n{text}");
    }
    assert!(row(&text, "| max_steps").contains(" 1 ") && !text.contains("train_num_batches"), "{text}");
}

#[test]
fn what_a_run_needs_is_said_in_its_own_terms() {
    let corpus = Corpus::new();
    let mut bare = Command::new(common::TRAIN_GPT2);
    let said = ["-e/--model: llm.c's default, gpt2_124M_bf16.bin, is not here", "-e d12"];
    common::refuse(bare.current_dir(corpus.dir.path()).args(["-i", "x_train_*.bin"]), &said);
    std::fs::write(corpus.path("afile"), "").unwrap();
    common::refuse(
        corpus.train().args("-x 1 -o afile".split(' ')),
        &["-o/--output-dir afile: expected a directory, found a file"],
    );
    // -o without -n: no checkpoint on the way, and one at the end.
    let text = stdout(&succeed(corpus.train().args("-x 3 -o out".split(' '))));
    assert!(text.contains("-n 0: no checkpoint is written before the end of the run"), "{text}");
    assert!(corpus.path("out/DONE_00000003").exists() && !corpus.path("out/DONE_00000002").exists());
    common::write_small_model(&corpus.path("small.bin"));
    let mut sample = Command::new(common::WARPSMITH);
    sample.current_dir(corpus.dir.path()).args(["sample", "-e", "small.bin", "-p", "hello world"]);
    let output = sample.output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""));
    assert!(stderr(&output).contains("of 503 tokens, is unknown"), "{}", stderr(&output));
}
