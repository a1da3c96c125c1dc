//! From nothing to a trained model: fetched, tokenized and trained on, with a kill in each stage.

use super::common::{self, losses, refuse, signal, succeed, wait_for_steps};
use super::server::Fault;
use super::{STORIES, Setting, TRAIN, VALID, files_in};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use warpsmith::data::stories::story;

fn setting() -> Setting {
    let setting = Setting::new();
    let text = |seed, count| (0..count).map(|i| story(seed, i) + "<|endoftext|>\n").collect::<String>();
    setting.server.add(STORIES, TRAIN, text(1, 4000).as_bytes());
    setting.server.add(STORIES, VALID, text(2, 20).as_bytes());
    setting
}

const GET: &str = "get tinystories -o text";
const DATA: &str = "data hub:tinystories -o data --name tiny";

fn train(dir: &Path, log: &str) -> Command {
    let mut command = Command::new(common::TRAIN_GPT2);
    command
        .current_dir(dir)
        .args("-i data/tiny_train_*.bin -j data/tiny_val_*.bin -b 2 -t 16 -v 2 -m 1".split(' '));
    command.args("--layers 2 --heads 2 --channels 16 -s 0 -n 1 -x 4 -y 1 -o".split(' ')).arg(log);
    command
}

fn shards(setting: &Setting) -> Vec<(String, Vec<u8>)> {
    let dir = setting.dir.path().join("data");
    let files = files_in(&dir).into_iter().filter(|name| name.ends_with(".bin") && !name.starts_with('.'));
    files.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

/// Starts a command, and kills it when `is_due`, or lets it end if that comes first.
fn killed(command: &mut Command, is_due: impl Fn() -> bool) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_due() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "{command:?} takes more than a minute");
        sleep(Duration::from_millis(2));
    }
    signal_if_alive(&mut child);
    child.wait().unwrap();
}

fn signal_if_alive(child: &mut std::process::Child) {
    if child.try_wait().unwrap().is_none() {
        signal(child.id(), "KILL");
    }
}

#[test]
fn from_nothing_to_a_model_with_a_kill_in_each_stage() {
    let plain = setting();
    plain.succeed(GET);
    plain.succeed(&format!("data text/{TRAIN} --val text/{VALID} -o data --name tiny"));
    succeed(&mut train(plain.dir.path(), "log"));

    let setting = setting();
    let dir = setting.dir.path();
    setting.server.fault("train.txt?signature", Fault::Slow(4_000), 1);
    let size = |name: &String| fs::metadata(dir.join("hf").join(name)).map_or(0, |found| found.len());
    let is_part = |name: &String| name.ends_with(".incomplete") && size(name) > 50_000;
    let is_part_here = || files_in(&dir.join("hf")).iter().any(is_part);
    killed(&mut setting.warpsmith(GET), is_part_here);
    assert!(!dir.join("text").join(TRAIN).exists());
    setting.succeed(GET);
    assert_eq!(setting.server.requests("train.txt?signature").len(), 2);

    let has_begun = || files_in(&dir.join("data")).iter().any(|name| name.ends_with(".tmp"));
    killed(&mut setting.warpsmith(DATA), has_begun);
    assert_eq!(shards(&setting).len(), 0, "no shard has a name before all are whole");
    setting.succeed(DATA);
    assert!(shards(&plain) == shards(&setting) && shards(&plain).len() == 2);

    let log = dir.join("log");
    let mut child = train(dir, "log").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_steps(&log, 2);
    signal_if_alive(&mut child);
    child.wait().unwrap();
    succeed(&mut train(dir, "log"));
    assert_eq!(losses(&plain.dir.path().join("log")), losses(&log));
}

#[test]
fn text_is_tokenized_as_it_arrives_and_after_a_kill() {
    let setting = setting();
    let dir = setting.dir.path();
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parquet/zstd.parquet");
    let parquet = fs::read(parquet).unwrap();
    setting.server.add("datasets/a/b", "data/1.parquet", &parquet);
    setting.server.add("datasets/a/b", "data/2.txt", story(3, 0).repeat(2000).as_bytes());
    setting.server.add("datasets/a/b", "README.md", b"not wanted");
    setting.succeed("get hf://datasets/a/b/data -o text");
    setting.succeed("data text -o data --val-tokens 500");
    let expected = shards(&setting);
    fs::remove_dir_all(dir.join("data")).unwrap();
    fs::remove_dir_all(dir.join("hf")).unwrap();

    setting.server.fault("2.txt?signature", Fault::Slow(4_000), 1);
    let is_part = |name: &String| name.ends_with(".incomplete");
    let line = "data hf://datasets/a/b/data -o data --val-tokens 500";
    killed(&mut setting.warpsmith(line), || files_in(&dir.join("hf")).iter().any(is_part));
    assert!(shards(&setting).is_empty());
    setting.succeed(line);
    assert!(shards(&setting) == expected);
    setting.server.requests("");
    setting.succeed(&format!("{line} --force"));
    assert_eq!(setting.server.requests("signature"), [""; 0]);
    setting.succeed(&format!("{line} --force").replace("a/b/data", "a/b/data=0.5 text=1"));
}

#[test]
fn text_that_does_not_arrive_leaves_nothing() {
    let setting = setting();
    refuse(&mut setting.warpsmith("data hub:nothing -o data"), &["nothing: expected tinyshakespeare"]);
    refuse(
        &mut setting.warpsmith("data hub:gpt2 -o data"),
        &["hub:gpt2: expected a data set, found a model"],
    );
    refuse(&mut setting.warpsmith("data hub:a/b -o data"), &["a/b", "404", "no such data set"]);
    setting.server.fault("signature", Fault::Status(403, ""), 9);
    let words = ["the server answered 403", "TinyStories"];
    refuse(&mut setting.warpsmith("data hub:tinystories -o data"), &words);
    assert!(shards(&setting).is_empty());
    setting.server.heal();
    setting.succeed("data hub:tinystories -o data");
    assert_eq!(shards(&setting).len(), 2);
}
