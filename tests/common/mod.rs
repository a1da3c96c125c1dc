//! What the tests of the programs share: a small corpus, and running a program to its end.
#![allow(dead_code)] // each test binary uses its own part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use warpsmith::data::shard::ShardWriter;

pub const TRAIN_GPT2: &str = env!("CARGO_BIN_EXE_train_gpt2");
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
}

/// Tokens with some structure to learn: each is mostly a function of the one before.
fn write_shard(path: &Path, len: usize, seed: u32) {
    let mut state = seed;
    let mut previous = 0u32;
    let tokens: Vec<u16> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 16) % 8;
            previous = (previous * 31 + noise) % 503;
            previous as u16
        })
        .collect();
    let mut writer = ShardWriter::create(path).unwrap();
    writer.write(&tokens).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs to the end and expects success.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}{}", stdout(&output), stderr(&output));
    output
}

/// Runs to the end and expects a refusal: exit code 2 and one line on standard error that holds all of `words`.
pub fn refuse(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{command:?}\n{}{message}", stdout(&output));
    assert_eq!(message.trim_end().lines().count(), 1, "{command:?}: more than one line:\n{message}");
    for word in words {
        assert!(message.contains(word), "{command:?}: expected {word:?} in: {message}");
    }
}
