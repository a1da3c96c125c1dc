//! Servers that misbehave, and processes that are killed: the same bytes in the end, and nothing
//! half-written that counts.

use super::common::{refuse, signal, stderr, succeed};
use super::server::Fault;
use super::{STORIES_FOLDER, Setting, TRAIN, files_in};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Part of the URL of the large file on the server of large files.
const CONTENT: &str = "train.txt?signature";

impl Setting {
    fn blobs(&self) -> PathBuf {
        self.dir.path().join("hf/hub").join(STORIES_FOLDER).join("blobs")
    }

    /// The partial file, and its length.
    fn partial(&self) -> Option<(PathBuf, u64)> {
        let name = files_in(&self.blobs()).into_iter().find(|name| name.ends_with(".incomplete"))?;
        let path = self.blobs().join(name);
        let len = fs::metadata(&path).ok()?.len();
        Some((path, len))
    }

    /// Waits until a part of the large file is here.
    fn wait_for_part(&self, bytes: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.partial().is_none_or(|(_, len)| len < bytes) {
            assert!(Instant::now() < deadline, "no part arrived: {:?}", files_in(&self.blobs()));
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn what_goes_wrong_once_is_made_up_for() {
    for (path, fault, times) in [
        (CONTENT, Fault::Cut(100_000), 1),
        (CONTENT, Fault::Cut(10_000), 20),
        (CONTENT, Fault::Cut(0), 2),
        (CONTENT, Fault::Corrupt, 1),
        (CONTENT, Fault::Announce(500), 1),
        (CONTENT, Fault::Announce(-500), 1),
        (CONTENT, Fault::Endless(0), 1),
        (CONTENT, Fault::Endless(10_000), 1),
        (CONTENT, Fault::Status(500, ""), 2),
        (CONTENT, Fault::Status(503, "Retry-After: 1"), 1),
        (CONTENT, Fault::Status(429, "Retry-After: 1"), 1),
        (CONTENT, Fault::Stall(40_000), 1),
        ("HEAD", Fault::Status(502, ""), 1),
        ("/api/", Fault::Status(429, "Retry-After: 1"), 1),
        ("/api/", Fault::Cut(20), 1),
        ("/api/", Fault::Stall(20), 1),
    ] {
        let setting = Setting::with_stories();
        setting.server.fault(path, fault.clone(), times);
        let output = setting.warpsmith("get tinystories").output().unwrap();
        assert!(output.status.success(), "{path} {fault:?}: {}", stderr(&output));
        setting.expect_stories();
        assert!(setting.partial().is_none(), "{path} {fault:?}");
    }
}

#[test]
fn what_is_here_is_not_fetched_again_after_a_cut() {
    let setting = Setting::with_stories();
    setting.server.fault(CONTENT, Fault::Cut(100_000), 1);
    setting.succeed("get tinystories");
    setting.expect_stories();
    let asked = setting.server.requests(CONTENT);
    assert!(asked.len() == 2 && asked[1].ends_with(" from 100000"), "{asked:?}");
}

/// Servers that do not do what a request for a part of a file asks.
#[test]
fn wrong_parts_are_not_taken_for_right_ones() {
    for fault in [Fault::IgnoreRange, Fault::OtherPart] {
        let setting = Setting::with_stories();
        setting.server.fault(CONTENT, Fault::Cut(100_000), 1);
        setting.server.fault(CONTENT, fault.clone(), 1);
        setting.succeed("get tinystories");
        setting.expect_stories();
        let asked = setting.server.requests(CONTENT);
        let restarts = asked.iter().filter(|line| !line.contains("from")).count();
        assert_eq!(restarts, if matches!(fault, Fault::IgnoreRange) { 1 } else { 2 }, "{asked:?}");
    }
}

#[test]
fn what_stays_wrong_is_one_line_and_is_resumed_when_it_is_right() {
    for (path, fault, words, kept) in [
        (
            CONTENT,
            Fault::Cut(50_000),
            &["the connection broke after", "of 300000 bytes", "run it again"][..],
            100_000,
        ),
        (CONTENT, Fault::Stall(50_000), &["the connection broke after", "run it again"], 50_000),
        (CONTENT, Fault::Announce(-500), &["expected 300000 bytes as the file, found 299500 announced"], 0),
        (CONTENT, Fault::Announce(7), &["expected 300000 bytes as the file, found 300007 announced"], 0),
        (CONTENT, Fault::Endless(10), &["expected 300000 bytes, found more"], 0),
        (CONTENT, Fault::Corrupt, &["expected sha256", "damaged", "run it again"], 0),
        (CONTENT, Fault::Status(500, ""), &["the server answered 500", "run it again"], 0),
        (CONTENT, Fault::Status(404, ""), &["the server answered 404"], 0),
        (CONTENT, Fault::Status(429, "Retry-After: 900"), &["429"], 0),
        (
            "/api/",
            Fault::Status(429, "Retry-After: 900"),
            &["429", "too many requests; run it again in 900 s"],
            0,
        ),
        ("/api/", Fault::Status(500, ""), &["500", "run it again"], 0),
        ("/api/", Fault::Cut(9), &["/api/datasets/roneneldan/TinyStories", "run it again"], 0),
        ("HEAD", Fault::Status(403, "X-Error-Code: GatedRepo"), &["403", "accept its conditions"], 0),
    ] {
        let setting = Setting::with_stories();
        // The first attempt, and one more after each that brought a byte.
        setting.server.fault(path, fault.clone(), if kept == 100_000 { 2 } else { 1 });
        let line = if kept == 100_000 {
            "get tinystories --jobs 1 --retries 1"
        } else {
            "get tinystories --jobs 1 --retries 0"
        };
        if kept == 100_000 {
            setting.server.fault(path, Fault::Cut(0), 9);
        }
        refuse(&mut setting.warpsmith(line), words);
        let whole = files_in(&setting.blobs()).into_iter().filter(|name| !name.ends_with(".incomplete"));
        assert!(whole.count() <= 1, "{fault:?}: only the other file may be whole");
        assert!(!setting.cached(STORIES_FOLDER, TRAIN).exists());
        assert_eq!(setting.partial().map_or(0, |(_, len)| len), kept, "{fault:?}");
        setting.server.heal();
        setting.server.requests("");
        setting.succeed("get tinystories");
        setting.expect_stories();
        let resumed = setting.server.requests(&format!("{CONTENT}=x from {kept}"));
        assert_eq!(resumed.len(), usize::from(kept > 0), "{fault:?}");
    }
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let setting = Setting::with_stories();
    setting.server.fault(CONTENT, Fault::Slow(2_000), 1);
    let mut child = setting.warpsmith("get tinystories").spawn().unwrap();
    setting.wait_for_part(60_000);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    assert!(!setting.cached(STORIES_FOLDER, TRAIN).exists());
    let here = setting.partial().unwrap().1;
    assert!((60_000..300_000).contains(&here), "{here}");
    setting.server.requests("");
    setting.succeed("get tinystories");
    setting.expect_stories();
    let asked = setting.server.requests(CONTENT);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].ends_with(&format!(" from {here}")), "{asked:?}");
}

/// Bytes that were changed on the disk, or are those of a longer file, do not end up in the file.
#[test]
fn a_damaged_part_is_thrown_away() {
    for damage in [&|bytes: &mut Vec<u8>| bytes[7] ^= 1, &|bytes: &mut Vec<u8>| bytes.resize(400_000, 7)]
        as [&dyn Fn(&mut Vec<u8>); 2]
    {
        let setting = Setting::with_stories();
        setting.server.fault(CONTENT, Fault::Cut(50_000), 1);
        refuse(&mut setting.warpsmith("get tinystories --jobs 1 --retries 0"), &["the connection broke"]);
        let (path, _) = setting.partial().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        setting.succeed("get tinystories --retries 1");
        setting.expect_stories();
    }
}

#[test]
fn two_processes_fetch_a_file_once() {
    let setting = Setting::with_stories();
    setting.server.fault(CONTENT, Fault::Slow(5_000), 1);
    let first =
        setting.warpsmith("get tinystories").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    setting.wait_for_part(20_000);
    let second = setting.warpsmith("get tinystories").output().unwrap();
    assert!(stderr(&second).contains("another process is fetching it"), "{}", stderr(&second));
    assert!(second.status.success() && first.wait_with_output().unwrap().status.success());
    setting.expect_stories();
    let asked = setting.server.requests(CONTENT);
    assert_eq!(asked.len(), 1, "{asked:?}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_one_line_or_no_harm() {
    let setting = Setting::with_stories();
    // A port that nobody listens on any more.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = |line: &str| {
        let mut command = setting.warpsmith(line);
        command.env("HF_ENDPOINT", format!("http://{nowhere}"));
        command
    };
    let words = [
        "tinystories: not all in the cache, and cannot reach http://127.0.0.1",
        "TinyStories/resolve/main/TinySt",
        "by hand",
    ];
    refuse(&mut unreachable("get tinystories --retries 0"), &words);
    refuse(
        &mut unreachable("get gpt2 --retries 0"),
        &["gpt2: not in the cache", "config.json and ", "give that folder with -e"],
    );
    setting.succeed("get tinystories");
    let output = succeed(&mut unreachable("get tinystories --retries 0"));
    assert!(stderr(&output).contains("using tinystories as it is in the cache"), "{}", stderr(&output));
    let mut nonsense = setting.warpsmith("get tinystories");
    refuse(nonsense.env("HF_ENDPOINT", "huggingface.co"), &["HF_ENDPOINT=huggingface.co: expected a URL"]);
}

#[test]
fn a_disk_that_is_too_small_is_one_line() {
    let setting = Setting::with_stories();
    setting.server.add("datasets/c/d", "small", b"small");
    setting.server.fault("HEAD /datasets/c/d", Fault::Announce(1 << 50), 1);
    refuse(
        &mut setting.warpsmith("get c/d --repo-type dataset"),
        &["c/d: 1125899906842629 bytes are left to fetch", "has room for", "HF_HOME"],
    );
}
