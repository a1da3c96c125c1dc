//! Bad input of any kind makes `train_gpt2` print one line, exit with code 2, and lose nothing.

mod common;

use common::{Corpus, refuse, succeed};
use std::fs;

#[test]
fn flags() {
    let corpus = Corpus::new();
    let cases: &[(&str, &[&str])] = &[
        ("--lerning-rate 1", &["--lerning-rate", "--learning-rate"]),
        ("-b 0", &["-b", "0"]),
        ("-b four", &["-b", "four"]),
        ("-l -1", &["-l"]),
        ("-l nan", &["-l"]),
        ("-q 2", &["-q"]),
        ("-k cosin", &["-k", "cosine"]),
        ("-r 3", &["-r"]),
        ("-x", &["-x"]),
        ("-d 33", &["-d", "33", "32"]),
        ("--heads 3", &["3 heads"]),
        ("--layers 1000000", &["layers is 1000000", "at most 10000"]),
        ("--layers 10000 --channels 1048576 --heads 2", &["parameters"]),
        ("-b 1073741824 -t 1073741824", &["-b 1073741824", "-t 1073741824"]),
        ("-t 64 --context 32", &["-t", "64", "32"]),
        ("-e d13 --layers 2", &["d13", "d12"]),
        ("-e nowhere.bin --qkv-bias 1", &["nowhere.bin"]),
        ("-pn 2", &["-pn"]),
        ("-ge 1", &["-ge"]),
        ("-lg 5", &["-lg"]),
        ("-w 0", &["-w"]),
        ("--device cuda", &["--device", "cuda"]),
        ("--flash 0", &["--flash"]),
        ("-n 5", &["-n", "-o"]),
        ("-y 1", &["-y", "-o"]),
        ("-h 1 -v 1 --hellaswag-data none.jsonl", &["none.jsonl"]),
        ("-h 1 -v 0", &["-h", "-v"]),
        ("-s 0 --prompt Once", &["--prompt", "-s"]),
    ];
    for (flags, words) in cases {
        let mut command = corpus.train();
        if flags.starts_with("-e nowhere") {
            // A checkpoint brings its own shape.
            command = std::process::Command::new(common::TRAIN_GPT2);
            command.current_dir(corpus.dir.path()).args(["-i", "x_train_*.bin", "-j", "x_val_*.bin"]);
        }
        refuse(command.args(["-x", "1"]).args(flags.split(' ')), words);
    }
}

#[test]
fn token_shards() {
    let corpus = Corpus::new();
    let good = fs::read(corpus.path("x_train_000001.bin")).unwrap();
    let mut wrong_magic = good.clone();
    wrong_magic[0] ^= 1;
    let mut past_vocabulary = good.clone();
    past_vocabulary[1024 + 20..1024 + 22].copy_from_slice(&50300u16.to_le_bytes());
    let cases: [(&str, &[u8], &[&str]); 5] = [
        ("truncated.bin", &good[..good.len() - 2], &["truncated.bin"]),
        ("magic.bin", &wrong_magic, &["magic.bin", "20240520"]),
        ("header.bin", &good[..100], &["header.bin"]),
        ("empty.bin", &[], &["empty.bin"]),
        ("vocabulary.bin", &past_vocabulary, &["vocabulary.bin", "50300", "50257"]),
    ];
    for (name, bytes, words) in cases {
        fs::write(corpus.path(name), bytes).unwrap();
        refuse(corpus.train().args(["-i", name, "-x", "400"]), words);
        refuse(
            corpus.train().args(["-i", "x_train_*.bin", "-j", name, "-v", "1", "-m", "-1", "-x", "1"]),
            words,
        );
    }
    refuse(corpus.train().args(["-i", "absent_*.bin"]), &["-i", "absent_*.bin"]);
    refuse(corpus.train().args(["-i", "x_train_*.bin", "-t", "8000"]), &["-i"]);
}

