//! Vocabularies of one's own, from text to a model and its samples.

mod common;

use common::{TRAIN_GPT2, refuse, refuse_in_the_end, stderr, stdout, succeed, warpsmith};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A folder with stories, a tokenizer of 400 tokens, and shards by it.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeed(&mut warpsmith(dir.path(), "stories -o s.txt --count 300 --seed 7"));
    succeed(&mut warpsmith(dir.path(), "tokenizer train s.txt --vocab-size 400 -o t/tokenizer.json"));
    succeed(&mut warpsmith(dir.path(), "data s.txt -o d --name x --tokenizer t"));
    dir
}

fn train(dir: &Path, flags: &str) -> Command {
    let mut command = Command::new(TRAIN_GPT2);
    let shape = "-i d/x_train_*.bin -j d/x_val_*.bin -b 2 -t 16 -l 1e-2 -v 2 -m 2 -g 8";
    command.current_dir(dir).args(shape.split(' ')).args(flags.split(' '));
    command
}

const NEW: &str = "--layers 1 --heads 2 --channels 16 --context 256 -o log";

#[test]
fn the_vocabulary_goes_with_shards_model_samples_and_exports() {
    let folder = prepared();
    let dir = folder.path();
    let file = fs::read(dir.join("t/tokenizer.json")).unwrap();
    assert!(fs::read(dir.join("d/tokenizer.json")).unwrap() == file);
    let text = stdout(&succeed(&mut train(dir, &format!("{NEW} -x 4 -n 2 -s 2"))));
    assert!(text.contains("400"), "the size of the vocabulary: {text}");
    assert!(fs::read(dir.join("log/tokenizer.json")).unwrap() == file);
    let again = stdout(&succeed(&mut train(dir, &format!("{NEW} -x 6 -n 2 -s 0 -y 1"))));
    assert!(again.contains("checkpoint of step 4"), "{again}");

    let sample = stdout(&succeed(&mut warpsmith(dir, "sample --model log --prompt Once --max-tokens 4")));
    assert!(sample.starts_with("Once"), "{sample}");
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    let mut eval = warpsmith(dir, "eval --model log --val d/x_val_*.bin -b 2 -m 1 --hellaswag");
    assert!(stdout(&succeed(eval.arg(questions))).contains("HellaSwag acc"));

    succeed(&mut warpsmith(dir, "convert log hf/model.safetensors"));
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join("hf").join(name)).unwrap()).unwrap()
    };
    assert_eq!(json("config.json")["vocab_size"], 400);
    assert_eq!(json("config.json")["eos_token_id"], 399);
    assert_eq!(json("generation_config.json")["eos_token_id"], 399);
    assert_eq!(json("tokenizer_config.json")["eos_token"], "<|endoftext|>");
    assert!(fs::read(dir.join("hf/tokenizer.json")).unwrap() == file);
    succeed(&mut warpsmith(dir, "convert hf back/model.bin"));
    let same = "sample --temperature 0 --max-tokens 4 --model";
    let [one, two] = ["log", "back/model.bin"]
        .map(|model| stdout(&succeed(&mut warpsmith(dir, &format!("{same} {model}")))));
    assert_eq!(one, two, "the .bin has its tokenizer beside it");
}

