//! The files of a source: their names by the hub's interface for programs, and length and digest of
//! those that are missing by the headers of each.

use super::digest::Digest;
use super::failure::Failure;
use super::http::Http;
use super::source::{Files, Origin, Source};
use super::store::{Store, is_commit, is_plain};
use crate::files;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use ureq::http::HeaderMap;

/// Most names in a message.
const MOST_NAMES: usize = 5;

/// The files of a source.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The source, as the user named it.
    pub name: String,
    /// The folder that they are in.
    pub folder: PathBuf,
    pub(super) files: Vec<Planned>,
}

/// A file that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name in the repository.
    pub name: String,
    /// The place at which it is found.
    pub place: PathBuf,
    /// The work that is left.
    pub missing: Option<Missing>,
}

/// A file to fetch.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub url: String,
    pub bytes: u64,
    pub digest: Digest,
    /// The place of the content, which may be that of the file.
    pub blob: PathBuf,
    pub partial: PathBuf,
    pub lock: PathBuf,
}

impl Planned {
    pub fn present(name: String, place: PathBuf) -> Self {
        Planned { name, place, missing: None }
    }
}

impl Missing {
    /// Bytes that are still to be fetched.
    pub fn left(&self) -> u64 {
        if self.blob.exists() {
            return 0;
        }
        let here = self.partial.metadata().map_or(0, |found| found.len());
        self.bytes.saturating_sub(here)
    }
}

impl Listing {
    pub(super) fn new(source: &Source, folder: &Path, files: Vec<Planned>) -> Self {
        Listing { name: source.name.clone(), folder: folder.to_owned(), files }
    }

    /// The number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The number of files that are not in the cache.
    pub fn missing(&self) -> usize {
        self.files.iter().filter(|file| file.missing.is_some()).count()
    }

    /// Bytes that are still to be fetched.
    pub fn bytes_left(&self) -> u64 {
        self.files.iter().filter_map(|file| Some(file.missing.as_ref()?.left())).sum()
    }

    /// The place of each file and its bytes, in order.
    ///
    /// # Errors
    /// If a file of the cache cannot be read.
    pub fn places(&self) -> Result<Vec<(PathBuf, u64)>> {
        let bytes = |file: &Planned| match &file.missing {
            Some(missing) => Ok(missing.bytes),
            None => file.place.metadata().map(|found| found.len()),
        };
        let with_bytes = |file: &Planned| {
            let bytes = bytes(file).with_context(|| format!("cannot read {}", file.place.display()))?;
            Ok((file.place.clone(), bytes))
        };
        self.files.iter().map(with_bytes).collect()
    }

    fn has(&self, is_it: impl Fn(&str) -> bool) -> bool {
        self.files.iter().any(|file| is_it(&file.name))
    }

    /// Whether there is a file of weights that can be read.
    pub(super) fn has_weights(&self) -> bool {
        self.has(|name| name.ends_with(".safetensors"))
    }

    /// Checks that the files are those of a model.
    ///
    /// # Errors
    /// One line that says which is missing.
    pub(super) fn check_model(&self, name: &str) -> Result<()> {
        ensure!(
            self.has(|name| name == "config.json"),
            "{name}: the repository has no config.json; is it a model?"
        );
        ensure!(
            self.has_weights(),
            "{name}: the repository has no weights as safetensors; save the model as such from Python first, with \
             save_pretrained"
        );
        Ok(())
    }
}

/// Lists a source by asking the hub.
pub(super) fn find(http: &Http, store: &Store, source: &Source, jobs: usize) -> Result<Listing, Failure> {
    match &source.origin {
        Origin::GitHub { path, sha256 } => find_on_github(http, store, source, (path, sha256)),
        Origin::Hub(wanted) => find_on_hub(http, store, source, wanted, jobs),
    }
}

