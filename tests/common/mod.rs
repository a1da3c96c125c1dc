//! Shared by the tests of the programs: a small corpus, and running a program to its end.
#![allow(dead_code)] // each test binary uses a part of it

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};
use warpsmith::checkpoint::{self, ModelFile};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::shard::ShardWriter;
use warpsmith::data::tokenizer::TokenizerId;
use warpsmith::params::{Init, PARAMS, ParamLayout};
use warpsmith::rng::Mt19937;
use warpsmith::tensor::Dtype;

pub const TRAIN_GPT2: &str = env!("CARGO_BIN_EXE_train_gpt2");
pub const TRAIN_GPT2CU: &str = env!("CARGO_BIN_EXE_train_gpt2cu");
pub const WARPSMITH: &str = env!("CARGO_BIN_EXE_warpsmith");

/// A directory with a training and a validation shard in it.
pub struct Corpus {
    pub dir: tempfile::TempDir,
}

impl Corpus {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_shard(&dir.path().join("x_train_000001.bin"), 5000, 1);
        write_shard(&dir.path().join("x_train_000002.bin"), 3000, 2);
        write_shard(&dir.path().join("x_val_000000.bin"), 2000, 3);
        Corpus { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `train_gpt2` on this corpus with a tiny model; more flags may follow.
    pub fn train(&self) -> Command {
        let mut command = Command::new(TRAIN_GPT2);
        command.current_dir(self.dir.path());
        command.args(["-i", "x_train_*.bin", "-j", "x_val_*.bin"]);
        command.args("--layers 2 --heads 2 --channels 16 -b 2 -t 16 -v 0 -s 0".split(' '));
        command
    }

    /// [`Self::train`] with more flags.
    pub fn train_with(&self, flags: &str) -> Command {
        let mut command = self.train();
        command.args(flags.split(' '));
        command
    }

    /// `train_gpt2cu` on this corpus, on the emulated device, from a model `small.bin`.
    pub fn train_cu_with(&self, flags: &str) -> Command {
        let mut command = Command::new(TRAIN_GPT2CU);
        command.current_dir(self.dir.path());
        command.args(
            "--device emulated --deterministic 1 -i x_train_*.bin -j x_val_*.bin -e small.bin".split(' '),
        );
        command.args("-b 1 -t 16 -v 0 -s 0".split(' ')).args(flags.split(' '));
        command
    }

    /// Compares files of the runs `whole` and `parts`.
    pub fn assert_same_files(&self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let [a, b] = ["whole", "parts"].map(|dir| {
                let path = self.path(dir).join(&name);
                std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            });
            assert!(a == b, "{name} differs");
        }
    }
}

/// Trains a model on the corpus for a few steps; its checkpoint is in `log`.
pub fn trained(corpus: &Corpus) {
    succeed(corpus.train().args("-l 1e-2 -x 20 -n 20 -v 10 -m 4 -o log".split(' ')));
}

/// `warpsmith` in a directory, with the words of `line` as its arguments.
pub fn warpsmith(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(WARPSMITH);
    command.current_dir(dir).args(line.split(' '));
    command
}

/// Makes a trainer's command one rank of a run as a launcher would; the ranks meet through a file
/// in their directory. The command of a run of one rank stays as it is.
pub fn as_rank(command: &mut Command, rank: usize, world_size: usize) -> &mut Command {
    if world_size > 1 {
        command.args(["-pi", "fs", "-pf", "."]).env("WORLD_SIZE", world_size.to_string());
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    }
    command
}

/// Sends the signal of that name, such as TERM, to a process.
pub fn signal(pid: impl Display, name: &str) {
    succeed(Command::new("kill").args([&format!("-{name}"), pid.to_string().trim()]));
}

/// The number of steps in the log of a run.
pub fn steps(dir: &Path) -> usize {
    let text = std::fs::read_to_string(dir.join("main.log")).unwrap_or_default();
    text.lines().filter(|line| line.contains(" trl:")).count()
}

/// Waits until a run has done `count` steps.
pub fn wait_for_steps(dir: &Path, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while steps(dir) < count {
        assert!(Instant::now() < deadline, "{count} steps took more than a minute");
        sleep(Duration::from_millis(5));
    }
}

