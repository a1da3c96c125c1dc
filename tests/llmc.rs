//! llm.c's Python trainer as a peer: its flags, its reference files, and its lines.

mod common;

use common::{Corpus, TRAIN_GPT2, refuse, stderr, stdout, succeed, warpsmith};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2_tiny").join(name)
}

/// `warpsmith parity` on PyTorch's debug state of the tiny model; more flags may follow.
fn parity(dir: &Path) -> Command {
    let mut command = warpsmith(dir, "parity --debug-state");
    command.arg(fixture("debug_state.bin")).arg("-e").arg(fixture("model.bin"));
    command
}

/// PyTorch's losses of ten steps on the batch of the debug state.
fn losses() -> Vec<f64> {
    let text = fs::read_to_string(fixture("reference.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["overfit"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
}

#[test]
fn our_results_are_those_of_pytorchs_debug_state() {
    let dir = tempfile::tempdir().unwrap();
    let given: Vec<String> = losses().iter().map(|loss| format!("{loss:.6}")).collect();
    let text = stdout(&succeed(parity(dir.path()).arg("--losses").arg(given.join(","))));
    for name in ["logits", "loss ", "dwte", "dwpe", "dqkvw", "dfcprojb", "dlnfb", "loss of step 10"] {
        let row =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
        assert!(row.ends_with(" ok"), "{row}");
    }
    assert!(text.ends_with("losses of steps: compared with --losses\noverall okay: 1\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(" ok")).count(), 2 + 16 + 10);

    // Without the losses, they are shown and not judged.
    let text = stdout(&succeed(&mut parity(dir.path())));
    assert!(text.contains("not compared") && text.contains("step 10  "), "{text}");
}

/// Takes a larger model than the tiny one, because the kernels need heads of at least 32 channels.
#[test]
fn the_kernels_results_are_those_of_the_cpu() {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    let flags = "-i x_train_*.bin -j x_val_*.bin -e small.bin -b 2 -t 16 -v 0 -s 0 -x 0 --write_tensors";
    succeed(Command::new(TRAIN_GPT2).current_dir(corpus.dir.path()).args(flags.split(' ')));
    for dtype in ["f32", "bf16", "fp16"] {
        let line =
            format!("parity --debug-state gpt2_L2_C128_debug_state.bin --device emulated --dtype {dtype}");
        let text = stdout(&succeed(&mut warpsmith(corpus.dir.path(), &line)));
        let end = "losses of steps: compared with the CPU in f32\noverall okay: 1\n";
        assert!(text.ends_with(end), "{dtype}: {text}");
    }
}

#[test]
fn a_difference_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("debug_state.bin")).unwrap();
    let model = fixture("model.bin");
    let (rows, V) = (48, 96);
    let logits = 1024 + 2 * 4 * rows;
    let loss = logits + 4 * rows * V;
    let changed = |at: usize, by: f32| {
        let mut changed = bytes.clone();
        let value = f32::from_le_bytes(changed[at..at + 4].try_into().unwrap()) + by;
        changed[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let path = dir.path().join("state.bin");
        fs::write(&path, changed).unwrap();
        let output = warpsmith(dir.path(), "parity --debug-state state.bin -e").arg(&model).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.ends_with("overall okay: 0\n"), "{text}");
        let differs: Vec<_> = text.lines().filter(|line| line.contains("DIFFERS")).collect();
        assert_eq!(differs.len(), 1, "{text}");
        differs[0].to_owned()
    };
    assert!(changed(logits + 4 * 100, 0.01).starts_with("logits"));
    assert!(changed(loss, 1e-3).starts_with("loss "));
    let row = changed(loss + 4 + 4 * 5, 1e-2);
    assert!(row.starts_with("dwte") && row.ends_with("DIFFERS at 5"), "{row}");
    assert!(changed(bytes.len() - 4, f32::NAN).starts_with("dlnfb"));

    let wrong = ["3.5"; 10].join(",");
    let output = parity(dir.path()).args(["--losses", &wrong]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    refuse(parity(dir.path()).args(["--losses", "1,2"]), &["--losses", "expected 10 numbers, found 2"]);
    fs::write(dir.path().join("short.bin"), &bytes[..5000]).unwrap();
    let mut short = warpsmith(dir.path(), "parity --debug-state short.bin -e");
    refuse(short.arg(&model), &["short.bin", "expected 140164 bytes", "found 5000"]);
    fs::copy(fixture("debug_state.bin"), dir.path().join("a_debug_state.bin")).unwrap();
    refuse(&mut warpsmith(dir.path(), "parity --debug-state a_debug_state.bin"), &["-e/--model", "missing"]);
}

#[test]
fn tensors_are_written_for_llmcs_tests_and_the_run_is_the_same() {
    let corpus = Corpus::new();
    let run = |name: &str, flags: &str| {
        let args = format!("-x 4 -l 1e-2 -d 64 -o {name}{flags}");
        let text = stdout(&succeed(corpus.train().args(args.split(' '))));
        (text, common::losses(&corpus.path(name)))
    };
    let (_, plain) = run("plain", "");
    let (text, written) = run("written", " --write_tensors");
    assert_eq!(plain, written);
    for name in ["gpt2_L2_C16.bin", "gpt2_L2_C16_bf16.bin", "gpt2_L2_C16_debug_state.bin"] {
        assert!(text.contains(&format!("wrote {name}\n")) && corpus.path(name).exists(), "{name}\n{text}");
    }
    let dir = corpus.dir.path();
    let text = stdout(&succeed(&mut warpsmith(dir, "parity --debug-state gpt2_L2_C16_debug_state.bin")));
    assert!(text.ends_with("overall okay: 1\n"), "{text}");
    succeed(&mut warpsmith(dir, "eval -e gpt2_L2_C16_bf16.bin --val x_val_*.bin -b 2 -m 1"));
}

#[test]
fn forward_passes_are_timed_without_training() {
    let corpus = Corpus::new();
    let flags = "-x 5 -d 64 -v 2 -m 2 -n 2 -o log --inference_only";
    let text = stdout(&succeed(corpus.train().args(flags.split(' '))));
    let steps: Vec<&str> = text.lines().filter(|line| line.starts_with("step ")).collect();
    assert_eq!(steps.len(), 5, "{text}");
    assert!(steps[0].starts_with("step    1/5 | train loss 10.8"), "{text}");
    assert!(steps[4].contains(" | norm 0.0000 | lr 3.00e-04 | (") && steps[4].ends_with(" tok/s)"), "{text}");
    assert!(text.contains("\nfinal 4 iters avg: ") && text.contains("\npeak memory consumption: "), "{text}");
    let validations: Vec<&str> = text.lines().filter(|line| line.starts_with("val loss")).collect();
    assert!(validations.len() == 4 && validations.iter().all(|line| *line == validations[0]), "{text}");
    let names = |dir: &Path| {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let found = names(&corpus.path("log"));
    assert!(found.iter().all(|name| !name.contains("model") && !name.contains("DONE")), "{found:?}");
    let log = fs::read_to_string(corpus.path("log/main.log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains(" trl:") && !line.contains("lr:")).count(), 5);

    // The first loss is that of the first step of training.
    let trained = stdout(&succeed(corpus.train().args("-x 1 -d 64".split(' '))));
    let loss = |line: &str| line.split("loss ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let first = trained.lines().find(|line| line.starts_with("step ")).unwrap();
    assert_eq!(loss(first), loss(steps[0]));
}

#[test]
fn flags_of_the_python_trainer_are_explained() {
    let corpus = Corpus::new();
    let flags = "--num_iterations 1 --compile 1 --flash 1 --tensorcores 1 --dtype float32";
    let output = succeed(corpus.train().args(flags.split(' ')).env("WARPSMITH_LOG", "info"));
    for note in ["--compile 1: ", "--flash 1: ", "--tensorcores 1: "] {
        assert_eq!(stderr(&output).matches(note).count(), 1, "{}", stderr(&output));
    }
    assert_eq!(stderr(&succeed(corpus.train().args(flags.split(' ')))), "");
}

#[test]
fn a_trainer_alone_says_how_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    refuse(Command::new(TRAIN_GPT2).current_dir(dir.path()), &["make train", "-i", "-j", "-e d12"]);
}

/// The samples in the output of one rank: from the first of them on.
fn samples(text: &str) -> String {
    let text = without_memory(text);
    text.find("rank ").map_or(String::new(), |at| text[at..].to_owned())
}

/// The output of a run without its last line, which is about memory.
fn without_memory(text: &str) -> &str {
    text.split("memory: planned").next().unwrap()
}

#[test]
fn each_rank_draws_samples_of_its_own_at_any_stage() {
    let corpus = Corpus::new();
    let run = |flags: &str| {
        let ranks = [0, 1].map(|rank| {
            let mut command = corpus.train();
            command.args(format!("-x 0 -s 5 -g 3 --samples 2 {flags}").split(' '));
            common::as_rank(&mut command, rank, 2)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        ranks.map(|rank| {
            let output = rank.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            samples(&stdout(&output))
        })
    };
    let [first, second] = run("--prompt Once");
    for (text, rank) in [(&first, 0), (&second, 1)] {
        for i in 0..2 {
            assert_eq!(text.matches(&format!("rank {rank} sample {i}: Once")).count(), 1, "{text}");
        }
    }
    assert_ne!(first.replace("rank 0", ""), second.replace("rank 1", ""));
    let sharded = run("--prompt Once -z 3");
    assert_eq!(sharded, [first.clone() + &second, String::new()]);
    assert_eq!(run("--prompt Once -z 1"), [first.clone(), second]);

    // A single process draws what rank 0 of two draws.
    let alone = stdout(&succeed(corpus.train().args("-x 0 -s 5 -g 3 --samples 2 --prompt Once".split(' '))));
    assert_eq!(samples(&alone), first);
}

#[test]
fn the_prompt_does_not_count() {
    let corpus = Corpus::new();
    let sample = |flags: &str| {
        let prompt = "one two three four five six seven eight";
        let mut command = corpus.train();
        command.args(format!("-x 0 -s 5 --sample-temperature 0 {flags} --prompt").split(' ')).arg(prompt);
        let text = stdout(&succeed(&mut command));
        without_memory(&text).rsplit_once(prompt).unwrap_or_else(|| panic!("{text}")).1.to_owned()
    };
    let (two, four) = (sample("-g 2"), sample("-g 4"));
    let two = two.strip_suffix("\n---\n").unwrap();
    assert!(!two.is_empty() && four.starts_with(two) && four.len() > two.len() + 5, "{two:?} {four:?}");
    let nanogpt = sample("-g 2 --log-style nanogpt");
    assert_eq!(nanogpt, format!("{two}\n"));
}

#[test]
fn lines_and_log_are_those_of_build_nanogpt() {
    let corpus = Corpus::new();
    let run = |name: &str, flags: &str| {
        let args = format!("-x 6 -v 2 -m 2 -n 2 --log-style nanogpt -o {name}{flags}");
        stdout(&succeed(corpus.train().args(args.split(' '))))
    };
    let text = run("whole", "");
    let step = text.lines().find(|line| line.starts_with("step     5 | loss: ")).expect("the last step");
    let fields: Vec<&str> = step.split(" | ").collect();
    assert!(fields[2] == "lr 3.0000e-04" && fields[3].starts_with("norm: "), "{step}");
    assert!(fields[4].starts_with("dt: ") && fields[4].ends_with("ms"), "{step}");
    assert!(fields[5].starts_with("tok/sec: ") && fields.len() == 6, "{step}");
    assert!(text.contains("\nvalidation loss: ") && !text.contains("val loss"), "{text}");
    let log = |name: &str| fs::read_to_string(corpus.path(name).join("log.txt")).unwrap();
    assert_eq!(log("whole").lines().filter(|line| line.contains(" train ")).count(), 6);
    assert_eq!(log("whole").lines().filter(|line| line.contains(" val ")).count(), 4);

    run("parts", "");
    common::forget_after(&corpus.path("parts"), 4);
    run("parts", " -y 1");
    assert_eq!(log("parts"), log("whole"));
    let args = "-x 6 --log-style nanogpt -o whole";
    fs::remove_file(corpus.path("whole/main.log")).unwrap();
    fs::remove_file(corpus.path("whole/metrics.jsonl")).unwrap();
    for entry in fs::read_dir(corpus.path("whole")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("DONE_") {
            fs::remove_file(path).unwrap();
        }
    }
    refuse(corpus.train().args(args.split(' ')), &["-o whole", "log.txt of another run"]);
}
