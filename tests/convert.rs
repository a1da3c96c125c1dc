//! `warpsmith data` and `warpsmith convert`, run as a user runs them: text, tokens and models
//! become what training reads.

mod common;

use common::{Corpus, refuse, refuse_in_the_end, stdout, succeed, trained, warpsmith};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn text_and_json_lines_become_shards() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let text = "It was a dark night.\n\nThe moon rose. <|endoftext|> is only text.\n\n".repeat(200);
    fs::create_dir(dir.join("in")).unwrap();
    fs::write(dir.join("in/a.txt"), &text).unwrap();
    fs::write(dir.join("in/b.jsonl"), "{\"text\": \"One line.\"}\n{\"text\": \"Another one.\"}\n").unwrap();
    let report =
        stdout(&succeed(&mut warpsmith(dir, "data in -o out --name n --val-tokens 500 --shard-size 1000")));
    assert!(report.contains("500 validation"), "{report}");
    assert!(
        dir.join("out/n_val_000000.bin").exists() && dir.join("out/n_train_000003.bin").exists(),
        "{report}"
    );

    refuse(&mut warpsmith(dir, "data in -o out --name n"), &["out/n_", "already exists", "--force"]);
    fs::write(dir.join("bad.txt"), b"fine so far \xff\xfe and on").unwrap();
    refuse(&mut warpsmith(dir, "data bad.txt -o bad"), &["bad.txt", "12"]);
    fs::write(dir.join("bad.jsonl"), "{\"text\": \"fine\"}\n{\"title\": 1}\n").unwrap();
    refuse(&mut warpsmith(dir, "data bad.jsonl -o bad --val-tokens 1"), &["bad.jsonl:2", "text"]);
    refuse(&mut warpsmith(dir, "data nowhere.txt -o bad"), &["nowhere.txt"]);
    refuse(&mut warpsmith(dir, "dat in -o bad"), &["dat", "data"]);
    let left: Vec<_> = fs::read_dir(dir.join("bad")).map(|d| d.collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs `data`. Returns its standard output and standard error.
fn data(dir: &Path, line: &str) -> (String, String) {
    let output = succeed(&mut warpsmith(dir, &format!("data {line}")));
    (stdout(&output), common::stderr(&output))
}

/// The text of all shards of `out`, in order.
fn text_of(dir: &Path, out: &str) -> String {
    let tokens = |path: std::path::PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes[1024..].chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect::<Vec<_>>()
    };
    let names = ["data_val_000000.bin", "data_train_000001.bin"];
    let tokens = names.map(|name| tokens(dir.join(out).join(name))).concat();
    String::from_utf8(warpsmith::data::tokenizer::Tokenizer::gpt2().decode_bytes(&tokens)).unwrap()
}

#[test]
fn input_is_what_it_holds_whatever_its_name() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let lines = "{\"text\": \"One.\"}\n{\"text\": \"Two.\"}\n";
    let expected = "<|endoftext|>One.<|endoftext|>Two.";
    fs::write(dir.join("a.txt"), lines).unwrap();
    fs::write(dir.join("b.json"), "[{\"text\": \"One.\"},\n {\"text\": \"Two.\"}]").unwrap();
    fs::write(dir.join("c.txt"), "\u{feff}One.<|endoftext|>\nTwo.").unwrap();
    for name in ["a.txt", "b.json", "c.txt"] {
        // The first document has three tokens, and is drawn.
        let (report, warnings) = data(dir, &format!("{name} -o o --val-tokens 3 --force"));
        assert!(report.contains("2 documents, "), "{report}");
        assert_eq!(report.contains("split at 1 <|endoftext|>; --split-on none"), name == "c.txt", "{report}");
        assert!(!warnings.contains("warning"), "{warnings}");
        assert_eq!(text_of(dir, "o"), expected, "{name}");
    }
    for file in ["a.txt", "b.json"] {
        let mut piped = warpsmith(dir, "data - -o p --val-tokens 3 --force");
        succeed(piped.stdin(fs::File::open(dir.join(file)).unwrap()));
        assert_eq!(text_of(dir, "p"), expected);
    }
    let (report, _) = data(dir, "c.txt -o o --val-tokens 2 --force --split-on none");
    assert!(report.starts_with("1 document, "), "{report}");

    fs::write(dir.join("odd.txt"), "{\"body\": \"words of a text\"}\n").unwrap();
    let (_, warnings) = data(dir, "odd.txt -o o --val-tokens 2 --force");
    assert!(warnings.contains("warning: odd.txt: looks like JSON, and is read as text"), "{warnings}");
    refuse(
        &mut warpsmith(dir, "data c.txt -o q --json-field text"),
        &["c.txt", "--text-column text", "found text"],
    );
    fs::write(dir.join("t.parquet"), b"PAR1\x15\x04").unwrap();
    refuse(
        &mut warpsmith(dir, "data t.parquet -o q"),
        &["t.parquet", "the parquet data are damaged or cut short"],
    );
    fs::write(dir.join("nul.txt"), b"some\0text").unwrap();
    refuse(&mut warpsmith(dir, "data nul.txt -o q"), &["nul.txt: byte 4 is NUL"]);
    fs::write(dir.join("empty.txt"), "").unwrap();
    refuse(&mut warpsmith(dir, "data empty.txt -o q"), &["the input is empty"]);

    fs::write(dir.join("crlf.txt"), "One.\r\n\r\nTwo.\r\n").unwrap();
    let (_, warnings) = data(dir, r"crlf.txt -o o --val-tokens 2 --force --split-on \n\n");
    assert!(warnings.contains(r"--split-on \n\n: not found"), "{warnings}");
    assert!(warnings.contains(r"lines of this text end in \r\n"), "{warnings}");
}

