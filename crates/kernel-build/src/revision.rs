//! The commit, target, profile and compiler of a build, which `--version` shows. The time is left
//! out, so that two builds of a commit are equal.

use crate::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the commit where there is no repository, as in a container: `HASH DATE`. The library reads
/// the same variable from its build script.
const COMMIT: &str = "WARPSMITH_COMMIT";

/// Holds the commit in archives that `git archive` makes, which replaces `$Format:…$`.
const ARCHIVAL: &str = ".git_archival.txt";

/// The files that a program is made of.
const SOURCES: [&str; 6] = ["src", "crates", "kernels", "build.rs", "Cargo.toml", "Cargo.lock"];

/// Sets the variables that the library shows.
pub(crate) fn record(root: &Path) {
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let named = std::env::var(COMMIT).ok().filter(|text| !text.trim().is_empty());
    let commit = named.map(|text| text.trim().to_owned());
    let commit = commit.or_else(|| from_repository(root)).or_else(|| from_archive(root));
    let target =
        env("TARGET") + &beyond_baseline(&env("CARGO_CFG_TARGET_ARCH"), &env("CARGO_CFG_TARGET_FEATURE"));
    let rustc = run(Path::new(""), &env("RUSTC"), &["--version"]).unwrap_or_default();
    for (name, value) in [
        (COMMIT, commit.unwrap_or_else(|| "unknown".to_owned())),
        ("WARPSMITH_TARGET", target),
        ("WARPSMITH_PROFILE", env("PROFILE")),
        // Without the hash and the date in parentheses, which the number implies.
        ("WARPSMITH_RUSTC", rustc.split(" (").next().unwrap_or_default().to_owned()),
    ] {
        println!("cargo::rustc-env={name}={value}");
    }
}

/// Names the instruction sets that every CPU must have beyond those of all x86-64, as after
/// `-C target-cpu=native`: ` with avx2 bmi1`. A program for other machines has none.
fn beyond_baseline(arch: &str, features: &str) -> String {
    const BASELINE: [&str; 4] = ["fxsr", "sse", "sse2", "x87"];
    let more: Vec<&str> = features.split(',').filter(|feature| !BASELINE.contains(feature)).collect();
    if arch != "x86_64" || more.is_empty() { String::new() } else { format!(" with {}", more.join(" ")) }
}

/// Reads the commit from git. Development builds do without: each commit would compile the library
/// and all tests again.
fn from_repository(root: &Path) -> Option<String> {
    if env("PROFILE") != "release" {
        return run_git(root, &["rev-parse", "HEAD"]).map(|_| "unknown: a development build".to_owned());
    }
    let commit = commit(root)?;
    for name in ["HEAD", "logs/HEAD"] {
        let path = run_git(root, &["rev-parse", "--git-path", name]).map(|path| root.join(path));
        // Cargo takes a file that does not exist for one that has changed.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    SOURCES.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    Some(commit)
}

/// Returns hash and date of the commit in `root`, and whether the sources differ from it:
/// `40c7244c… 2026-11-27 with changes`. `None` without git, and where `root` only lies in the
/// repository of something else.
fn commit(root: &Path) -> Option<String> {
    let top = PathBuf::from(run_git(root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let commit = run_git(root, &["log", "-1", "--no-show-signature", "--format=%H %cs"])?;
    let changes = [&["status", "--porcelain", "--"], &SOURCES[..]].concat();
    let changed = run_git(root, &changes).is_none_or(|changes| !changes.is_empty());
    Some(commit + if changed { " with changes" } else { "" })
}

fn from_archive(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(ARCHIVAL)).ok()?;
    println!("cargo::rerun-if-changed={ARCHIVAL}");
    let commit = text.lines().find_map(|line| line.strip_prefix("commit: "))?;
    (!commit.starts_with('$')).then(|| commit.trim().to_owned())
}

fn run_git(root: &Path, args: &[&str]) -> Option<String> {
    run(root, "git", args)
}

/// The trimmed output of a program that succeeds.
fn run(dir: &Path, program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    if dir != Path::new("") {
        command.current_dir(dir);
    }
    let output = command.args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn git(root: &Path, line: &str) -> String {
        let line = format!("-c user.name=n -c user.email=e@example.com -c commit.gpgsign=false {line}");
        run_git(root, &line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|| panic!("git {line}"))
    }

    /// A repository with one commit of every source.
    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), "init -q");
        for path in SOURCES {
            match path.contains('.') {
                true => fs::write(dir.path().join(path), "text").unwrap(),
                false => {
                    fs::create_dir(dir.path().join(path)).unwrap();
                    fs::write(dir.path().join(path).join("file"), "text").unwrap();
                }
            }
        }
        git(dir.path(), "add .");
        git(dir.path(), "commit -q -m first --date=2001-02-03T04:05:06Z");
        dir
    }

    #[test]
    fn a_commit_is_named_with_its_date_and_changes_of_sources() {
        let dir = repository();
        let root = dir.path();
        let found = commit(root).unwrap();
        let (hash, date) = found.split_once(' ').unwrap();
        assert_eq!(hash, git(root, "rev-parse HEAD"));
        assert!(date.len() == 10 && date.split('-').count() == 3, "{date}");
        fs::write(root.join("README.md"), "text").unwrap();
        assert_eq!(commit(root).unwrap(), found);
        fs::write(root.join("src/file"), "other text").unwrap();
        assert_eq!(commit(root).unwrap(), format!("{found} with changes"));
        git(root, "checkout -q src");
        assert_eq!(commit(root).unwrap(), found);
        fs::write(root.join("kernels/new.cu"), "text").unwrap();
        assert_eq!(commit(root).unwrap(), format!("{found} with changes"));
    }

    #[test]
    fn a_program_for_some_cpus_only_says_so() {
        assert_eq!(beyond_baseline("x86_64", "fxsr,sse,sse2,x87"), "");
        assert_eq!(beyond_baseline("x86_64", "avx,fxsr,sse,sse2,sse3"), " with avx sse3");
        assert_eq!(beyond_baseline("aarch64", "neon"), "");
    }

    #[test]
    fn the_repository_of_something_else_is_not_asked() {
        let dir = repository();
        let inside = dir.path().join("vendor/warpsmith");
        fs::create_dir_all(&inside).unwrap();
        assert_eq!(commit(&inside), None);
        assert_eq!(commit(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn an_archive_names_its_commit() {
        let dir = repository();
        let root = dir.path();
        fs::write(root.join(".gitattributes"), format!("{ARCHIVAL} export-subst\n")).unwrap();
        fs::write(root.join(ARCHIVAL), "commit: $Format:%H %cs$\n").unwrap();
        assert_eq!(from_archive(root), None);
        git(root, "add .");
        git(root, "commit -q -m second");
        git(root, "archive --format=tar --output=a.tar HEAD");
        let unpacked = tempfile::tempdir().unwrap();
        let archive = root.join("a.tar");
        run(unpacked.path(), "tar", &["-xf", archive.to_str().unwrap()]).unwrap();
        assert_eq!(from_archive(unpacked.path()), commit(root));
        assert_eq!(from_archive(tempfile::tempdir().unwrap().path()), None);
    }
}
