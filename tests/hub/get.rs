//! Files that are fetched, their places, and those that are not fetched again.

use super::common::{refuse, stderr, stdout, succeed};
use super::server::{COMMIT, Fault, TOKEN};
use super::{STORIES, STORIES_FOLDER, Setting, TRAIN, VALID, files_in, noise};
use std::fs;
use std::path::Path;

#[test]
fn files_are_fetched_once_into_the_cache_of_the_hubs_tools() {
    let setting = Setting::with_stories();
    let output = setting.succeed("get tinystories");
    let [train, valid] = [TRAIN, VALID].map(|name| setting.cached(STORIES_FOLDER, name));
    assert_eq!(stdout(&output), format!("{}\n{}\n", train.display(), valid.display()));
    assert!(stderr(&output).starts_with("fetching tinystories: 350000 bytes in "), "{}", stderr(&output));
    setting.expect_stories();

    let folder = setting.dir.path().join("hf/hub").join(STORIES_FOLDER);
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let target = fs::read_link(&train).unwrap();
    assert!(target.starts_with("../../blobs") && target.file_name().unwrap().len() == 64, "{target:?}");
    assert_eq!(files_in(&folder.join("blobs")).len(), 2);

    setting.server.requests("");
    let again = setting.succeed("get tinystories");
    assert_eq!((stdout(&again), stderr(&again)), (stdout(&output), String::new()));
    let asked = setting.server.requests("");
    assert_eq!(asked, [format!("GET /api/{STORIES}/revision/main")]);

    let mut offline = setting.warpsmith("get tinystories");
    assert_eq!(stdout(&succeed(offline.env("HF_HUB_OFFLINE", "1"))), stdout(&output));
    assert_eq!(setting.server.requests(""), [""; 0]);
}

#[test]
fn the_list_has_names_sizes_and_places() {
    let setting = Setting::new();
    let list = stdout(&setting.succeed("get --list"));
    for name in ["tinyshakespeare", "tinystories", "fineweb-edu:10BT", "fineweb:350BT", "hellaswag", "piqa"] {
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {list}");
    }
    assert!(list.contains("28 GB") && list.contains("hub: datasets/HuggingFaceFW/fineweb-edu"), "{list}");
    assert_eq!(setting.server.requests(""), [""; 0]);
}

#[test]
fn samples_patterns_and_revisions_choose_files() {
    let setting = Setting::new();
    let web = "datasets/HuggingFaceFW/fineweb-edu";
    for name in
        ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet", "sample/100BT/000_00000.parquet"]
    {
        setting.server.add(web, name, name.as_bytes());
    }
    setting.server.add(web, "data/with space.txt", b"space");
    let names = |line: &str| {
        let text = stdout(&setting.succeed(line));
        let paths: Vec<_> = text.lines().map(Path::new).collect();
        paths
            .iter()
            .map(|p| p.to_str().unwrap().split(&format!("{COMMIT}/")).nth(1).unwrap().to_owned())
            .collect()
    };
    let names = |line: &str| -> Vec<String> { names(line) };
    let ten = ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"];
    assert_eq!(names("get fineweb-edu"), ten);
    assert_eq!(names("get fineweb-edu:100BT"), ["sample/100BT/000_00000.parquet"]);
    assert_eq!(names("get fineweb-edu --include *001* --include *000*").len(), 3);
    assert_eq!(names("get fineweb-edu --exclude *001*"), ten[..1]);
    let all = names("get HuggingFaceFW/fineweb-edu --repo-type dataset");
    assert_eq!((all.len(), all[0].as_str()), (4, "data/with space.txt"));
    assert_eq!(names(&format!("get hf://datasets/HuggingFaceFW/fineweb-edu@{COMMIT}/sample/10BT")), ten);
    refuse(
        &mut setting.warpsmith("get fineweb-edu --include x*"),
        &["no file", "matches x*", "it has data/with"],
    );
    refuse(
        &mut setting.warpsmith("get fineweb-edu --revision v9"),
        &["404", "no revision v9; check --revision"],
    );

    // Offline, the folder of a commit alone does not tell what it lacks; the list of names does.
    let blobs = setting.dir.path().join("hf/hub/datasets--HuggingFaceFW--fineweb-edu/blobs");
    fs::remove_dir_all(blobs).unwrap();
    refuse(
        setting.warpsmith("get fineweb-edu").env("HF_HUB_OFFLINE", "1"),
        &["fineweb-edu: not all in the cache, and HF_HUB_OFFLINE is set", "/tree/main/sample/10BT by hand"],
    );
}

