//! Places of files: the cache of the hub's own tools, and beside it that of other files.
//!
//! A repository's folder has `blobs/DIGEST` with the contents, `snapshots/COMMIT/NAME` with links
//! to them, and `refs/REVISION` with the commit that a branch was at. `.listings/COMMIT` is our
//! own: the names of all files of a commit, without which nobody could tell offline whether some
//! are missing.

use super::catalog::CATALOG;
use super::digest::Digest;
use super::listing::{Listing, Planned};
use super::settings::Settings;
use super::source::{Files, Origin, Source};
use crate::files;
use anyhow::{Context, Result};
use hf_hub::{Cache, Repo};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Bytes of a list of names.
const MOST_LISTING_BYTES: u64 = 1 << 28;

/// The places of files.
#[derive(Clone, Debug)]
pub(super) struct Store {
    settings: Settings,
    cache: Cache,
}

/// The place of a file on GitHub.
pub(super) fn github_place(settings: &Settings, path: &str) -> PathBuf {
    let entry = CATALOG.iter().find(|entry| entry.place_of_github() == Some(path));
    let (folder, name) = (entry.map_or("files", |entry| entry.name), path.rsplit('/').next().unwrap_or(path));
    settings.assets.join("warpsmith").join(folder).join(name)
}

impl Store {
    pub fn new(settings: &Settings) -> Self {
        Store { settings: settings.clone(), cache: Cache::new(settings.cache.clone()) }
    }

    /// The place of a file on GitHub, and its URL.
    pub fn github(&self, path: &str) -> (PathBuf, String) {
        (github_place(&self.settings, path), format!("{}/{path}", self.settings.raw_github))
    }

    /// The folder of a repository's commit.
    pub fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.cache.repo(repo.clone()).pointer_path(commit)
    }

    /// The place of a content.
    pub fn blob(&self, repo: &Repo, digest: &Digest) -> PathBuf {
        self.cache.repo(repo.clone()).blob_path(digest.name())
    }

    /// The lock on a content, at the place where the hub's own tools have it.
    pub fn lock(&self, repo: &Repo, digest: &Digest) -> PathBuf {
        self.cache.path().join(".locks").join(repo.folder_name()).join(format!("{}.lock", digest.name()))
    }

    fn listing_path(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.cache.path().join(repo.folder_name()).join(".listings").join(commit)
    }

    fn ref_path(&self, repo: &Repo) -> PathBuf {
        self.cache.path().join(repo.folder_name()).join("refs").join(repo.revision())
    }

    /// Records the commit that a revision is at, and the names of its files.
    ///
    /// # Errors
    /// If the cache cannot be written to.
    pub fn record(&self, repo: &Repo, commit: &str, names: &[String]) -> Result<()> {
        let listing = self.listing_path(repo, commit);
        if !listing.exists() {
            write(&listing, &names.join("\n"))?;
        }
        let at = self.ref_path(repo);
        let is_known = files::read_text(&at, 1 << 10).is_ok_and(|known| known.trim() == commit);
        if is_known || is_commit(repo.revision()) { Ok(()) } else { write(&at, commit) }
    }

    /// Lists the files of a source that the cache has, if it has all of them.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn cached(&self, source: &Source) -> Result<Option<Listing>> {
        let wanted = match &source.origin {
            Origin::GitHub { path, .. } => {
                let (place, _) = self.github(path);
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                let found = place.is_file().then(|| vec![Planned::present(name, place.clone())]);
                return Ok(found.map(|found| Listing::new(source, files::directory(&place), found)));
            }
            Origin::Hub(wanted) => wanted,
        };
        let repo = wanted.repo();
        let commit = match is_commit(&wanted.revision) {
            true => wanted.revision.clone(),
            false => match files::read_text(&self.ref_path(&repo), 1 << 10) {
                Ok(commit) if is_commit(commit.trim()) => commit.trim().to_owned(),
                _ => return Ok(None),
            },
        };
        let folder = self.snapshot(&repo, &commit);
        let is_here = |name: &String| folder.join(name).is_file();
        let names = match self.names(&repo, &commit, wanted) {
            Some(names) if !names.is_empty() && names.iter().all(is_here) => names,
            // Fetched by another tool, perhaps in part.
            _ => match found_in(&folder, wanted) {
                names if wanted.is_enough(&names) => names,
                _ => return Ok(None),
            },
        };
        let files = names.into_iter().map(|name| Planned::present(name.clone(), folder.join(name)));
        Ok(Some(Listing::new(source, &folder, files.collect())))
    }

    /// The names of a commit that a source wants, in order.
    fn names(&self, repo: &Repo, commit: &str, wanted: &Files) -> Option<Vec<String>> {
        let text = files::read_text(&self.listing_path(repo, commit), MOST_LISTING_BYTES).ok()?;
        let names = text.lines().filter(|name| is_plain(name) && wanted.wants(name));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Some(names)
    }
}

