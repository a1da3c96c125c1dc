//! Lists the inputs: files as given, and the files in folders.

use crate::data::remote::Remote;
use crate::files;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file to read, or standard input.
#[derive(Debug)]
pub(crate) struct Source {
    /// `-` for standard input.
    pub path: PathBuf,
    pub bytes: u64,
    /// Fetches the file, if it may not be here yet.
    pub remote: Option<Arc<dyn Remote>>,
}

/// Most names in the warning about what is passed over.
const MOST_NAMES: usize = 5;

/// Lists the files of `inputs`: files as given, and all files in folders, ordered by name, except
/// hidden ones and those that `is_own` finds to be the output of this program. What is neither a
/// file nor a folder is passed over with a warning.
///
/// # Errors
/// If an input that was given by name cannot be read or is not a file, or there is no file at all.
pub(crate) fn find_sources(inputs: &[PathBuf], is_own: &dyn Fn(&Path) -> bool) -> Result<Vec<Source>> {
    let mut walk = Walk { is_own, sources: Vec::new(), passed: Vec::new() };
    for input in inputs {
        if input.as_os_str() == "-" {
            walk.sources.push(Source { path: input.clone(), bytes: 0, remote: None });
            continue;
        }
        let context = || format!("{}: cannot read input", input.display());
        let info = fs::metadata(input).with_context(context)?;
        ensure!(
            info.is_file() || info.is_dir(),
            "{}: not a regular file but {}; pipe it in: warpsmith data - < FILE",
            input.display(),
            files::kind(&info)
        );
        walk.add(input, &info)?;
    }
    let Walk { sources, passed, .. } = walk;
    if !passed.is_empty() {
        let more = passed.len().saturating_sub(MOST_NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = passed[..passed.len().min(MOST_NAMES)].join(", ");
        log::warn!("skipped {} that cannot be read as files: {names}{more}", count(passed.len(), "name"));
    }
    let list = || inputs.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    ensure!(
        !sources.is_empty(),
        "no files in {}; give text, JSON or parquet files (.gz and .zst too), or folders of them",
        list()
    );
    Ok(sources)
}

struct Walk<'a> {
    is_own: &'a dyn Fn(&Path) -> bool,
    sources: Vec<Source>,
    /// Names that were passed over, each with the reason.
    passed: Vec<String>,
}

impl Walk<'_> {
    fn add(&mut self, path: &Path, info: &Metadata) -> Result<()> {
        if info.is_file() {
            self.sources.push(Source { path: path.to_owned(), bytes: info.len(), remote: None });
            return Ok(());
        }
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = entries.with_context(|| format!("{}: cannot list folder", path.display()))?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            if !entry.file_name().as_encoded_bytes().starts_with(b".") && !(self.is_own)(&path) {
                self.add_entry(&path)?;
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, path: &Path) -> Result<()> {
        let mut pass = |why: &str| self.passed.push(format!("{} ({why})", path.display()));
        match fs::metadata(path) {
            // A link to a folder could lead back here, so only links to files are followed.
            Ok(info) if info.is_dir() && path.is_symlink() => {}
            Ok(info) if info.is_file() || info.is_dir() => self.add(path, &info)?,
            Ok(info) => pass(files::kind(&info)),
            Err(_) if path.is_symlink() => pass("a dangling link"),
            Err(e) => return Err(e).with_context(|| format!("{}: cannot read input", path.display())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn folders_are_read_except_for_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        for name in ["b.txt", "a.txt", "sub/c.txt", ".hidden", "own.bin"] {
            fs::write(at(name), "text").unwrap();
        }
        symlink(at("b.txt"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        symlink(dir.path(), at("sub/loop")).unwrap();
        symlink("/dev/zero", at("endless.txt")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let is_own = |path: &Path| path.ends_with("own.bin");
        let sources = find_sources(&[dir.path().to_owned()], &is_own).unwrap();
        let names: Vec<_> =
            sources.iter().map(|s| s.path.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(names, ["a.txt", "b.txt", "link", "sub/c.txt"].map(PathBuf::from));

        let refuse = |name: &str| find_sources(&[at(name)], &is_own).unwrap_err().to_string();
        assert!(
            refuse("pipe")
                .ends_with("pipe: not a regular file but a named pipe; pipe it in: warpsmith data - < FILE")
        );
        assert!(refuse("endless.txt").contains("endless.txt: not a regular file but a device"));
        assert!(refuse("dangling").contains("dangling: cannot read input"));
    }
}