fn find_on_github(
    http: &Http,
    store: &Store,
    source: &Source,
    (path, sha256): (&str, &str),
) -> Result<Listing, Failure> {
    let (place, url) = store.github(path);
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    let folder = crate::files::directory(&place).to_owned();
    let digest = Digest::Sha256(sha256.to_owned());
    if place.exists() {
        check(&place, &digest)?;
        return Ok(Listing::new(source, &folder, vec![Planned::present(name, place)]));
    }
    let bytes = http.patiently(&AtomicBool::new(false), || length(&url, &http.head(&url)?))?;
    let [partial, lock] = ["incomplete", "lock"].map(|end| folder.join(format!(".{name}.{end}")));
    let missing = Some(Missing { url, bytes, digest, blob: place.clone(), partial, lock });
    Ok(Listing::new(source, &folder, vec![Planned { name, place, missing }]))
}

/// Refuses a file that was put here by hand and is another.
fn check(place: &Path, digest: &Digest) -> Result<(), Failure> {
    let at = place.display();
    let mut file = File::open(place).map_err(|error| Failure::fixed(format!("cannot read {at}: {error}")))?;
    let mut hasher = digest.hasher(0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) => return Err(Failure::fixed(format!("cannot read {at}: {error}"))),
        }
    }
    let (expected, found) = (digest.name(), hasher.finish().unwrap_or_default());
    match found == expected {
        true => Ok(()),
        false => Err(Failure::fixed(format!(
            "{at}: expected sha256 {expected}, found {found}; remove it to fetch it again"
        ))),
    }
}

fn find_on_hub(
    http: &Http,
    store: &Store,
    source: &Source,
    wanted: &Files,
    jobs: usize,
) -> Result<Listing, Failure> {
    let repo = wanted.repo();
    let url = http.url(&format!("api/{}", repo.api_url()));
    let info = http.patiently(&AtomicBool::new(false), || http.json(&url))?;
    let (commit, names) = read_info(&url, &info)?;
    store.record(&repo, &commit, &names)?;
    let folder = store.snapshot(&repo, &commit);
    let mut chosen: Vec<String> = names.iter().filter(|name| wanted.wants(name)).cloned().collect();
    chosen.sort();
    if chosen.is_empty() {
        return Err(Failure::fixed(nothing_wanted(wanted, &names)));
    }
    let ask = |name: &String| -> Result<Planned, Failure> {
        let place = folder.join(name);
        if place.is_file() {
            return Ok(Planned::present(name.clone(), place));
        }
        let url = http.url(&format!("{}/resolve/{commit}/{}", repo.url(), encoded(name)));
        let headers = http.patiently(&AtomicBool::new(false), || {
            let headers = http.head(&url)?;
            length(&url, &headers).map(|bytes| (bytes, headers))
        });
        let (bytes, headers) = headers?;
        let digest = digest_in(&url, &headers)?;
        let blob = store.blob(&repo, &digest);
        let partial = blob.with_file_name(format!("{}.incomplete", digest.name()));
        let lock = store.lock(&repo, &digest);
        let missing = Some(Missing { url, bytes, digest, blob, partial, lock });
        Ok(Planned { name: name.clone(), place, missing })
    };
    Ok(Listing::new(source, &folder, in_parallel(&chosen, jobs, ask)?))
}

/// The commit and the names of its files.
pub(super) fn read_info(url: &str, info: &serde_json::Value) -> Result<(String, Vec<String>), Failure> {
    let expected = |what: &str| Failure::fixed(format!("{url}: expected {what} in the answer, found none"));
    let commit = info["sha"].as_str().filter(|sha| is_commit(sha)).ok_or_else(|| expected("a commit"))?;
    let siblings = info["siblings"].as_array().ok_or_else(|| expected("a list of files"))?;
    let name = |file: &serde_json::Value| {
        let name = file["rfilename"].as_str().ok_or_else(|| expected("the name of each file"))?;
        match is_plain(name) {
            true => Ok(name.to_owned()),
            false => Err(Failure::fixed(format!(
                "{url}: a file has the name {name:?}, which leads out of its folder"
            ))),
        }
    };
    Ok((commit.to_owned(), siblings.iter().map(name).collect::<Result<_, _>>()?))
}

