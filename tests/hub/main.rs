//! `warpsmith get` and `-e gpt2`, against a server of the test's own that behaves like the hub, and
//! misbehaves.

#[path = "../common/mod.rs"]
mod common;
mod get;
mod models;
mod pipeline;
mod server;
mod trouble;

use server::Server;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A server, and an empty place for the client.
pub(crate) struct Setting {
    pub server: Server,
    pub dir: tempfile::TempDir,
}

impl Setting {
    pub fn new() -> Self {
        Setting { server: Server::start(), dir: tempfile::tempdir().unwrap() }
    }

    /// With the files of `tinystories`.
    pub fn with_stories() -> Self {
        let setting = Self::new();
        setting.server.add(STORIES, TRAIN, &noise(300_000, 1));
        setting.server.add(STORIES, VALID, &noise(50_000, 2));
        setting.server.add(STORIES, "README.md", b"not wanted");
        setting
    }

    /// `warpsmith` with the words of `line`, as a client of the server.
    pub fn warpsmith(&self, line: &str) -> Command {
        let mut command = common::warpsmith(self.dir.path(), line);
        self.server.env(&mut command, self.dir.path());
        command
    }

    pub fn succeed(&self, line: &str) -> Output {
        common::succeed(&mut self.warpsmith(line))
    }

    /// The place of a file of a repository in the cache.
    pub fn cached(&self, folder: &str, name: &str) -> PathBuf {
        self.dir.path().join("hf/hub").join(folder).join("snapshots").join(server::COMMIT).join(name)
    }

    /// Checks that the files of `tinystories` are in the cache as they are on the server.
    pub fn expect_stories(&self) {
        assert!(std::fs::read(self.cached(STORIES_FOLDER, TRAIN)).unwrap() == noise(300_000, 1));
        assert!(std::fs::read(self.cached(STORIES_FOLDER, VALID)).unwrap() == noise(50_000, 2));
    }
}

pub const STORIES: &str = "datasets/roneneldan/TinyStories";
pub const STORIES_FOLDER: &str = "datasets--roneneldan--TinyStories";
pub const TRAIN: &str = "TinyStoriesV2-GPT4-train.txt";
pub const VALID: &str = "TinyStoriesV2-GPT4-valid.txt";

/// Bytes without a pattern.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Paths below a directory, relative to it.
pub fn files_in(dir: &Path) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}
