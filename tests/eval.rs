//! `warpsmith eval` against what others measure of the same model: tests/fixtures/tasks.

mod common;

use common::{Corpus, refuse, refuse_in_the_end, stdout, succeed, warpsmith};
use serde_json::Value;
use std::fs;
use std::path::Path;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tasks");
const TASKS: [&str; 7] =
    ["hellaswag", "piqa", "copa", "arc_easy", "winogrande", "lambada", "multiple_choice"];

fn task_flags(tasks: &[&str]) -> Vec<String> {
    tasks.iter().flat_map(|task| ["--task".into(), format!("{task}={FIXTURE}/{task}.jsonl")]).collect()
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn assert_close(found: &Value, expected: f64, what: &str) {
    let found = found.as_f64().unwrap();
    // Both sum at most a few dozen f32 losses of at most about 15 nats.
    let tolerance = 2e-5 * expected.abs().max(1.0);
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, lm_eval {expected}");
}

/// Every log-likelihood, every greedy match and every measure; `lm_eval` computed them with
/// PyTorch.
#[test]
fn tasks_are_scored_as_by_lm_eval() {
    let dir = tempfile::tempdir().unwrap();
    let mut eval = warpsmith(dir.path(), "eval -b 1 -t 64 -o results.jsonl -e");
    let output = succeed(eval.arg(FIXTURE).args(task_flags(&TASKS)));
    assert!(stdout(&output).contains("PIQA acc_norm "), "{}", stdout(&output));
    let lines = json_lines(&dir.path().join("results.jsonl"));
    let (items, summary) = (&lines[..lines.len() - 1], &lines[lines.len() - 1]);
    let theirs: Value =
        serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/lm_eval.json")).unwrap()).unwrap();
    let mut greedy = [0, 0];
    for task in TASKS {
        let ours: Vec<_> = items.iter().filter(|item| item["task"] == task).collect();
        let expected = theirs[task]["items"].as_array().unwrap();
        assert_eq!(ours.len(), expected.len(), "{task}");
        for (i, (ours, expected)) in ours.iter().zip(expected).enumerate() {
            let (losses, expected) = (ours["sum"].as_array().unwrap(), expected.as_array().unwrap());
            assert_eq!((losses.len(), ours["index"].as_u64()), (expected.len(), Some(i as u64)));
            for (loss, pair) in losses.iter().zip(expected) {
                assert_close(loss, -pair[0].as_f64().unwrap(), &format!("{task} {i}"));
            }
            if task == "lambada" {
                assert_eq!(ours["greedy"], expected[0][1], "{task} {i}");
                greedy[usize::from(ours["greedy"] == true)] += 1;
            }
        }
        let key = if task == "hellaswag" { "hellaswag_lm_eval" } else { task };
        for measure in ["acc", "acc_norm", "perplexity"] {
            match theirs[task][measure].as_f64() {
                Some(expected) => assert_close(&summary[format!("{key}_{measure}")], expected, task),
                None => assert!(summary.get(format!("{key}_{measure}")).is_none(), "{task} {measure}"),
            }
        }
    }
    assert!(greedy.iter().all(|&count| count > 0), "the texts do not tell greedy from not");
}

/// Each token counts once, in windows as long as the model's context and in short ones.
#[test]
fn texts_are_measured_as_by_lm_eval() {
    let dir = tempfile::tempdir().unwrap();
    let theirs: Value =
        serde_json::from_str(&fs::read_to_string(format!("{FIXTURE}/lm_eval.json")).unwrap()).unwrap();
    let measured = |flags: &str| {
        let mut eval =
            warpsmith(dir.path(), &format!("eval -e {FIXTURE} --text {FIXTURE}/text.jsonl {flags}"));
        let output = succeed(eval.args(["-o", "r.jsonl"]));
        assert!(stdout(&output).starts_with("text perplexity "), "{}", stdout(&output));
        json_lines(&dir.path().join("r.jsonl")).pop().unwrap()
    };
    let whole = measured("-b 1");
    for name in ["bits_per_byte", "byte_perplexity", "word_perplexity"] {
        let relative = |value: &Value| value.as_f64().unwrap().ln();
        let (found, expected) = (relative(&whole[format!("text_{name}")]), relative(&theirs["text"][name]));
        assert!((found - expected).abs() <= 2e-5 * expected.abs().max(1.0), "{name}: {found}, {expected}");
    }
    let sliding = measured("-b 3 -t 32 --stride 10");
    assert_close(
        &sliding["text_perplexity"],
        theirs["text"]["perplexity_32_10"].as_f64().unwrap(),
        "sliding",
    );
    assert_ne!(sliding["text_perplexity"], measured("-t 32")["text_perplexity"]);
    let mut long =
        warpsmith(dir.path(), &format!("eval -e {FIXTURE} --text {FIXTURE}/text.jsonl -t 32 --stride 33"));
    refuse_in_the_end(&mut long, &["--stride: expected at most -t 32", "found 33"]);
}

/// The model has learned this text by heart.
#[test]
fn written_text_is_compared_with_references() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"prompt": "the fox saw the hen and", "reference": ["no", "the hen saw the fox"]}"#,
        r#"{"prompt": "the clock struck one, and the mouse", "reference": "ran down from the clock"}"#,
    ];
    fs::write(dir.path().join("p.jsonl"), lines.join("\n")).unwrap();
    let eval = format!("eval -e {FIXTURE} --generate p.jsonl -g 9 -o r.jsonl");
    let text = stdout(&succeed(&mut warpsmith(dir.path(), &eval)));
    assert!(text.starts_with("BLEU ") && text.ends_with("; 2 texts\n"), "{text}");
    let lines = json_lines(&dir.path().join("r.jsonl"));
    let written = lines[0]["prediction"].as_str().unwrap();
    assert!(written.starts_with("the hen saw the fox"), "{written}");
    assert!(lines[0]["rouge1"].as_f64().unwrap() > 0.6, "{}", lines[0]);
    assert!(lines[2]["bleu"].as_f64().unwrap() > 30.0 && lines[2]["rougeL"].is_f64(), "{}", lines[2]);
}