fn nothing_wanted(wanted: &Files, names: &[String]) -> String {
    let patterns: Vec<&str> = wanted.include.iter().map(|pattern| pattern.as_str()).collect();
    let more = names.len().saturating_sub(MOST_NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "no file of {} matches {}; it has {}{more}",
        wanted.id,
        if patterns.is_empty() { "what is wanted".to_owned() } else { patterns.join(", ") },
        if names.is_empty() { "none".to_owned() } else { names[..names.len().min(MOST_NAMES)].join(", ") }
    )
}

/// The length of a file, by its headers.
fn length(url: &str, headers: &HeaderMap) -> Result<u64, Failure> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    number("x-linked-size")
        .or_else(|| number("content-length"))
        .ok_or_else(|| Failure::passing(format!("{url}: expected the length of the file, found none")))
}

/// The digest of a file, by its headers.
fn digest_in(url: &str, headers: &HeaderMap) -> Result<Digest, Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("x-linked-etag")
        .or_else(|| text("etag"))
        .and_then(Digest::parse)
        .ok_or_else(|| Failure::fixed(format!("{url}: expected the digest of the file as etag, found none")))
}

/// A path in a URL.
fn encoded(name: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'~');
    name.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Applies `work` to all items on a few threads. The results are in order; the first failure ends
/// the work.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    work: impl Fn(&T) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, Failure> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            results.lock().expect("no thread panics with the lock").push((index, result));
        }
    };
    thread::scope(|scope| {
        // Without threads, this one does it all.
        for _ in 1..jobs.min(items.len()) {
            let _ = thread::Builder::new().name("hub".to_owned()).spawn_scoped(scope, run);
        }
        run();
    });
    let mut results = results.into_inner().expect("no thread panics with the lock");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Creates the directories of what is missing, and checks that there is room for it.
///
/// # Errors
/// One line that says how much room is needed.
pub(super) fn ensure_room(listing: &Listing) -> Result<()> {
    let missing = || listing.files.iter().filter_map(|file| file.missing.as_ref());
    for file in missing() {
        files::make_room(&file.partial)?;
    }
    let Some(first) = missing().next() else { return Ok(()) };
    let dir = crate::files::directory(&first.partial);
    let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let (needed, free) = (listing.bytes_left(), disk.f_bavail.saturating_mul(disk.f_frsize));
    ensure!(
        needed <= free,
        "{}: {needed} bytes are left to fetch, and {} has room for {free}; free some, or put the cache on another \
         disk with HF_HOME",
        listing.name,
        dir.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn an_answer_that_is_no_list_is_refused() {
        let read = |info: serde_json::Value| read_info("u", &info).map_err(|failure| failure.text);
        let good = json!({"sha": COMMIT, "siblings": [{"rfilename": "a"}, {"rfilename": "b/c"}], "more": 1});
        assert_eq!(read(good).unwrap(), (COMMIT.to_owned(), vec!["a".to_owned(), "b/c".to_owned()]));
        for (info, expected) in [
            (json!([]), "u: expected a commit"),
            (json!({"sha": "main", "siblings": []}), "u: expected a commit"),
            (json!({"sha": COMMIT}), "u: expected a list of files"),
            (json!({"sha": COMMIT, "siblings": [{}]}), "u: expected the name of each file"),
            (json!({"sha": COMMIT, "siblings": [{"rfilename": "../x"}]}), "u: a file has the name \"../x\""),
        ] {
            assert!(read(info.clone()).unwrap_err().starts_with(expected), "{info}");
        }
    }

    #[test]
    fn names_become_urls() {
        assert_eq!(encoded("data/a b#1?.txt"), "data/a%20b%231%3F.txt");
        assert_eq!(encoded("é"), "%C3%A9");
    }

    #[test]
    fn work_in_parallel_keeps_its_order() {
        let items: Vec<usize> = (0..50).collect();
        for jobs in [1, 4, 100] {
            assert_eq!(
                in_parallel(&items, jobs, |i| Ok(i * 2)).unwrap(),
                (0..50).map(|i| i * 2).collect::<Vec<_>>()
            );
        }
        let failed = in_parallel(&items, 4, |i| if *i == 7 { Err(Failure::fixed("seven")) } else { Ok(()) });
        assert_eq!(failed.unwrap_err().text, "seven");
    }
}