/// A shard so long that no step reaches its end in time.
fn long_shard(path: &std::path::Path, last: u32) {
    let gpt2 = warpsmith::data::tokenizer::TokenizerId::GPT2;
    let mut writer = warpsmith::data::shard::ShardWriter::create(path, gpt2).unwrap();
    writer.write(&vec![7; 4_000_000]).unwrap();
    writer.write(&[last]).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

/// The number of steps that a refused run took, and its error.
fn steps_before_error(mut command: std::process::Command) -> (usize, String) {
    let output = command.output().unwrap();
    let error = common::stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    (common::stdout(&output).lines().filter(|line| line.starts_with("step ")).count(), error)
}

#[test]
fn a_bad_token_at_the_end_of_a_shard_ends_the_run_early() {
    let corpus = Corpus::new();
    long_shard(&corpus.path("long.bin"), 50_300);
    let mut command = corpus.train();
    command.args("-i long.bin -x 100000 --shuffle off".split(' '));
    let (steps, error) = steps_before_error(command);
    assert!(error.contains("long.bin: token 4000000 is 50300, outside the vocabulary of 50257"), "{error}");
    assert!(steps < 1000, "{steps} steps");
}

#[test]
fn a_shard_cut_short_during_a_run_is_an_error() {
    use std::io::{BufRead, BufReader, Read};
    let corpus = Corpus::new();
    long_shard(&corpus.path("long.bin"), 8);
    let mut command = corpus.train();
    command.args("-i long.bin -x 100000".split(' '));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut run = command.spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().starts_with("step "));
    fs::File::options().write(true).open(corpus.path("long.bin")).unwrap().set_len(2000).unwrap();
    lines.for_each(|line| drop(line.unwrap()));
    let mut error = String::new();
    run.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(2), "{error}");
    assert!(error.contains("long.bin: expected 8001026 bytes, found 2000; it was cut short"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_training_pattern_that_takes_the_validation_shard_along_is_a_warning() {
    let corpus = Corpus::new();
    let warning = |flags: &str| common::stderr(&succeed(corpus.train().args(flags.split(' '))));
    let warned = warning("-i x_*.bin -x 1 -v 1 -m 1");
    assert!(warned.contains("warning: -i and -j both match x_val_000000.bin"), "{warned}");
    assert!(!warning("-x 1 -v 1 -m 1").contains("both match"));
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_log() {
    let corpus = Corpus::new();
    for name in ["main.log", "metrics.jsonl"] {
        let dir = corpus.path(&format!("with_{name}"));
        fs::create_dir(&dir).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
        refuse(corpus.train().args(["-x", "1", "-o"]).arg(&dir), &[name, "a named pipe"]);
    }
}

#[test]
fn checkpoints() {
    let corpus = Corpus::new();
    succeed(corpus.train().args("-x 2 -n 1 -o out".split(' ')));
    let good = fs::read(corpus.path("out/model_00000002.bin")).unwrap();
    fs::write(corpus.path("short.bin"), &good[..good.len() - 4]).unwrap();
    fs::copy(corpus.path("x_train_000001.bin"), corpus.path("shard.bin")).unwrap();
    let header = br#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let mut llama = (header.len() as u64).to_le_bytes().to_vec();
    llama.extend_from_slice(header);
    llama.extend_from_slice(&[0; 16]);
    fs::write(corpus.path("llama.safetensors"), llama).unwrap();
    succeed(&mut common::warpsmith(corpus.dir.path(), "convert out good.gguf"));
    let gguf = fs::read(corpus.path("good.gguf")).unwrap();
    fs::write(corpus.path("short.gguf"), &gguf[..gguf.len() - 64]).unwrap();
    fs::write(corpus.path("header.gguf"), &gguf[..1000]).unwrap();
    fs::write(corpus.path("other.gguf"), [b"GGUF", &gguf[4..32], b"x", &gguf[33..]].concat()).unwrap();
    for (name, word) in [
        ("short.bin", "short.bin"),
        ("shard.bin", "token"),
        ("llama.safetensors", "llama.safetensors"),
        ("short.gguf", "short.gguf: tensor output_norm.bias: expected [16] elements of f32"),
        ("header.gguf", "header.gguf: "),
        ("other.gguf", "other.gguf: expected a model of the architecture gpt2, found none"),
    ] {
        let mut command = std::process::Command::new(common::TRAIN_GPT2);
        command.current_dir(corpus.dir.path()).args([
            "-i",
            "x_train_*.bin",
            "-j",
            "x_val_*.bin",
            "-b",
            "2",
            "-t",
            "16",
        ]);
        refuse(command.args(["-e", name, "-x", "1"]), &[word]);
    }
}

#[test]
fn a_default_model_that_is_not_there() {
    let corpus = Corpus::new();
    let mut command = std::process::Command::new(common::TRAIN_GPT2);
    command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -j x_val_*.bin -x 1".split(' '));
    refuse(&mut command, &["-e/--model", "gpt2_124M_bf16.bin, is not here", "d12"]);
}

#[test]
fn a_profile_of_steps_that_are_not_there() {
    let corpus = Corpus::new();
    let wanted = "expected FIRST:LAST, steps that count from 1 and ascend, such as 3:5, found ";
    for steps in ["5:3", "0:2", "a:b", "2:", ":2", "1:2:3", "-1:2", "0", "99999999999999999999"] {
        let flags = ["-x", "9", "-o", "out", &format!("--profile={steps}")];
        refuse(corpus.train().args(flags), &["--profile", &format!("{wanted}{steps}")]);
    }
    for steps in ["2:4", "4"] {
        let words = [&*format!("--profile {steps}: the run has 3 steps"), "-x"];
        refuse(corpus.train().args(["-x", "3", "-o", "out", "--profile", steps]), &words);
    }
    refuse(corpus.train().args(["-x", "3", "--profile", "2"]), &["--profile 2", "-o/--output-dir"]);
    assert!(!corpus.path("out").exists());
}

#[test]
fn an_output_directory_that_cannot_be_made() {
    let corpus = Corpus::new();
    fs::write(corpus.path("file"), "").unwrap();
    refuse(corpus.train().args("-x 1 -n 1 -o file/out".split(' ')), &["-o", "file/out"]);
}

/// A limit on file size stands in for a disk that fills up halfway through a checkpoint.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_the_checkpoint_before() {
    let corpus = Corpus::new();
    succeed(corpus.train().args("-x 2 -n 2 -o out".split(' ')));
    let train = corpus.train();
    let mut limited = std::process::Command::new("sh");
    limited.current_dir(corpus.dir.path());
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"])
        .arg(train.get_program())
        .args(train.get_args());
    let output = limited.args("-x 6 -n 2 -o out -y 1".split(' ')).output().unwrap();
    let said = common::stderr(&output);
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 2), "{said}");
    assert!(said.contains("the newest checkpoint is that of step 2"), "{said}");
    assert!(said.lines().last().unwrap().contains("cannot write out/model_00000004.bin"), "{said}");
    succeed(corpus.train().args("-x 6 -n 2 -o out -y 1".split(' ')));
    assert!(corpus.path("out/DONE_00000006").exists());
}
