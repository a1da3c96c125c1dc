//! Files of the cache in a folder of the user's.

use super::download::Local;
use super::store::{is_plain, relative};
use crate::files;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// How a file gets into a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As a symbolic link to the cache.
    Link,
    /// As a copy.
    Copy,
}

/// Puts a file into `dir` under its name in the repository. A file that is there and has the same
/// content stays as it is. Returns its path.
///
/// # Errors
/// If another file of that name is there, or it cannot be written.
pub fn place(file: &Local, dir: &Path, how: How) -> Result<PathBuf> {
    ensure!(is_plain(&file.name), "{:?}: leads out of its folder", file.name);
    let path = dir.join(&file.name);
    files::make_room(&path)?;
    let content =
        fs::canonicalize(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
    if path.symlink_metadata().is_ok() {
        let is_whole = same(&content, &path)? && (how == How::Link || !path.is_symlink());
        ensure!(
            is_whole,
            "{}: already exists and is not what was fetched; remove it, or choose another -o",
            path.display()
        );
        return Ok(path);
    }
    match how {
        How::Link => {
            let folder = fs::canonicalize(files::directory(&path));
            let folder = folder.with_context(|| format!("cannot read {}", dir.display()))?;
            std::os::unix::fs::symlink(relative(&content, &folder), &path)
                .with_context(|| format!("cannot write {}; copy it with --copy", path.display()))?;
        }
        How::Copy => {
            let mut from = files::open(&content)?.0;
            files::write(&path, |out| Ok(io::copy(&mut from, out).map(drop)?))?;
        }
    }
    Ok(path)
}

/// Whether two files are one, or have the same content.
fn same(a: &Path, b: &Path) -> Result<bool> {
    let (Ok(first), Ok(second)) = (fs::metadata(a), fs::metadata(b)) else { return Ok(false) };
    if files::identity(&first) == files::identity(&second) {
        return Ok(true);
    }
    if !second.is_file() || first.len() != second.len() {
        return Ok(false);
    }
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let (mut mine, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = left.read(&mut mine).with_context(|| format!("cannot read {}", a.display()))?;
        if read == 0 {
            return Ok(true);
        }
        if right.read_exact(&mut theirs[..read]).is_err() || mine[..read] != theirs[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_linked_or_copied_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("cached"), "content").unwrap();
        let file = Local { name: "sub/a.txt".into(), path: at("cached") };
        for (how, out) in [(How::Link, "linked"), (How::Copy, "copied")] {
            for _ in 0..2 {
                let path = place(&file, &at(out), how).unwrap();
                assert_eq!(path, at(out).join("sub/a.txt"));
                assert_eq!(
                    (fs::read(&path).unwrap(), path.is_symlink()),
                    (b"content".into(), how == How::Link)
                );
            }
        }
        // A copy is asked for, and a link is there.
        assert!(place(&file, &at("linked"), How::Copy).is_err());
        fs::write(at("copied/sub/a.txt"), "another").unwrap();
        for how in [How::Link, How::Copy] {
            let error = place(&file, &at("copied"), how).unwrap_err().to_string();
            assert!(error.contains("a.txt: already exists and is not what was fetched"), "{error}");
        }
        assert_eq!(fs::read(at("copied/sub/a.txt")).unwrap(), b"another");
    }
}