#[test]
fn bad_json_lines_are_left_out_if_asked_and_counted() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let bad =
        ["{\"text\": null}", "{\"text\": \"\\ud83d\"}", "{\"text\": \"a\", \"x\": NaN}", "{\"text\": \"cut"];
    fs::write(dir.join("a.jsonl"), format!("{{\"text\": \"Good <|endoftext|> text.\"}}\n{}", bad.join("\n")))
        .unwrap();
    refuse(
        &mut warpsmith(dir, "data a.jsonl -o o --val-tokens 2"),
        &["a.jsonl:2: field \"text\" is not a string"],
    );
    let (report, warnings) = data(dir, "a.jsonl -o o --val-tokens 2 --skip-bad-lines");
    assert!(report.starts_with("1 document, "), "{report}");
    assert!(warnings.contains("left out 4 records; the first is a.jsonl:2: field"), "{warnings}");
    assert!(warnings.contains("<|endoftext|> is ordinary text 1 time; --allow-special"), "{warnings}");
    let (_, warnings) = data(dir, "a.jsonl -o o --val-tokens 2 --skip-bad-lines --allow-special --force");
    assert!(!warnings.contains("ordinary"), "{warnings}");
    // The tokens are the start, a word, a space, the mark, a word and the full stop.
    assert_eq!(fs::metadata(dir.join("o/data_train_000001.bin")).unwrap().len(), 1024 + 2 * (6 - 2));
}

#[cfg(unix)]
#[test]
fn folders_with_pipes_and_their_own_output_are_read() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    fs::create_dir(dir.join("in")).unwrap();
    fs::write(dir.join("in/a.txt"), "Some words of a text.").unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("in/pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("nowhere", dir.join("in/dangling")).unwrap();
    let expected = "warning: skipped 2 names that cannot be read as files: \
                    in/dangling (a dangling link), in/pipe (a named pipe)";
    for _ in 0..2 {
        let (_, warnings) = data(dir, "in -o in --val-tokens 2 --force");
        assert!(warnings.contains(expected), "{warnings}");
        assert_eq!(text_of(dir, "in"), "<|endoftext|>Some words of a text.");
    }
    refuse(&mut warpsmith(dir, "data in/pipe -o o"), &["in/pipe", "a named pipe", "data - < FILE"]);
    assert!(!dir.join("o").exists());
}

#[test]
fn tokens_of_other_programs_become_shards_that_train() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let shard = fs::read(dir.join("x_train_000001.bin")).unwrap();
    fs::write(dir.join("train.bin"), &shard[1024..]).unwrap();
    let dict = "{'descr': '<u2', 'fortran_order': False, 'shape': (5000,), }\n";
    let start = [b"\x93NUMPY\x01\0", &(dict.len() as u16).to_le_bytes()[..], dict.as_bytes()].concat();
    fs::write(dir.join("x.npy"), [&start, &shard[1024..]].concat()).unwrap();
    let advice = "warpsmith convert train.bin OUT.bin --raw-tokens";
    refuse(corpus.train().args(["-i", "train.bin"]), &["train.bin", "make a shard of it", advice]);
    for (name, flag) in [("train.bin", " --raw-tokens"), ("x.npy", "")] {
        let report = stdout(&succeed(&mut warpsmith(dir, &format!("convert {name} {name}.bin{flag}"))));
        assert_eq!(report, format!("{name}.bin: 5000 tokens\n"));
        assert!(fs::read(dir.join(format!("{name}.bin"))).unwrap() == shard, "{name}");
    }
    refuse(&mut warpsmith(dir, "data x.npy -o o"), &["x.npy: a NumPy file", "warpsmith convert"]);
}

#[test]
fn models_convert_there_and_back() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    succeed(&mut warpsmith(dir, "convert log hf/model.safetensors"));
    assert!(dir.join("hf/config.json").exists());
    succeed(&mut warpsmith(dir, "convert hf back.bin"));
    assert!(fs::read(dir.join("log/model_00000020.bin")).unwrap() == fs::read(dir.join("back.bin")).unwrap());
    succeed(&mut warpsmith(dir, "convert log half.bin --dtype bf16"));
    let flags = "-j x_val_*.bin -i x_train_*.bin -b 2 -t 16 -x 1 -e half.bin";
    succeed(Command::new(common::TRAIN_GPT2).current_dir(dir).args(flags.split(' ')));
}

