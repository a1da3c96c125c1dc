//! Files that appear complete or not at all, whatever happens while they are written; and regular
//! files alone are opened for reading, so that no read waits forever.
//!
//! A file is written under a temporary name in its own directory (a rename does not cross file
//! systems), synced, renamed, and its directory synced. The temporary name is hidden and cannot be
//! foreseen, and the file is created exclusively, so nobody can put a link in its place. Its
//! permissions are those of any new file under the process's umask. A killed process leaves its
//! temporary file; those of checkpoints are removed by the next one.

pub mod lock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, IntoInnerError, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// Opens the regular file at `path` for reading. A pipe or a device is refused at once: reading one
/// could wait forever, or never end.
///
/// # Errors
/// One line that names `path`, and what was found there instead.
pub fn open(path: &Path) -> Result<(File, Metadata)> {
    let context = || format!("cannot read {}", path.display());
    let mut options = File::options();
    options.read(true);
    // Opening a pipe that nobody writes to would wait. Regular files ignore the flag.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).with_context(context)?;
    let metadata = file.metadata().with_context(context)?;
    if !metadata.is_file() {
        bail!("{}: not a regular file but {}", path.display(), kind(&metadata));
    }
    Ok((file, metadata))
}

/// Returns the files that a pattern matches, sorted by name. As in a shell, `*` stays within a
/// directory and skips hidden files.
///
/// # Errors
/// One line that begins with the pattern, if it is not valid, or with a directory that cannot be
/// read.
pub fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let rules = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let matches = glob::glob_with(pattern, rules)
        .map_err(|e| anyhow!("{pattern}: not a valid file pattern: {}", e.msg))?;
    let mut paths = matches
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| anyhow!("{}: {}", e.path().display(), e.error()))?;
    // glob(3) sorts by the whole name. Comparing paths would go component by component.
    paths.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(paths)
}

/// Reads the regular file at `path` into memory if it has at most `limit` bytes.
///
/// # Errors
/// Those of [`open`], and one line if the file is larger, also if it grows while it is read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open(path)?;
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let found = metadata.len().max(bytes.len() as u64);
    ensure!(found <= limit, "{}: expected at most {limit} bytes, found {found}", path.display());
    Ok(bytes)
}

/// Reads the text of the regular file at `path` if it has at most `limit` bytes, without a
/// byte-order mark.
///
/// # Errors
/// Those of [`read`], and one line if the file is not UTF-8 text.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read(path, limit)?;
    let text = std::str::from_utf8(strip_bom(&bytes));
    Ok(text.with_context(|| format!("{}: not UTF-8 text", path.display()))?.to_owned())
}

/// Returns UTF-8 text without the byte-order mark that it may start with.
pub fn strip_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

/// Device and inode of a file, which no other existing file has.
pub fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether an open file is the one at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(found)) => identity(&open) == identity(&found),
        _ => false,
    }
}

/// The kind of something that is not a regular file, in words.
pub fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a directory";
    }
    if metadata.is_symlink() {
        return "a symbolic link";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    "a special file"
}

/// Size limit of small files of text, such as records and settings.
pub const TEXT_BYTES: u64 = 1 << 26;

/// Suffix of temporary names, which are `.NAME.RANDOM.tmp`.
pub const TEMPORARY: &str = ".tmp";

/// Returns the final name of the file that has a temporary name, or `None` for any other name.
pub fn final_name(temporary: &str) -> Option<&str> {
    let (name, _random) = temporary.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplit_once('.')?;
    Some(name)
}

/// A file that is being written, under a temporary name. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct NewFile {
    out: BufWriter<File>,
    temporary: TempPath,
    path: PathBuf,
}

impl NewFile {
    /// Starts the file whose final name is `path`.
    ///
    /// # Errors
    /// If the directory is missing or not writable, or `path` exists and is not a regular file.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_with(path, 0o666)
    }

    /// Starts a file that only this user can read and write.
    ///
    /// # Errors
    /// Those of [`NewFile::create`].
    pub fn create_private(path: &Path) -> Result<Self> {
        Self::create_with(path, 0o600)
    }

    fn create_with(path: &Path, mode: u32) -> Result<Self> {
        // Apart, because the errors of both together give the temporary name.
        let (file, temporary) = temporary(path, mode).with_context(|| failure(path))?.into_parts();
        Ok(NewFile { out: BufWriter::with_capacity(1 << 20, file), temporary, path: path.to_owned() })
    }

    /// [`identity`] of the file, which it keeps when it gets its final name.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self.out.get_ref().metadata();
        Ok(identity(&metadata.with_context(|| failure(&self.path))?))
    }

    /// Syncs the file to the disk, still under its temporary name.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn complete(self) -> Result<CompleteFile> {
        let NewFile { out, temporary, path } = self;
        let file = out.into_inner().map_err(IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).with_context(|| failure(&path))?;
        Ok(CompleteFile { temporary, path })
    }
}

impl Write for NewFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.out.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

/// A file that has reached the disk and does not have its final name yet. Dropped, it leaves
/// nothing behind.
#[derive(Debug)]
pub struct CompleteFile {
    temporary: TempPath,
    path: PathBuf,
}

impl CompleteFile {
    /// Gives the file its final name, and replaces any older file of that name.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn publish(self) -> Result<()> {
        let CompleteFile { temporary, path } = self;
        let renamed = temporary.persist(&path).map_err(|failed| failed.error);
        renamed.and_then(|()| sync_directory(&path)).with_context(|| failure(&path))
    }
}

