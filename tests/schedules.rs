//! Schedules in whole runs: the ramp of the batch, and `--early-stop`.

mod common;

use common::{Corpus, as_rank, forget_after, losses, refuse, stderr, stdout, succeed};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use warpsmith::checkpoint::Saved;

/// Runs `train_gpt2` on so many ranks; more flags may follow.
fn run(corpus: &Corpus, world_size: usize, flags: &str) -> Vec<Output> {
    let rank = |rank: usize| {
        let mut command: Command = corpus.train();
        command.args(flags.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
        as_rank(&mut command, rank, world_size).spawn().unwrap()
    };
    let ranks: Vec<_> = (0..world_size).map(rank).collect();
    let outputs: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{flags}: {}", stderr(output));
    }
    outputs
}

/// A number of each training step in a run's `metrics.jsonl`.
fn numbers(dir: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line.get(name)?.as_f64()).collect()
}

/// 64 tokens a step, growing by 64 to 256 over 1000 tokens.
const RAMP: &str = "-l 1e-2 -d 256 --batch-ramp 64:1000 --train-tokens 3K -n 4 -y 1";

#[test]
fn a_batch_ramp_reads_the_same_text_for_any_split() {
    let corpus = Corpus::new();
    run(&corpus, 1, &format!("{RAMP} --shuffle off -b 4 -o alone"));
    let alone = corpus.path("alone");
    let tokens = numbers(&alone, "tokens");
    assert_eq!(tokens[..8], [64.0, 128.0, 192.0, 256.0, 320.0, 384.0, 512.0, 640.0]);
    assert_eq!(tokens.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max), 256.0);
    assert!((tokens[tokens.len() - 1] - 3000.0).abs() <= 128.0, "{tokens:?}");
    // The loader has read each token once, up to where the steps count.
    let last = tokens.len();
    let state = Saved::open(&alone, last as u64, 0).unwrap().state.state;
    assert_eq!(state.loader.current_sample_idx as f64 * 16.0, tokens[last - 1]);

    let expected = losses(&alone);
    for (world_size, B, more) in [(2, 2, ""), (4, 1, ""), (2, 2, " -z 2"), (4, 1, " -z 3"), (2, 2, " -z 1")] {
        let out = format!("{world_size}{}", more.replace(" -z ", "-"));
        run(&corpus, world_size, &format!("{RAMP} --shuffle off -b {B} -o {out}{more}"));
        let found = losses(&corpus.path(&out));
        assert_eq!(numbers(&corpus.path(&out), "tokens"), tokens);
        for ((step, loss, norm), (_, other, other_norm)) in expected.iter().zip(&found) {
            let near = |a: &str, b: &str, by: f64| {
                let (a, b): (f64, f64) = (a.parse().unwrap(), b.parse().unwrap());
                (a - b).abs() <= by * a
            };
            assert!(
                near(loss, other, 1e-5) && near(norm, other_norm, 1e-4),
                "{out}, step {step}: {loss} {other}"
            );
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn a_ramp_goes_on_where_it_was() {
    let corpus = Corpus::new();
    run(&corpus, 1, &format!("{RAMP} -b 2 -o whole"));
    run(&corpus, 1, &format!("{RAMP} -b 2 -o parts"));
    let [whole, parts] = ["whole", "parts"].map(|name| corpus.path(name));
    forget_after(&parts, 4);
    run(&corpus, 1, &format!("{RAMP} -b 2 -o parts"));
    assert_eq!(losses(&parts), losses(&whole));
    assert_eq!(numbers(&parts, "lr"), numbers(&whole, "lr"));
    let last = losses(&whole).len();
    for name in [format!("model_{last:08}.bin"), format!("state_{last:08}_00000.bin")] {
        let [a, b] = [&whole, &parts].map(|dir| std::fs::read(dir.join(&name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    // A smaller micro-batch keeps the steps of the run so far, a larger one cannot.
    forget_after(&parts, 4);
    run(&corpus, 1, &format!("{RAMP} -b 1 -o parts"));
    assert_eq!(numbers(&parts, "tokens"), numbers(&whole, "tokens"));
    forget_after(&parts, 4);
    let resume = |flags: &str| {
        let mut command = corpus.train();
        command.args("-l 1e-2 --train-tokens 3K -n 4 -y 1 -o parts".split(' ')).args(flags.split(' '));
        command
    };
    refuse(&mut resume("-d 256 --batch-ramp 128:1000 -b 8"), &["--batch-ramp 64:1000 -d 256", "128:1000"]);
    refuse(&mut resume("-d 512 --batch-ramp 64:1000 -b 2"), &["--batch-ramp 64:1000 -d 256", "-d 512"]);
    refuse(&mut resume("-d 256 -b 2"), &["the run so far had --batch-ramp 64:1000", "found none"]);
    succeed(corpus.train().args("-x 2 -n 2 -o plain".split(' ')));
    refuse(
        corpus.train().args("-x 4 -y 1 -d 256 --batch-ramp 64:1K -o plain".split(' ')),
        &["the run so far had none"],
    );
}

#[test]
fn a_ramp_refuses_micro_batches_that_do_not_divide_it() {
    let corpus = Corpus::new();
    // It grows in multiples of 32 tokens.
    succeed(corpus.train().args("-b 2 -d 256 --batch-ramp 128:2000 -x 4 -n 4 -y 1 -o out".split(' ')));
    let mut wide = corpus.train();
    wide.args("-b 4 -d 256 --batch-ramp 128:2000 -x 60 -n 4 -y 1 -o out".split(' '));
    refuse(&mut wide, &["-b 4: ", "multiples of 32 tokens", "lower -b"]);
    let narrow = "-b 2 -d 256 --batch-ramp 128:2000 -x 20 -y 1 -o out";
    succeed(corpus.train().args(narrow.split(' ')));
    // The ramp is over.
    succeed(&mut wide);
}

/// A rate so high that the loss rises again.
const RISING: &str = "-l 0.3 -d 64 -x 200 -v 5 -m 2 --early-stop 3";

fn evaluations(dir: &Path) -> Vec<f64> {
    numbers(dir, "val_loss")
}

#[test]
fn early_stop_ends_a_run_that_gets_no_better() {
    let corpus = Corpus::new();
    let text = stdout(&run(&corpus, 1, &format!("{RISING} -n 5 -s 1000 -g 4 -o alone"))[0]);
    let alone = corpus.path("alone");
    let steps = common::steps(&alone);
    assert!(steps < 200 && steps.is_multiple_of(5), "{text}");
    let said = format!("early stop after step {steps}: 3 evaluations without a lower validation loss than ");
    assert!(text.contains(&said), "{text}");
    assert!(text.contains("generating:"), "the last sample\n{text}");
    assert!(alone.join(format!("DONE_{steps:08}")).exists());
    let losses = evaluations(&alone);
    let best = losses[1..].iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(losses.len(), steps / 5 + 1);
    assert_eq!(losses.iter().rposition(|&loss| loss == best), Some(losses.len() - 4), "{losses:?}");

    // Killed at every checkpoint, it ends in the same place; and once ended, it stays there.
    let again = |dir: &str| stdout(&run(&corpus, 1, &format!("{RISING} -n 5 -o {dir} -y 1"))[0]);
    again("parts");
    for kept in (5..steps as u32).step_by(5).rev() {
        forget_after(&corpus.path("parts"), kept);
        let text = again("parts");
        assert!(text.contains(&said), "resumed at {kept}: {text}");
        assert_eq!(evaluations(&corpus.path("parts")), losses);
    }
    assert!(again("parts").contains(&said));
    assert_eq!(common::steps(&corpus.path("parts")), steps);
    // With more patience it goes on.
    let text = stdout(&run(&corpus, 1, &format!("{RISING} --early-stop 5 -n 5 -o parts -y 1"))[0]);
    assert!(!text.contains(&said), "{text}");
    assert!(common::steps(&corpus.path("parts")) > steps);
}

#[test]
fn all_ranks_stop_early_together() {
    let corpus = Corpus::new();
    for (world_size, stage) in [(2, 0), (4, 3)] {
        let out = format!("{world_size}-{stage}");
        let outputs = run(&corpus, world_size, &format!("{RISING} -b 1 -z {stage} -o {out}"));
        assert!(stdout(&outputs[0]).contains("early stop after step "));
        assert!(corpus.path(&out).join(format!("DONE_{:08}", common::steps(&corpus.path(&out)))).exists());
    }
}

#[test]
fn kernels_follow_a_ramp_and_stop_early() {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    let train = |flags: &str| {
        let mut command = Command::new(common::TRAIN_GPT2CU);
        command.current_dir(corpus.dir.path());
        command.args("--device emulated --deterministic 1 -i x_train_*.bin -j x_val_*.bin".split(' '));
        command.args("-e small.bin -b 1 -t 16 -s 0 -n 2 -y 1".split(' ')).args(flags.split(' '));
        stdout(&succeed(&mut command))
    };
    let ramp = "-v 0 -d 64 --batch-ramp 16:100 -x 5";
    for dir in ["whole", "parts"] {
        train(&format!("{ramp} -o {dir}"));
    }
    let [whole, parts] = ["whole", "parts"].map(|name| corpus.path(name));
    forget_after(&parts, 2);
    train(&format!("{ramp} -o parts"));
    assert_eq!(losses(&parts), losses(&whole));
    assert_eq!(numbers(&whole, "tokens"), numbers(&parts, "tokens"));
    assert_eq!(numbers(&whole, "tokens")[..4], [16.0, 32.0, 48.0, 80.0]);
    // Without an update no evaluation after the first is better.
    let text = train("--dtype f32 -l 0 -x 9 -v 1 -m 1 --early-stop 2 -o stopped");
    assert!(text.contains("early stop after step 3: 2 evaluations without a lower"), "{text}");
    assert!(corpus.path("stopped/DONE_00000003").exists());
}
