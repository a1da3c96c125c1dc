//! The readers of `hub`: names, answers, and what is in the cache.

use super::{directory, judge, write};
use std::time::Duration;
use warpsmith::hub::{Hub, Options, RepoKind, Settings, Source, files_in_answer};

pub const NAMES: [&str; 4] = [
    "tinystories",
    "fineweb-edu:100BT",
    "hf://datasets/HuggingFaceFW/fineweb-edu@v1.0/sample/*.parquet",
    "https://huggingface.co/datasets/roneneldan/TinyStories/tree/main/data",
];

pub fn names(bytes: &[u8]) -> bool {
    let name = String::from_utf8_lossy(bytes);
    judge(Source::parse(&name, RepoKind::Model), &name)
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn answer_seed() -> Vec<u8> {
    let names = r#"{"rfilename": "a.txt"}, {"rfilename": "sub/b.parquet", "size": 7}"#;
    format!(r#"{{"id": "a/b", "sha": "{COMMIT}", "siblings": [{names}]}}"#).into()
}

pub fn answer(bytes: &[u8]) -> bool {
    judge(files_in_answer(bytes), "")
}

/// Lists a repository of the cache, offline. No name in the list leads out of the cache.
pub fn cache(bytes: &[u8]) -> bool {
    let cache = directory().join("cache");
    let folder = cache.join("datasets--a--b");
    write(&folder.join("refs/main"), COMMIT.as_bytes());
    write(&folder.join(".listings").join(COMMIT), bytes);
    for name in ["a.txt", "sub/b.txt"] {
        write(&folder.join("snapshots").join(COMMIT).join(name), b"text");
    }
    let settings = Settings {
        endpoint: "http://hub.invalid".into(),
        raw_github: "http://hub.invalid".into(),
        cache,
        assets: directory().join("assets"),
        token: None,
        offline: true,
        silence: Duration::from_secs(1),
    };
    let source = Source::parse("a/b", RepoKind::Dataset).unwrap();
    judge(Hub::new(settings, Options::default()).list(&source), "a/b")
}