/// The names of files in the folder of a commit that a source wants, in order. Folders in it are
/// searched only for files whose names are known.
fn found_in(folder: &Path, wanted: &Files) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let known = wanted.literal().unwrap_or_default().into_iter().map(str::to_owned);
    let is_file = |name: &String| wanted.wants(name) && folder.join(name).is_file();
    let found: BTreeSet<String> = names.chain(known).filter(is_file).collect();
    found.into_iter().collect()
}

/// Whether a text is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a name stays in its folder.
pub(super) fn is_plain(name: &str) -> bool {
    let is_part = |part: Component| matches!(part, Component::Normal(_));
    !name.is_empty() && !name.contains(['\\', '\0', '\n', '\r']) && Path::new(name).components().all(is_part)
}

fn write(path: &Path, text: &str) -> Result<()> {
    files::make_room(path)?;
    files::write(path, |out| Ok(out.write_all(text.as_bytes())?))
}

/// Makes `place` a link to `blob`, relative to its folder. A file system without links gets another
/// name of the same file.
///
/// # Errors
/// If neither is possible.
pub(super) fn link(blob: &Path, place: &Path) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    files::make_room(place)?;
    let context = || format!("cannot write {}", place.display());
    // A name of its own, moved into place: another process may do the same.
    let temporary = files::directory(place).join(format!(
        ".{}.{}.link",
        place.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(relative(blob, files::directory(place)), &temporary)
        .or_else(|_| fs::hard_link(blob, &temporary))
        .with_context(context)?;
    fs::rename(&temporary, place).with_context(context)
}

/// The way from a folder to a path; both are absolute, or both relative to the same place.
pub(super) fn relative(path: &Path, folder: &Path) -> PathBuf {
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect()
}

/// Takes a lock, and waits for another process that has it. `said` is called once if it has to
/// wait. `None` where the file system has no locks, or after `stop`.
///
/// # Errors
/// If the lock's file cannot be created.
pub(super) fn lock(path: &Path, stop: &AtomicBool, said: &dyn Fn()) -> Result<Option<File>> {
    files::make_room(path)?;
    let context = || format!("cannot write {}", path.display());
    let mut waits = false;
    while !stop.load(Ordering::Relaxed) {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(context)?;
        match file.try_lock() {
            // Its holder may have removed the file that is locked now.
            Ok(()) if files::is_at(&file, path) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                if !waits {
                    said();
                }
                waits = true;
                sleep(Duration::from_millis(100));
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::RepoKind;

    #[test]
    fn links_lead_from_a_snapshot_to_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let [blob, place] = ["blobs/abc", "snapshots/0/sub/name"].map(|name| dir.path().join(name));
        files::make_room(&blob).unwrap();
        fs::write(&blob, "content").unwrap();
        for _ in 0..2 {
            link(&blob, &place).unwrap();
            assert_eq!(fs::read_link(&place).unwrap(), Path::new("../../../blobs/abc"));
            assert_eq!(fs::read(&place).unwrap(), b"content");
        }
        // A link to a content that is gone is replaced.
        fs::remove_file(&blob).unwrap();
        fs::write(dir.path().join("blobs/def"), "new").unwrap();
        link(&dir.path().join("blobs/def"), &place).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn files_of_the_cache_are_in_order_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let settings = Settings::find(&|name| (name == "HF_HOME").then(|| home.clone())).unwrap();
        let store = Store::new(&settings);
        let source = Source::parse("a/b", RepoKind::Dataset).unwrap();
        let Origin::Hub(files) = &source.origin else { panic!() };
        let (repo, commit) = (files.repo(), "0123456789abcdef0123456789abcdef01234567");
        // In the order of a server.
        store.record(&repo, commit, &["b.txt", "c/d.txt", "a.txt"].map(str::to_owned)).unwrap();
        let write = |name: &str| {
            let place = store.snapshot(&repo, commit).join(name);
            files::make_room(&place).unwrap();
            fs::write(place, "text").unwrap();
        };
        ["a.txt", "b.txt"].into_iter().for_each(write);
        assert!(store.cached(&source).unwrap().is_none());
        write("c/d.txt");
        let names: Vec<_> =
            store.cached(&source).unwrap().unwrap().files.into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["a.txt", "b.txt", "c/d.txt"]);
    }

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["a", "a/b.txt", "data/train 1.txt"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", ".", "a\\b", "a\0", "a\nb"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn a_lock_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.lock");
        let (stop, said) = (AtomicBool::new(false), AtomicBool::new(false));
        let held = lock(&path, &stop, &|| panic!("nobody has it")).unwrap().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| lock(&path, &stop, &|| said.store(true, Ordering::Relaxed)).unwrap());
            while !said.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5));
            }
            drop(held);
            assert!(second.join().unwrap().is_some());
        });
    }
}
