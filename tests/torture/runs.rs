//! A tiny run, and all that it leaves behind.

use crate::common::{TRAIN_GPT2, stderr};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use warpsmith::checkpoint::{self, ModelFile};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::shard::ShardWriter;
use warpsmith::data::tokenizer::TokenizerId;
use warpsmith::params::ParamLayout;
use warpsmith::rng::Mt19937;
use warpsmith::tensor::Dtype;

/// Steps of the run: several checkpoints, validations, and epochs.
pub const STEPS: usize = 24;

/// A model of 9 KB with data for it, in a directory of its own.
pub struct Bed {
    pub directory: tempfile::TempDir,
    /// Further flags of the run.
    more: &'static str,
}

/// The files of a run by name, without what differs between any two runs: times.
pub type Files = BTreeMap<String, String>;

impl Bed {
    pub fn new() -> Self {
        Self::with_flags("")
    }

    pub fn with_flags(more: &'static str) -> Self {
        let bed = Bed { directory: tempfile::tempdir().unwrap(), more };
        let config = ModelConfig { maxT: 16, V: 61, Vp: 128, L: 1, NH: 1, C: 8, qkv_bias: true, lora: None };
        let mut params = vec![0.0; ParamLayout::new(&config).len()];
        Mt19937::new(7).normal_fill(&mut params, 0.0, 0.1);
        checkpoint::save_model(
            &bed.path("model.bin"),
            &ModelFile { config, dropout: DropoutRates::NONE, params },
            Dtype::F32,
        )
        .unwrap();
        for (name, tokens) in [("train_1", 300), ("train_2", 200), ("val", 100)] {
            let mut writer =
                ShardWriter::create(&bed.path(&format!("{name}.bin")), TokenizerId::GPT2).unwrap();
            let token = |i: u32| (i * i + 7 * i) % 61;
            writer.write(&(0..tokens).map(token).collect::<Vec<_>>()).unwrap();
            writer.seal().unwrap().publish().unwrap();
        }
        bed
    }

    /// The absolute path of a file, so that calls on it can be told from others.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// The command that starts the run in the directory `out`, and that resumes it.
    pub fn train(&self, out: &str) -> Command {
        let mut command = Command::new(TRAIN_GPT2);
        self.flags(&mut command, out);
        command
    }

    /// Adds the flags of the run to a command.
    pub fn flags(&self, command: &mut Command, out: &str) {
        let mut path = |flag: &str, name: &str| {
            command.arg(flag).arg(self.path(name));
        };
        path("-e", "model.bin");
        path("-i", "train_*.bin");
        path("-j", "val.bin");
        path("-o", out);
        let flags = "-b 1 -t 8 -d 16 -l 1e-2 -s 0 -v 6 -m 2 -n 4 -nk 2 -nm 8 -y 1 --threads 1";
        command.args(flags.split(' ')).args(["-x", &STEPS.to_string()]);
        command.args(self.more.split_whitespace());
    }

    /// Runs to the end in a directory, and returns all that is there then.
    pub fn finish(&self, out: &str) -> Files {
        let output = self.train(out).output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
        files(&self.path(out))
    }
}

/// Reads the files of a finished run. Times are left out of `metrics.jsonl`.
pub fn files(directory: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(self::files(&path).into_iter().map(|(file, text)| (format!("{name}/{file}"), text)));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let contents = match name.as_str() {
            "metrics.jsonl" => without_times(&String::from_utf8(bytes).unwrap()),
            // Held by the process that runs, and about the one that ran last.
            ".lock" | "settings.json" => continue,
            _ if bytes.len() < 4096 => String::from_utf8_lossy(&bytes).into_owned(),
            _ => format!("{} bytes, checksum {:08x}", bytes.len(), crc32fast::hash(&bytes)),
        };
        files.insert(name, contents);
    }
    files
}

/// The number of steps in the log of a run.
pub fn logged_steps(directory: &Path) -> usize {
    let log = fs::read_to_string(directory.join("main.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains(" trl:")).count()
}

/// The step of the newest checkpoint of a run; 0 without any.
pub fn saved_step(directory: &Path) -> usize {
    checkpoint::steps(directory).unwrap_or_default().last().map_or(0, |&step| step as usize)
}

fn without_times(metrics: &str) -> String {
    let line = |line: &str| {
        let mut line: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
        let timed = |name: &str| ["ms", "tok_per_s", "time"].contains(&name) || name.ends_with("rss_bytes");
        line.retain(|name, _| !timed(name));
        serde_json::to_string(&line).unwrap() + "\n"
    };
    metrics.lines().map(line).collect()
}

/// Whether two runs left the same. If not, says where they differ. A run that wrote a checkpoint
/// out of turn, before it ended, may keep that one instead of another, and lack the one that
/// failed; each of its files has to belong to a complete checkpoint, and there may be no more of
/// them. The run files of checkpoints before the last may differ: they lack a best model that was
/// not written.
pub fn same(found: &Files, expected: &Files) -> Result<(), String> {
    let last = format!("{STEPS:08}");
    let steps = |files: &Files| files.keys().filter(|name| name.starts_with("DONE_")).count();
    if steps(found) > steps(expected) || steps(found) + 1 < steps(expected) {
        return Err(format!("found the checkpoints of {:?}", found.keys()));
    }
    for name in found.keys().chain(expected.keys()) {
        let step = name.split('_').nth(1).and_then(|rest| rest.get(..8)).filter(|step| *step != last);
        let done = step.is_some_and(|step| found.contains_key(&format!("DONE_{step}")));
        match (found.get(name), expected.get(name)) {
            (Some(_), None) if done => {}
            (None, Some(_)) if step.is_some() => {}
            (Some(_), Some(_)) if done && (name.starts_with("run_") || name.starts_with("DONE_")) => {}
            (found, expected) if found == expected => {}
            (found, expected) => return Err(format!("{name}: found {found:?}, expected {expected:?}")),
        }
    }
    Ok(())
}