/// Step, loss and norm of each step in a run's `metrics.jsonl`, as the exact text in the file.
pub fn losses(dir: &Path) -> Vec<(u64, String, String)> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line.get("loss").is_some())
        .map(|line| (line["step"].as_u64().unwrap(), line["loss"].to_string(), line["norm"].to_string()))
        .collect()
}

/// Removes the checkpoints after `step`, as if the process had died before writing them.
pub fn forget_after(dir: &Path, step: u32) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let found = name.split('_').nth(1).and_then(|s| s.get(..8)).and_then(|s| s.parse::<u32>().ok());
        if found.is_some_and(|found| found > step) {
            let path = dir.join(name);
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            removed.unwrap();
        }
    }
}

/// Turns a checkpoint into one that an early version could have written: of format 1, with no
/// digest in DONE, and without these fields of the trainer's state.
pub fn make_early(dir: &Path, step: u32, without: &[&str]) {
    let path = dir.join(format!("run_{step:08}.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut run: serde_json::Value = serde_json::from_str(&text).unwrap();
    run["format"] = 1.into();
    for digest in run["files"].as_object_mut().unwrap().values_mut() {
        digest.as_object_mut().unwrap().remove("tensors").unwrap();
    }
    for field in without {
        run["trainer"].as_object_mut().unwrap().remove(*field).unwrap();
    }
    std::fs::write(path, run.to_string()).unwrap();
    std::fs::write(dir.join(format!("DONE_{step:08}")), "").unwrap();
}

/// Writes a new model that is small in every dimension, including the vocabulary, and that GPU
/// kernels can run: its head size is 64.
pub fn write_small_model(path: &Path) {
    write_random_model(path, 64, 0.02);
}

/// Writes the same model for sequences of up to `maxT` tokens, with weights of that size.
pub fn write_random_model(path: &Path, maxT: usize, std: f64) {
    let config = ModelConfig { maxT, V: 503, Vp: 512, L: 2, NH: 2, C: 128, qkv_bias: true, lora: None };
    let layout = ParamLayout::new(&config);
    let mut params = vec![0.0; layout.len()];
    let mut rng = Mt19937::new(7);
    for spec in &PARAMS {
        let values = &mut params[layout.range(spec.param)];
        match spec.init {
            Init::Normal => rng.normal_fill(values, 0.0, std),
            Init::ResidualNormal => rng.normal_fill(values, 0.0, std / 2.0),
            Init::Zero | Init::Uniform => {}
            Init::One => values.fill(1.0),
        }
    }
    params[config.V * config.C..config.Vp * config.C].fill(0.0);
    checkpoint::save_model(path, &ModelFile { config, dropout: DropoutRates::NONE, params }, Dtype::F32)
        .unwrap();
}

/// Writes tokens with some structure to learn: each is mostly a function of its predecessor.
fn write_shard(path: &Path, len: usize, seed: u32) {
    let mut state = seed;
    let mut previous = 0u32;
    let tokens: Vec<u32> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 16) % 8;
            previous = (previous * 31 + noise) % 503;
            previous
        })
        .collect();
    let mut writer = ShardWriter::create(path, TokenizerId::GPT2).unwrap();
    writer.write(&tokens).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the command to its end and expects success.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}{}", stdout(&output), stderr(&output));
    output
}

/// Runs the command to its end and expects a refusal: exit code 2 and one line on standard error
/// that contains all `words`.
pub fn refuse(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{command:?}\n{}{message}", stdout(&output));
    assert_eq!(message.trim_end().lines().count(), 1, "{command:?}: more than one line:\n{message}");
    for word in words {
        assert!(message.contains(word), "{command:?}: expected {word:?} in: {message}");
    }
}

/// Expects a refusal whose line is the last on standard error, after notes on what is being done.
pub fn refuse_in_the_end(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let said = stderr(&output);
    let last = said.trim_end().lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
    assert!(words.iter().all(|word| last.contains(word)), "{command:?}: expected {words:?} in: {last}");
}