#[test]
fn files_are_linked_or_copied_into_a_folder() {
    let setting = Setting::with_stories();
    let at = |name: &str| setting.dir.path().join(name);
    let text = stdout(&setting.succeed("get tinystories -o linked"));
    assert_eq!(text, format!("linked/{TRAIN}\nlinked/{VALID}\n"));
    assert!(at("linked").join(TRAIN).is_symlink());
    setting.succeed("get tinystories -o copied --copy");
    assert!(!at("copied").join(TRAIN).is_symlink());
    for folder in ["linked", "copied"] {
        assert!(fs::read(at(folder).join(VALID)).unwrap() == noise(50_000, 2));
    }
    setting.succeed("get tinystories -o copied --copy");
    fs::write(at("copied").join(TRAIN), "mine").unwrap();
    refuse(
        &mut setting.warpsmith("get tinystories -o copied --copy"),
        &[TRAIN, "already exists", "another -o"],
    );
    assert_eq!(fs::read(at("copied").join(TRAIN)).unwrap(), b"mine");
}

#[test]
fn the_token_opens_what_is_gated_and_stays_with_the_hub() {
    let setting = Setting::with_stories();
    setting.server.gate(STORIES, 403, "GatedRepo");
    refuse(
        &mut setting.warpsmith("get tinystories"),
        &[
            "403",
            "accept its conditions at https://huggingface.co/datasets/roneneldan/TinyStories",
            "HF_TOKEN",
        ],
    );
    let token = setting.dir.path().join("hf/token");
    fs::create_dir_all(token.parent().unwrap()).unwrap();
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    setting.succeed("get tinystories");
    setting.expect_stories();
    assert_eq!(setting.server.requests("WITH A TOKEN"), [""; 0]);

    let private = Setting::with_stories();
    private.server.gate(STORIES, 401, "RepoNotFound");
    refuse(&mut private.warpsmith("get tinystories"), &["401", "private or gated", "HF_TOKEN"]);
    let mut wrong = private.warpsmith("get tinystories");
    refuse(wrong.env("HF_TOKEN", "hf_other"), &["401", "the token was not accepted"]);
    succeed(private.warpsmith("get tinystories").env("HF_TOKEN", TOKEN));
}

#[test]
fn names_that_do_not_exist_are_one_line() {
    let setting = Setting::new();
    refuse(&mut setting.warpsmith("get tinystory"), &["tinystory: expected tinyshakespeare, tinystories"]);
    refuse(&mut setting.warpsmith("get a/b"), &["a/b", "404", "no such model", "--repo-type dataset"]);
    refuse(
        &mut setting.warpsmith("get a/b --repo-type dataset"),
        &["404", "no such data set", "--repo-type model"],
    );
    refuse(&mut setting.warpsmith("get tinystories x/../y"), &["x/../y: expected"]);
    refuse(&mut setting.warpsmith("get"), &["<NAME>...: missing"]);
    refuse(&mut setting.warpsmith("get tinystories --copy"), &["--output"]);
    refuse(
        &mut setting.warpsmith("get hellaswag --revision x"),
        &["--revision: hellaswag is one file on GitHub"],
    );
    assert_eq!(setting.server.requests("tinystories"), [""; 0], "all names are checked first");
}

/// A server may not choose where files are written.
#[test]
fn names_that_leave_the_cache_are_refused() {
    let setting = Setting::with_stories();
    setting.server.add(STORIES, "../../../../../escape.txt", b"x");
    refuse(&mut setting.warpsmith("get tinystories"), &["escape.txt", "leads out of its folder"]);
    assert!(!setting.dir.path().join("escape.txt").exists());
}

/// The digests of files on GitHub are known, so a file of another content is not taken.
#[test]
fn files_of_github_are_checked() {
    let setting = Setting::new();
    setting.server.add_github("rowanz/hellaswag/master/data/hellaswag_val.jsonl", b"{\"another\": 1}\n");
    refuse(
        &mut setting.warpsmith("get hellaswag --retries 0"),
        &["hellaswag_val.jsonl", "expected sha256 0aa3b888", "damaged"],
    );
    let folder = setting.dir.path().join("hf/assets/warpsmith/hellaswag");
    let place = folder.join("hellaswag_val.jsonl");
    assert!(!place.exists());

    setting.server.fault("/raw/", Fault::Status(503, ""), 9);
    refuse(&mut setting.warpsmith("get hellaswag --retries 0"), &["503", "run it again"]);
    let mut offline = setting.warpsmith("get hellaswag");
    let store = format!("by hand and store it as {}", place.display());
    refuse(
        offline.env("HF_HUB_OFFLINE", "1"),
        &["/raw/rowanz/hellaswag/master/data/hellaswag_val.jsonl", &store],
    );
    fs::write(&place, "by hand").unwrap();
    refuse(&mut setting.warpsmith("get hellaswag"), &["expected sha256", "remove it to fetch it again"]);
}
