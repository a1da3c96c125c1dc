//! `train_gpt2cu` as a user runs it: on the emulated device against the CPU device, or, with
//! `WARPSMITH_TEST_DEVICE=cuda`, on the GPU of this machine.

mod common;

use common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH, forget_after, losses, refuse, stdout, succeed};
use std::path::Path;
use std::process::Command;

/// A corpus with a model to start from, `small.bin`.
fn corpus() -> Corpus {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    corpus
}

/// The shape and schedule of all runs.
const RECIPE: &str = "-i x_train_*.bin -j x_val_*.bin -b 2 -t 64 -l 3e-4 -u 4 -c 0.1 -v 0 -s 0 -e small.bin";

fn train(corpus: &Corpus, program: &str, flags: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(corpus.dir.path()).args(RECIPE.split(' ')).args(flags.split_whitespace());
    command
}

fn train_cpu(corpus: &Corpus, flags: &str) -> Command {
    train(corpus, TRAIN_GPT2, flags)
}

fn device() -> String {
    std::env::var("WARPSMITH_TEST_DEVICE").unwrap_or_else(|_| "emulated".to_owned())
}

/// Trains on the device under test. All runs choose the same kernels.
fn train_cu(corpus: &Corpus, flags: &str) -> Command {
    train(corpus, TRAIN_GPT2CU, &format!("--device {} --deterministic 1 {flags}", device()))
}

type Losses = Vec<(u64, String, String)>;

fn run(mut command: Command, out: &str) -> Losses {
    command.args(["-o", out]);
    succeed(&mut command);
    losses(&command.get_current_dir().unwrap().join(out))
}

/// Largest relative distance of loss and of norm over all steps.
fn distance(a: &Losses, b: &Losses) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let apart = |a: &str, b: &str| {
        let (a, b): (f64, f64) = (a.parse().unwrap(), b.parse().unwrap());
        (a - b).abs() / b
    };
    let pairs = || a.iter().zip(b);
    let largest = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    let distance = (
        largest(pairs().map(|(a, b)| apart(&a.1, &b.1)).collect()),
        largest(pairs().map(|(a, b)| apart(&a.2, &b.2)).collect()),
    );
    println!("loss off by {:.1e}, norm by {:.1e}", distance.0, distance.1);
    distance
}

/// Trains on the device under test and on the CPU, on one batch so that the loss falls quickly.
/// Loss and norm of each step must be within these relative distances.
#[track_caller]
fn assert_trains_as_the_cpu(flags: &str, steps: usize, loss: f64, norm: f64) {
    let corpus = corpus();
    let steps_on_one_batch = format!("-a 1 -x {steps}");
    let want = run(train_cpu(&corpus, &steps_on_one_batch), "cpu");
    let got = run(train_cu(&corpus, &format!("{steps_on_one_batch} {flags}")), "cu");
    let number = |text: &str| text.parse::<f64>().unwrap();
    let (first, last) = (number(&want[0].1), number(&want[steps - 1].1));
    assert!(
        last < first - 0.05 * steps as f64,
        "the loss falls from {first} to {last}: too little to compare"
    );
    let distance = distance(&got, &want);
    assert!(distance.0 <= loss && distance.1 <= norm, "{flags}: {distance:?}");
}

#[test]
fn twenty_steps_in_f32_are_those_of_the_cpu() {
    assert_trains_as_the_cpu("--dtype f32 -f 0", 20, 1e-4, 1e-4);
}

#[test]
fn twenty_steps_in_bf16_are_those_of_the_cpu_to_its_precision() {
    assert_trains_as_the_cpu("", 20, 1e-3, 5e-3);
}

#[test]
fn steps_in_tf32_are_those_of_the_cpu_to_its_precision() {
    assert_trains_as_the_cpu("--dtype f32 -f 1", 8, 2e-4, 2e-3);
}

/// The loss scale affects nothing that is printed.
#[test]
fn steps_in_fp16_are_those_of_the_cpu_to_its_precision() {
    assert_trains_as_the_cpu("--dtype fp16", 8, 2e-4, 2e-3);
}

#[test]
fn steps_without_master_weights_are_right_on_average() {
    assert_trains_as_the_cpu("-w 0", 8, 5e-3, 5e-2);
}

#[test]
fn recomputation_changes_no_bit() {
    let corpus = corpus();
    let base = run(train_cu(&corpus, "-x 3 -r 1"), "r1");
    assert_eq!(base, run(train_cu(&corpus, "-x 3 -r 0"), "r0"));
    assert_eq!(base, run(train_cu(&corpus, "-x 3 -r 2"), "r2"));
}

#[test]
fn another_run_has_the_same_bits() {
    let corpus = corpus();
    let base = run(train_cu(&corpus, "-x 3"), "one");
    assert_eq!(base, run(train_cu(&corpus, "-x 3"), "two"));
    assert_eq!(base, run(train_cu(&corpus, "-x 3 --threads 1"), "threads"));
}

