//! The scripts of `recipes/`, in the seconds that `SMOKE=1` takes.

mod common;

use common::{TRAIN_GPT2, stdout, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")
}

/// A recipe with the programs of this build; more arguments may follow.
fn smoke(name: &str, out: &Path) -> Command {
    let mut command = Command::new(recipes().join(format!("{name}.sh")));
    let programs = Path::new(TRAIN_GPT2).parent().unwrap();
    command
        .env("SMOKE", "1")
        .env("BIN", programs)
        .env("OUT", out)
        .env_remove("LAUNCH")
        .env_remove("PROCESSES");
    command
}

/// Whether the start-up table has this row.
fn has(text: &str, name: &str, value: &str) -> bool {
    text.lines().any(|line| line == format!("| {name:<21} | {value:<50} |"))
}

/// Runs a recipe, and expects these rows in its start-up table.
fn runs(name: &str, rows: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let text = stdout(&succeed(&mut smoke(name, &out)));
    for (row, value) in rows {
        assert!(has(&text, row, value), "{name}: {row} {value}\n{text}");
    }
    assert!(text.contains("step    4/4 | loss "), "{name}: {text}");
    assert!(out.join("DONE_00000004").exists(), "{name}");
    assert_eq!(fs::read_to_string(out.join("main.log")).unwrap().matches(" trl:").count(), 4, "{name}");
}

#[test]
fn gpt2_124m() {
    let tuned = [
        ("learning rate (LR)", "1.8e-3"),
        ("LR scheduler", "wsd"),
        ("cooldown_frac", "0.4"),
        ("cooldown_shape", "linear"),
        ("final LR fraction", "0.0"),
    ];
    runs("gpt2-124m-tuned", &[&tuned[..], &[("optimizer", "adamw")]].concat());
    runs("gpt2-124m-muon", &[&tuned[..], &[("optimizer", "muon")]].concat());
    let both = [("weight decay", "0.1"), ("learning rate (LR)", "6e-4"), ("run hellaswag", "1")];
    let fineweb_edu = [("warmup iterations", "715"), ("final LR fraction", "0.1"), ("samples", "4")];
    runs("gpt2-124m-fineweb-edu", &[&both[..], &fineweb_edu[..]].concat());
    let llmc = [("warmup iterations", "700"), ("final LR fraction", "0.0"), ("shuffle", "llmc")];
    runs("gpt2-124m-llmc", &[&both[..], &llmc[..]].concat());
}

#[test]
fn gpt3() {
    for (name, lr) in
        [("gpt3-125m", "6e-4"), ("gpt3-350m", "3e-4"), ("gpt3-760m", "2.5e-4"), ("gpt3-1.3b", "2e-4")]
    {
        let rows = [
            ("learning rate (LR)", lr),
            ("warmup_tokens", "375M"),
            ("decay_tokens", "260B"),
            ("final LR fraction", "0.1"),
            ("skip update gradz", "7"),
            ("max_sequence_length T", "2048"),
        ];
        runs(name, &rows);
    }
}

#[test]
fn a_day_and_tinystories() {
    for (name, lr) in [("gpt2-medium", "1e-4"), ("gpt2-large", "5e-5")] {
        let rows = [
            ("learning rate (LR)", lr),
            ("LR scheduler", "constant"),
            ("qkv_bias", "0"),
            ("max_hours", "24"),
        ];
        runs(name, &rows);
    }
    runs("tinystories", &[("learning rate (LR)", "1e-3"), ("prompt", "Once upon a time")]);
}

/// Each ends with what the base and the fine-tuned model say, side by side.
#[test]
fn fine_tuning() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |name: &str, scheduler: &str, lr: &str| {
        let out = dir.path().join(name);
        let text = stdout(&succeed(&mut smoke(name, &out)));
        for (row, value) in [("LR scheduler", scheduler), ("learning rate (LR)", lr), ("grad_clip", "1.0")] {
            assert!(has(&text, row, value), "{name}: {row} {value}\n{text}");
        }
        assert!(text.contains("step    4/4 | loss ") && out.join("DONE_00000004").exists(), "{name}: {text}");
        text
    };
    let stories = rows("finetune-tinystories", "linear", "5e-5");
    let (_, compared) = stories.split_once("\u{2500}\u{253c}\u{2500}").expect("a line below the names");
    let prompt = "Once upon a time, there was a pumpkin.";
    assert_eq!(compared.matches(prompt).count(), 2, "{stories}");
    rows("finetune-text", "constant", "1e-4");
    let answers = rows("sft", "linear", "5e-5");
    assert!(answers.contains(" packed") && answers.contains("What color is a pumpkin?"), "{answers}");
    let output = smoke("sft", dir.path()).env("SMOKE", "0").env("TRAINER", "train_gpt2").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).starts_with("sft: expected the examples to train on"));
}

#[test]
fn a_recipe_resumes_and_takes_flags() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = |steps: &str| stdout(&succeed(smoke("tinystories", &out).args(["-x", steps])));
    assert!(run("2").contains("step    2/2 | loss "));
    let text = run("4");
    assert!(text.contains("checkpoint of step 2") && text.contains("step    4/4 | loss "), "{text}");
}

#[test]
fn several_processes_and_slurm() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut together = smoke("gpt2-medium", &out);
    let text = stdout(&succeed(together.env("PROCESSES", "2")));
    assert!(text.contains("1: optimizer state in 2 parts") && text.contains("step    4/4"), "{text}");
    let mut job = smoke("slurm", &dir.path().join("job"));
    let text = stdout(&succeed(job.args(["gpt3-125m", "-z", "1"]).env_remove("SLURM_JOB_ID")));
    assert!(text.contains("max_hours") && text.contains("1: optimizer state in 2 parts"), "{text}");
    let alone = smoke("slurm", dir.path()).output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
    assert!(common::stderr(&alone).starts_with("slurm: expected a recipe"), "{}", common::stderr(&alone));
}

#[test]
fn a_program_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = smoke("gpt3-125m", dir.path()).env("BIN", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = common::stderr(&output);
    assert!(said.contains("gpt3-125m: no program") && said.contains("make train_gpt2"), "{said}");
}

#[test]
fn every_script_is_in_the_table() {
    let table = fs::read_to_string(recipes().join("README.md")).unwrap();
    for entry in fs::read_dir(recipes()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".sh") && name != "common.sh" {
            assert!(table.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