#[test]
fn shards_and_models_of_different_tokenizers_are_refused_by_name() {
    let folder = prepared();
    let dir = folder.path();
    succeed(&mut train(dir, &format!("{NEW} -x 2 -n 2 -s 0")));
    succeed(&mut warpsmith(dir, "data s.txt -o g --name x"));
    assert!(!dir.join("g/tokenizer.json").exists(), "GPT-2's is built in");
    let gpt2 = |command: &mut Command| {
        let line = "-i g/x_train_*.bin -j g/x_val_*.bin -b 2 -t 16 -v 2 -s 0";
        command.current_dir(dir).args(line.split(' '));
    };
    for flags in ["-o log -y 1 -x 4 --layers 1 --heads 2 --channels 16 --context 256", "-e log -x 2"] {
        let mut command = Command::new(TRAIN_GPT2);
        gpt2(&mut command);
        refuse(
            command.args(flags.split(' ')),
            &["-i", "expected tokens of the tokenizer log/tokenizer.json", "gpt2"],
        );
    }
    refuse(
        &mut train(dir, &format!("{NEW} -x 2 -s 0 -o other -j g/x_val_*.bin")),
        &["-j", "gpt2", "400 tokens"],
    );
    refuse_in_the_end(
        &mut warpsmith(dir, "eval --model log --val g/x_val_*.bin -b 2"),
        &["--val", "log/tokenizer.json", "gpt2"],
    );

    let mut command = Command::new(TRAIN_GPT2);
    gpt2(&mut command);
    succeed(command.args("--layers 1 --heads 1 --channels 8 -x 1 -o old".split(' ')));
    refuse(&mut train(dir, "-e old -x 1 -s 0"), &["-i", "400 tokens", "the model's is gpt2 of 50257 tokens"]);

    // Two tokenizers among the shards of one pattern, and in one folder.
    refuse(
        &mut train(dir, &format!("{NEW} -x 1 -s 0 -o mixed -i ?/x_train_*.bin")),
        &["-i", "g/x_train", "gpt2"],
    );
    succeed(&mut warpsmith(dir, "tokenizer train s.txt --vocab-size 401 -o u/tokenizer.json"));
    refuse(&mut warpsmith(dir, "data s.txt -o d --name y --tokenizer u"), &["d/tokenizer.json", "--force"]);
    fs::remove_file(dir.join("d/tokenizer.json")).unwrap();
    refuse(
        &mut train(dir, &format!("{NEW} -x 1 -s 1 -o new")),
        &["-s 1: needs the tokenizer", "tokenizer.json into d"],
    );
    succeed(&mut train(dir, &format!("{NEW} -x 1 -s 0 -o new")));
    refuse_in_the_end(
        &mut warpsmith(dir, "sample --model new"),
        &["new: the tokenizer of the model", "put its tokenizer.json there"],
    );
}

#[test]
fn tokenizers_are_converted_and_bad_ones_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = stdout(&succeed(&mut warpsmith(dir, "tokenizer convert gpt2 gpt2_tokenizer.bin")));
    assert_eq!(text, "gpt2_tokenizer.bin: 50257 tokens, <|endoftext|> is 50256\n");
    succeed(&mut warpsmith(dir, "tokenizer convert gpt2_tokenizer.bin tokenizer.json"));
    succeed(&mut warpsmith(dir, "tokenizer convert tokenizer.json again.bin"));
    assert!(fs::read(dir.join("gpt2_tokenizer.bin")).unwrap() == fs::read(dir.join("again.bin")).unwrap());
    refuse(&mut warpsmith(dir, "tokenizer convert gpt2 again.bin"), &["again.bin", "--force"]);
    refuse(&mut warpsmith(dir, "tokenizer convert gpt2 vocab.txt"), &[".json or .bin", "vocab.txt"]);
    fs::write(dir.join("a.txt"), "Some words, some words.").unwrap();
    refuse_in_the_end(
        &mut warpsmith(dir, "tokenizer train a.txt --vocab-size 300 -o b.json"),
        &["--vocab-size 300", "more text"],
    );
    refuse_in_the_end(
        &mut warpsmith(dir, "tokenizer train a.txt --vocab-size 20 -o b.json"),
        &["--vocab-size 20", "257"],
    );
    fs::write(dir.join("bad.json"), "{\"model\": ").unwrap();
    let line = "data a.txt -o out --val-tokens 1 --tokenizer";
    refuse(&mut warpsmith(dir, &format!("{line} bad.json")), &["--tokenizer", "bad.json", "not JSON"]);
    refuse(&mut warpsmith(dir, &format!("{line} none.json")), &["--tokenizer", "none.json"]);
    // The same shards, byte for byte, as without the flag.
    fs::write(dir.join("c.txt"), "One word.<|endoftext|>Two more.<|endoftext|>And three words.").unwrap();
    let output = succeed(&mut warpsmith(dir, "data c.txt -o out --val-tokens 1 --tokenizer tokenizer.json"));
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    let with = fs::read(dir.join("out/data_train_000001.bin")).unwrap();
    succeed(&mut warpsmith(dir, "data c.txt -o plain --val-tokens 1"));
    assert!(with == fs::read(dir.join("plain/data_train_000001.bin")).unwrap());
}