/// Two micro-batches of one row each equal one of two rows: overfitting takes the first tokens of a
/// shard.
#[test]
fn accumulation_splits_a_batch_to_within_rounding() {
    let corpus = corpus();
    for (flags, tolerance) in [("--dtype f32 -f 0", 1e-5), ("", 5e-3)] {
        let whole =
            run(train_cu(&corpus, &format!("{flags} -x 3 -a 1 -d 128")), &format!("whole{tolerance}"));
        let split =
            run(train_cu(&corpus, &format!("{flags} -x 3 -a 1 -b 1 -d 128")), &format!("split{tolerance}"));
        assert!(distance(&split, &whole).0 <= tolerance, "{flags}");
    }
}

#[test]
fn gelu_in_the_epilogue_changes_only_rounding() {
    let corpus = corpus();
    let base = run(train_cu(&corpus, "-x 3 -ge 0"), "ge0");
    for fusion in [1, 2] {
        let fused = run(train_cu(&corpus, &format!("-x 3 -ge {fusion}")), &format!("ge{fusion}"));
        assert!(distance(&fused, &base).0 <= 2e-3, "-ge {fusion}");
    }
}

#[test]
fn resuming_continues_bit_for_bit() {
    for flags in ["", "-w 0", "--dtype fp16"] {
        let corpus = corpus();
        let flags = format!("{flags} -x 5 -n 2");
        let whole = run(train_cu(&corpus, &flags), "whole");
        assert_eq!(whole, run(train_cu(&corpus, &flags), "parts"));
        forget_after(&corpus.path("parts"), 2);
        assert_eq!(whole, run(train_cu(&corpus, &format!("{flags} -y 1")), "parts"), "{flags}");
        for name in ["model_00000005.bin", "state_00000005_00000.bin"] {
            let file = |dir: &str| std::fs::read(corpus.path(dir).join(name)).unwrap();
            assert!(file("whole") == file("parts"), "{flags}: {name} differs");
        }
    }
}

#[test]
fn a_run_goes_on_in_another_type_and_says_so() {
    let corpus = corpus();
    run(train_cu(&corpus, "-x 3 -n 3"), "bf16");
    let resume = |dir: &str, program: fn(&Corpus, &str) -> Command, flags: &str| {
        copy(&corpus.path("bf16"), &corpus.path(dir));
        let output = succeed(program(&corpus, flags).args(["-x", "5", "-n", "3", "-y", "1", "-o", dir]));
        stdout(&output)
    };
    assert!(!resume("same", train_cu, "").contains("WARNING"));
    let text = resume("cpu", train_cpu, "");
    assert!(
        text.contains("WARNING: the checkpoint was written with --dtype bf16; its weights become f32"),
        "{text}"
    );
    let text = resume("no_master", train_cu, "-w 0");
    assert!(text.contains("WARNING: -w 0: the checkpoint's master weights"), "{text}");
    // Master weights are exact, so in f32 the same run continues, except for the type of its
    // matmuls.
    let (cpu, same) = (losses(&corpus.path("cpu")), losses(&corpus.path("same")));
    assert!(distance(&cpu, &same).0 <= 5e-3);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn checkpoints_are_evaluated_on_every_device() {
    let corpus = corpus();
    run(train_cu(&corpus, "-x 3 -n 3 -v 3 -m 2"), "out");
    let loss = |flags: &str| {
        let mut command = Command::new(WARPSMITH);
        command.current_dir(corpus.dir.path());
        command
            .args("eval -e out --val x_val_*.bin -b 2 -t 64 -m 2".split(' '))
            .args(flags.split_whitespace());
        let text = stdout(&succeed(&mut command));
        let number = text.strip_prefix("val loss ").and_then(|rest| rest.split(',').next()).unwrap();
        number.parse::<f64>().unwrap()
    };
    let cpu = loss("");
    for flags in ["--dtype bf16", "--dtype f32"] {
        let other = loss(&format!("--device {} {flags}", device()));
        assert!((other - cpu).abs() <= 3e-3 * cpu, "{flags}: {other} against {cpu}");
    }
    let log = std::fs::read_to_string(corpus.path("out/main.log")).unwrap();
    assert!(log.contains("tel:"), "{log}");
}

#[test]
fn start_up_tells_how_much_memory_a_sequence_takes() {
    let corpus = corpus();
    let text = stdout(&succeed(&mut train_cu(&corpus, "-x 1")));
    assert!(text.contains("optimizer state") && text.contains("memory per sequence: "), "{text}");
}

/// `CUDA_VISIBLE_DEVICES` hides any GPU. The error is one line that says what is missing.
#[test]
fn a_missing_gpu_is_explained() {
    let corpus = corpus();
    refuse(train(&corpus, TRAIN_GPT2CU, "").env("CUDA_VISIBLE_DEVICES", ""), &["--device cuda: "]);
}

#[test]
fn what_no_kernel_can_do_is_refused_before_anything_is_allocated() {
    let corpus = corpus();
    let mut command = Command::new(TRAIN_GPT2CU);
    command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -j x_val_*.bin -b 2 -t 16 -x 1".split(' '));
    command.args("-v 0 -s 0 --layers 1 --heads 2 --channels 16 --device".split(' ')).arg(device());
    refuse(&mut command, &["head"]);
}
