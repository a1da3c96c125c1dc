//! Models of the hub, by name: `-e gpt2`.

use super::Setting;
use super::common::{self, Corpus, as_rank, losses, refuse, refuse_in_the_end, stderr, stdout, succeed};
use super::server::{Fault, Server};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A small model of GPT-2's kind and with its vocabulary, at the hub and in `model.bin` beside the
/// corpus.
fn setting() -> (Setting, Corpus) {
    let (setting, corpus) = (Setting::new(), Corpus::new());
    succeed(corpus.train().args("-x 1 -o first".split(' ')));
    for line in ["convert first model.bin", "convert model.bin hf/model.safetensors"] {
        succeed(&mut common::warpsmith(corpus.dir.path(), line));
    }
    for name in super::files_in(&corpus.path("hf")) {
        let content = fs::read(corpus.path("hf").join(&name)).unwrap();
        setting.server.add("openai-community/gpt2", &name, &content);
    }
    setting.server.add("openai-community/gpt2", "pytorch_model.bin", &[0; 5000]);
    fs::remove_dir_all(corpus.path("hf")).unwrap();
    (setting, corpus)
}

fn train(server: &Server, dir: &Path, line: &str) -> Command {
    let mut command = Command::new(common::TRAIN_GPT2);
    command
        .current_dir(dir)
        .args("-i x_train_*.bin -j x_val_*.bin -b 2 -t 16 -v 0 -s 0 -x 2 -l 1e-3".split(' '));
    command.args(line.split(' '));
    server.env(&mut command, dir);
    command
}

#[test]
fn training_starts_from_a_model_of_the_hub() {
    let (setting, corpus) = setting();
    let dir = corpus.dir.path();
    let output = succeed(&mut train(&setting.server, dir, "-e gpt2 -o hub"));
    assert!(stderr(&output).contains("gpt2: not in the cache; fetching "), "{}", stderr(&output));
    assert!(stdout(&output).contains("models--openai-community--gpt2/snapshots/"), "{}", stdout(&output));
    assert_eq!(setting.server.requests("pytorch_model.bin"), [""; 0]);
    succeed(&mut train(&setting.server, dir, "-e model.bin -o file"));
    assert_eq!(losses(&dir.join("hub")), losses(&dir.join("file")));

    // From the cache nothing is asked for, by either name.
    setting.server.requests("");
    succeed(&mut train(&setting.server, dir, "-e openai-community/gpt2 -o again"));
    assert_eq!(losses(&dir.join("again")), losses(&dir.join("file")));
    let tool = |line: &str| {
        let mut command = common::warpsmith(dir, line);
        succeed(setting.server.env(&mut command, dir));
    };
    tool("convert gpt2 copy.bin");
    assert!(fs::read(dir.join("copy.bin")).unwrap() == fs::read(dir.join("model.bin")).unwrap());
    tool("eval -e gpt2 --val x_val_*.bin -t 16 -m 1");
    tool("sample -e gpt2 -g 2 -p ! --temperature 0");
    assert_eq!(setting.server.requests(""), [""; 0]);

    // A folder of that name comes first.
    fs::create_dir(dir.join("gpt2")).unwrap();
    refuse(
        &mut train(&setting.server, dir, "-e gpt2"),
        &["gpt2: expected model.safetensors or a checkpoint"],
    );
}

#[test]
fn ranks_fetch_a_model_once() {
    let (setting, corpus) = setting();
    let dir = corpus.dir.path();
    setting.server.fault("model.safetensors?signature", Fault::Slow(40_000), 1);
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            let mut command = train(&setting.server, dir, "-e gpt2 -d 64 -o log");
            as_rank(&mut command, rank, 2).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(losses(&dir.join("log")).len(), 2);
    let asked = setting.server.requests("model.safetensors?signature");
    assert_eq!(asked.len(), 1, "{asked:?}");
}

#[test]
fn a_resumed_run_does_not_ask_for_its_first_model() {
    let (setting, corpus) = setting();
    let dir = corpus.dir.path();
    succeed(&mut train(&setting.server, dir, "-e gpt2 -o log"));
    fs::remove_dir_all(dir.join("hf")).unwrap();
    setting.server.requests("");
    succeed(&mut train(&setting.server, dir, "-e gpt2 -o log -y 1 -x 4"));
    assert_eq!(losses(&dir.join("log")).len(), 4);
    assert_eq!(setting.server.requests(""), [""; 0]);
}

#[test]
fn models_that_are_none_are_one_line() {
    let (setting, corpus) = setting();
    let dir = corpus.dir.path();
    let refused = |line: &str, words: &[&str]| refuse(&mut train(&setting.server, dir, line), words);
    refused("-e a/b", &["-e/--model a/b: no file or folder of that name", "404", "no such model"]);
    refused("-e gpt2 --layers 3", &["a checkpoint has its own shape"]);
    setting.server.add("c/pickled", "config.json", b"{}");
    setting.server.add("c/pickled", "pytorch_model.bin", b"x");
    refused("-e c/pickled", &["c/pickled", "no weights as safetensors", "save_pretrained"]);
    setting.server.add("c/data", "model.safetensors", b"x");
    refused("-e c/data", &["c/data", "no config.json; is it a model?"]);
    let mut offline = train(&setting.server, dir, "-e gpt2-xl");
    refuse(
        offline.env("HF_HUB_OFFLINE", "1"),
        &["gpt2-xl", "HF_HUB_OFFLINE is set", "give that folder with -e"],
    );
    let mut sample = common::warpsmith(dir, "sample -e a/b");
    refuse(setting.server.env(&mut sample, dir), &["a/b", "404", "no such model"]);
}

/// `-h 1` and `eval --hellaswag` need no path after `warpsmith get hellaswag`.
#[test]
fn questions_that_were_fetched_are_found() {
    let (setting, corpus) = setting();
    let dir = corpus.dir.path();
    let train = || {
        let mut command = corpus.train();
        command.args("-x 1 -v 1 -m 1 -h 1".split(' '));
        setting.server.env(&mut command, dir);
        command
    };
    let eval = |line: &str| {
        let mut command = common::warpsmith(dir, line);
        setting.server.env(&mut command, dir);
        command
    };
    let fetches = "which `warpsmith get hellaswag` fetches";
    refuse(&mut train(), &["dev/data/hellaswag/hellaswag_val.bin", fetches]);
    refuse_in_the_end(&mut eval("eval -e model.bin --hellaswag"), &["cannot read hellaswag", fetches]);
    let place = dir.join("hf/assets/warpsmith/hellaswag/hellaswag_val.jsonl");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    fs::copy(questions, place).unwrap();
    succeed(&mut train());
    let text = stdout(&succeed(&mut eval("eval -e model.bin --hellaswag")));
    assert!(text.contains("/24 = "), "{text}");
}

#[test]
fn a_preset_without_data_says_which_command_makes_them() {
    let dir = tempfile::tempdir().unwrap();
    for (preset, words) in [
        ("gpt2-124m", "warpsmith data hub:fineweb-edu -o dev/data/edu_fineweb10B --name edu_fineweb"),
        ("llmc-124m", "warpsmith data hub:fineweb -o dev/data/fineweb10B --name fineweb"),
    ] {
        let mut command = Command::new(common::TRAIN_GPT2);
        command.current_dir(dir.path()).args(["--preset", preset, "-o", "log"]);
        refuse(&mut command, &["no file matches", "fetch and tokenize them", words]);
    }
}