/// Writes the file at `path` with `fill`. An existing file stays as it is until the new one has
/// reached the disk, and is then replaced atomically.
///
/// # Errors
/// One line that names `path` and the cause: a directory that is missing or not writable, a full
/// disk, or the error of `fill`. Nothing new is left behind.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut file = NewFile::create(path)?;
    fill(&mut file).with_context(|| failure(path))?;
    file.complete()?.publish()
}

fn failure(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Creates the temporary file of `path`, with the permissions of `mode` that the umask leaves.
fn temporary(path: &Path, mode: u32) -> Result<NamedTempFile> {
    // A rename would silently replace /dev/null or a pipe by a file.
    let replaceable = fs::metadata(path).map_or(true, |found| found.is_file());
    ensure!(replaceable && path.file_name().is_some(), "it exists and is not a regular file");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(TEMPORARY);
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    builder.tempfile_in(directory(path)).map_err(|e| {
        // The crate adds the temporary name, which tells a user nothing.
        let text = e.to_string();
        anyhow!(text.split(" at path ").next().unwrap_or_default().to_owned())
    })
}

/// The directory of `path`: `.` for a plain name.
pub fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates the directory of `path`, if it is missing.
///
/// # Errors
/// If it cannot be created.
pub fn make_room(path: &Path) -> Result<()> {
    let dir = directory(path);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Syncs the names in the directory of `path` to the disk. Some network file systems do not support
/// this, and report so.
///
/// # Errors
/// If the directory cannot be opened, or the disk fails.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(directory(path))?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_a_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err().to_string();
        assert_eq!(error, format!("{}: expected at most 4 bytes, found 5", path.display()));
        fs::write(&path, "\u{feff}ab").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "ab");
        fs::write(&path, b"a\xff").unwrap();
        assert!(format!("{:#}", read_text(&path, 5).unwrap_err()).contains("a: not UTF-8 text"));
        assert!(format!("{:#}", read(&directory.path().join("b"), 4).unwrap_err()).contains("cannot read"));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_directories_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, found) in [
            (pipe.as_path(), "a named pipe"),
            (Path::new("/dev/zero"), "a device"),
            (directory.path(), "a directory"),
        ] {
            let expected = format!("{}: not a regular file but {found}", path.display());
            assert_eq!(open(path).unwrap_err().to_string(), expected);
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"0123").unwrap();
        file.rewind().unwrap();
        file.write_all(b"9").unwrap();
        let temporary = names(directory.path());
        assert_eq!(final_name(&temporary[0]), Some("a"), "{temporary:?}");
        for other in ["a", ".a", ".a.tmp", "a.x.tmp", ".a.x.txt"] {
            assert_eq!(final_name(other), None, "{other}");
        }
        let another = NewFile::create(&path).unwrap();
        assert_eq!(names(directory.path()).len(), 2, "each has its own name");
        drop(another);
        let complete = file.complete().unwrap();
        assert_eq!(names(directory.path()), temporary);
        complete.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"9123");
        NewFile::create(&path).unwrap().complete().unwrap();
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|name| directory.path().join(name));
        write(&ours, |_| Ok(())).unwrap();
        fs::write(&plain, "").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        let private = directory.path().join("private");
        let file = NewFile::create_private(&private).unwrap();
        let found = file.identity().unwrap();
        file.complete().unwrap().publish().unwrap();
        assert_eq!(mode(&private) & 0o777, 0o600);
        assert_eq!(identity(&fs::metadata(&private).unwrap()), found);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_its_target_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [target, link] = ["target", "link"].map(|name| directory.path().join(name));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, |out| Ok(out.write_all(b"new")?)).unwrap();
        assert_eq!((fs::read(&target).unwrap(), fs::read(&link).unwrap()), (b"old".into(), b"new".into()));
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }

    #[test]
    fn an_error_names_the_file_and_not_its_temporary_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/a");
        let error = format!("{:#}", NewFile::create(&path).unwrap_err());
        assert!(error.starts_with(&failure(&path)) && !error.contains("at path"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write(&path, |out| {
            out.write_all(b"ne")?;
            Err(full().into())
        });
        let message = format!("{:#}", error.unwrap_err());
        assert!(
            message.contains(path.to_str().unwrap()) && message.contains(&full().to_string()),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_noticed_even_when_all_fits_the_buffer() {
        for bytes in [1, 1 << 20, 3 << 20] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let temporary = NamedTempFile::new().unwrap().into_temp_path();
            let out = BufWriter::with_capacity(1 << 20, full);
            let mut file = NewFile { out, temporary, path: "a".into() };
            let error = match file.write_all(&vec![1; bytes]) {
                Ok(()) => file.complete().unwrap_err().downcast().unwrap(),
                Err(error) => error,
            };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(!error.to_string().contains(TEMPORARY), "{error}");
        }
    }

    #[test]
    fn unwritable_directories_and_what_is_not_a_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no/such/a");
        let message = write(&missing, |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains(missing.to_str().unwrap()), "{message}");
        // Not even root may create files there.
        #[cfg(target_os = "linux")]
        assert!(write(Path::new("/proc/a"), |_| Ok(())).unwrap_err().to_string().contains("/proc/a"));
        assert!(write(directory.path(), |_| Ok(())).is_err());
        #[cfg(unix)]
        assert!(write(Path::new("/dev/null"), |_| Ok(())).is_err());
        assert!(names(directory.path()).is_empty());
    }
}