#[test]
fn models_go_to_llama_cpp_and_back() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    succeed(&mut warpsmith(dir, "convert log out/tiny.gguf"));
    assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), 1, "the tokenizer is in the file");
    succeed(&mut warpsmith(dir, "convert out/tiny.gguf back.bin"));
    assert!(fs::read(dir.join("log/model_00000020.bin")).unwrap() == fs::read(dir.join("back.bin")).unwrap());
    let [ours, theirs] = ["log", "out/tiny.gguf"]
        .map(|model| stdout(&succeed(&mut warpsmith(dir, &format!("sample -e {model} -p Once -g 8")))));
    assert_eq!(ours, theirs);
    let flags = "-j x_val_*.bin -i x_train_*.bin -b 2 -t 16 -x 1 -e out/tiny.gguf";
    succeed(Command::new(common::TRAIN_GPT2).current_dir(dir).args(flags.split(' ')));

    for dtype in ["bf16", "fp16"] {
        succeed(&mut warpsmith(dir, &format!("convert log half.gguf --force --dtype {dtype}")));
        succeed(&mut warpsmith(dir, &format!("convert log half/model.safetensors --force --dtype {dtype}")));
        for (half, name) in [("half.gguf", "one"), ("half", "two")] {
            succeed(&mut warpsmith(dir, &format!("convert {half} {name}.bin --force")));
        }
        let [one, two] = ["one.bin", "two.bin"].map(|name| {
            let mut model = warpsmith::checkpoint::load_model(&dir.join(name)).unwrap();
            // Vectors and positions are always f32 in GGUF.
            let layout = warpsmith::params::ParamLayout::new(&model.config);
            model.params.truncate(layout.range(warpsmith::params::Param::Wte).end);
            model.params
        });
        assert!(one == two, "{dtype}");
    }
    refuse(&mut warpsmith(dir, "convert log out/tiny.gguf"), &["out/tiny.gguf", "already exists", "--force"]);
    refuse_in_the_end(
        &mut warpsmith(dir, "convert log q.gguf --dtype q8_0"),
        &["q.gguf: q8_0 has blocks of 32 elements, into which 16 channels do not divide"],
    );
    refuse(
        &mut warpsmith(dir, "convert log q.bin --dtype q8_0"),
        &["--dtype: expected f32 or bf16 in q.bin"],
    );

    // A tokenizer that llama.cpp does not know, and none.
    let words = r#"{"pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [], "model": {"type": "WordLevel",
        "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "</s>": 1, "a": 2}}}"#;
    fs::write(dir.join("log/tokenizer.json"), words).unwrap();
    let expected = ["w.gguf: log/tokenizer.json: expected byte-level BPE, found a tokenizer of another kind"];
    refuse_in_the_end(&mut warpsmith(dir, "convert log w.gguf"), &expected);
    common::write_small_model(&dir.join("alone/small.bin"));
    let expected =
        ["alone: the tokenizer of the model, of 503 tokens, is unknown; put its tokenizer.json there"];
    refuse_in_the_end(&mut warpsmith(dir, "convert alone/small.bin w.gguf"), &expected);
    assert!(!dir.join("w.gguf").exists() && !dir.join("q.gguf").exists());
}

#[test]
fn convert_replaces_only_what_it_may() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    let convert = |line: &str| warpsmith(dir, &format!("convert {line}"));
    fs::write(dir.join("a.bin"), "mine").unwrap();
    refuse(&mut convert("log a.bin"), &["a.bin", "already exists", "--force"]);
    assert_eq!(fs::read(dir.join("a.bin")).unwrap(), b"mine");
    succeed(&mut convert("log a.bin --force"));

    fs::create_dir(dir.join("other")).unwrap();
    let theirs = r#"{"model_type": "gpt2", "n_layer": 12, "mine": true}"#;
    fs::write(dir.join("other/config.json"), theirs).unwrap();
    refuse(&mut convert("log other/tiny.safetensors"), &["other/config.json", "--force"]);
    assert!(!dir.join("other/tiny.safetensors").exists());
    assert_eq!(fs::read_to_string(dir.join("other/config.json")).unwrap(), theirs);
    succeed(&mut convert("log other/tiny.safetensors --force"));
    // The config of the same model may stay.
    succeed(&mut convert("log other/again.safetensors"));

    let before = fs::read(dir.join("log/model_00000020.bin")).unwrap();
    for name in ["model_00000020.bin", "state_00000020_00000.bin", "model_best.bin"] {
        refuse(&mut convert(&format!("a.bin log/{name} --force")), &[name, "choose another name"]);
    }
    assert!(fs::read(dir.join("log/model_00000020.bin")).unwrap() == before);
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    refuse(&mut convert(&format!("{questions} a.bin")), &["a.bin", "--force"]);
}