#[test]
fn tasks_run_during_training_at_their_own_cadence() {
    let corpus = Corpus::new();
    let flags = "--context 128 -x 5 -v 0 -s 0 --task-every 2 -o log";
    let mut train = corpus.train();
    let output = succeed(train.args(flags.split(' ')).args(task_flags(&["piqa", "lambada"])));
    let text = stdout(&output);
    assert!(text.contains("PIQA acc ") && text.contains("LAMBADA perplexity "), "{text}");
    let lines = json_lines(&corpus.path("log/metrics.jsonl"));
    let scored: Vec<_> = lines.iter().filter(|line| line.get("piqa_acc").is_some()).collect();
    assert_eq!(scored.iter().map(|line| &line["step"]).collect::<Vec<_>>(), [2, 4, 5]);
    assert!(scored.iter().all(|line| line["piqa_chance"] == 0.5 && line["piqa_acc_norm"].is_f64()));
    assert!(lines.iter().all(|line| line.get("lambada_chance").is_none()));
}

#[test]
fn bad_tasks_are_refused_by_file_and_line() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    fs::write(dir.join("p.jsonl"), "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 7}\n")
        .unwrap();
    let eval = |flags: &str| {
        let mut command = warpsmith(dir, &format!("eval -e {FIXTURE}"));
        command.args(flags.split(' '));
        command
    };
    refuse_in_the_end(
        &mut eval("--task piqa=p.jsonl"),
        &["--task", "p.jsonl: line 1: label is 7; expected 0 to 1"],
    );
    refuse_in_the_end(&mut eval("--task piqa=none.jsonl"), &["--task", "none.jsonl"]);
    refuse(&mut eval("--task squad=p.jsonl"), &["--task", "expected a task (hellaswag", "found squad"]);
    refuse(&mut eval("--task piqa=p.jsonl --task piqa=p.jsonl"), &["piqa is given twice"]);
    let train = |flags: &str| {
        let mut command = corpus.train();
        command.args(flags.split(' '));
        command
    };
    refuse(&mut train("--task-every 5"), &["--task-every: no task is given"]);
    refuse(&mut train("-v 0 --task piqa=p.jsonl"), &["--task: scored every -v steps"]);
}
