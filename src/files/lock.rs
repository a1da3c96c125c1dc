//! A lock on a directory, which one process holds until it ends, however it ends.
//!
//! The system's lock on `DIR/.lock` goes with its process. On a shared disk it may not reach other
//! machines, so the file also names its holder, who writes it again every [`BEAT`]: a file from
//! another machine that has been silent for [`STALE`] belongs to a process that is gone. The holder
//! removes the file in the end.

use super::is_at;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

const NAME: &str = ".lock";

/// The time between two signs of life.
const BEAT: Duration = Duration::from_secs(20);

/// The time that a holder has to end before it is in the way.
const PATIENCE: Duration = Duration::from_secs(2);

/// The silence after which a holder on another machine is gone.
const STALE: Duration = Duration::from_secs(120);

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// Seconds since 1970.
    started: u64,
}

impl Holder {
    fn this_process() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Holder { host: host_name(), pid: std::process::id(), started: now.as_secs() }
    }

    /// The holder that a lock file names, if any.
    fn read(mut file: &File) -> Option<Self> {
        const MOST: u64 = 1 << 12;
        let mut text = Vec::new();
        file.rewind().ok()?;
        file.take(MOST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write(&self, mut file: &File) -> Result<()> {
        let text = serde_json::to_string(self)? + "\n";
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        Ok(file.set_len(text.len() as u64)?)
    }
}

/// A locked directory.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    /// The locked file.
    path: PathBuf,
    /// Whether the directory was made for this lock.
    made: bool,
    file: File,
    /// Ends the thread when dropped.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DirLock {
    /// Locks the directory, and creates it if it is missing.
    ///
    /// # Errors
    /// One line that names the holder, if another process has locked it; or if the directory cannot
    /// be created or written to.
    pub fn take(dir: &Path) -> Result<DirLock> {
        Self::take_as(Holder::this_process(), dir, NAME, STALE)
    }

    /// Locks the files of `name` in the directory.
    ///
    /// # Errors
    /// Those of [`DirLock::take`].
    pub fn take_for(dir: &Path, name: &str) -> Result<DirLock> {
        Self::take_as(Holder::this_process(), dir, &format!(".{name}{NAME}"), STALE)
    }

    fn take_as(holder: Holder, dir: &Path, name: &str, stale: Duration) -> Result<DirLock> {
        let made = !dir.exists();
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot create the directory", dir.display()))?;
        let path = dir.join(name);
        let file = lock(&holder, dir, name, stale)?;
        let context = || format!("cannot write {}", path.display());
        holder.write(&file).with_context(context)?;
        let (stop, stopped) = channel();
        let beating = file.try_clone().with_context(context)?;
        let beat = move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                // A disk that fails is reported by those who write what matters.
                let _ = holder.write(&beating);
            }
        };
        let thread = Builder::new().name("directory lock".to_owned()).spawn(beat).with_context(context)?;
        Ok(DirLock { dir: dir.to_owned(), path, made, file, stop: Some(stop), thread: Some(thread) })
    }

    /// Locks the directory again if it has been removed or replaced.
    ///
    /// # Errors
    /// Those of [`DirLock::take`].
    pub fn renew(&mut self) -> Result<()> {
        if !is_at(&self.file, &self.path) {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            *self = Self::take_as(Holder::this_process(), &self.dir, &name, STALE)?;
        }
        Ok(())
    }
}

/// Opens and locks the file for `holder`.
fn lock(holder: &Holder, dir: &Path, name: &str, stale: Duration) -> Result<File> {
    let (path, place, started) = (dir.join(name), dir.display(), Instant::now());
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let locks = match file.try_lock() {
            Ok(()) => true,
            // A process that was killed a moment ago may still be on its way out.
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                sleep(PATIENCE / 40);
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                bail!("{place} is in use by {}; wait for it, stop it, or choose another", name_of(&file))
            }
            // The file system has no locks.
            Err(TryLockError::Error(_)) => false,
        };
        // The holder before may just have removed the file that is locked now.
        if locks && !is_at(&file, &path) {
            continue;
        }
        let other = Holder::read(&file).filter(|other| !locks || other.host != holder.host);
        if other.is_some() {
            let silence = silence(&file, dir).unwrap_or(Duration::ZERO);
            ensure!(
                silence >= stale,
                "{place} is in use by {}, which gave its last sign {} s ago; stop it, or if it is gone, try \
                 again in {} s or remove {}",
                name_of(&file),
                silence.as_secs(),
                (stale - silence).as_secs() + 1,
                path.display()
            );
        }
        return Ok(file);
    }
}

/// Time since a lock was last written, by the clock of the file system, as clocks of machines may
/// differ.
fn silence(file: &File, dir: &Path) -> Result<Duration> {
    let mut probe = tempfile::tempfile_in(dir)?;
    probe.write_all(b"now")?;
    let (now, then) = (probe.metadata()?.modified()?, file.metadata()?.modified()?);
    Ok(now.duration_since(then).unwrap_or_default())
}

fn name_of(file: &File) -> String {
    let Some(Holder { host, pid, started }) = Holder::read(file) else { return "another process".into() };
    let start = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(started));
    let running = start.and_then(|start| start.elapsed().ok()).map_or(0, |time| time.as_secs());
    format!("process {pid} on {host}, started {running} s ago")
}

/// Name of this machine in its network.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Drop for DirLock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic in the thread.
            let _ = thread.join();
        }
        if is_at(&self.file, &self.path) {
            // A file that stays behind does no harm: its lock ends with this process.
            let _ = fs::remove_file(&self.path);
        }
        if self.made {
            // This fails, as it should, if there is anything in it.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(host: &str) -> Holder {
        Holder { host: host.to_owned(), ..Holder::this_process() }
    }

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("made");
        let held = DirLock::take(&dir).unwrap();
        let message = DirLock::take(&dir).unwrap_err().to_string();
        let this = format!("process {} on {}", std::process::id(), Holder::this_process().host);
        assert!(message.starts_with(&format!("{} is in use by {this}", dir.display())), "{message}");
        drop(held);
        assert!(!dir.exists(), "nothing is left");
        drop(DirLock::take(&dir).unwrap());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("log"), "").unwrap();
        drop(DirLock::take(&dir).unwrap());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_whose_process_died_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        for left in [serde_json::to_string(&holder(&Holder::this_process().host)).unwrap(), "torn".into()] {
            fs::write(&path, left).unwrap();
            drop(DirLock::take(directory.path()).unwrap());
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_lock_of_another_machine_counts_until_it_is_silent() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, path) = (directory.path(), directory.path().join(NAME));
        // As if the system's lock did not reach this machine.
        fs::write(&path, serde_json::to_string(&holder("far")).unwrap()).unwrap();
        let message = DirLock::take_as(holder("near"), dir, NAME, STALE).unwrap_err().to_string();
        for word in ["process", "on far", "last sign 0 s ago", "remove", ".lock"] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(Holder::read(&File::open(&path).unwrap()).unwrap().host, "far");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - STALE - Duration::from_secs(1)).unwrap();
        let held = DirLock::take_as(holder("near"), dir, NAME, STALE).unwrap();
        assert_eq!(Holder::read(&File::open(&path).unwrap()).unwrap().host, "near");
        drop(held);
    }

    #[test]
    fn a_lock_is_renewed_where_its_directory_was_moved() {
        let directory = tempfile::tempdir().unwrap();
        let [dir, moved] = ["a", "b"].map(|name| directory.path().join(name));
        let mut held = DirLock::take(&dir).unwrap();
        held.renew().unwrap();
        fs::rename(&dir, &moved).unwrap();
        held.renew().unwrap();
        assert!(DirLock::take(&dir).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, directory.path().join(NAME)).unwrap();
        assert!(DirLock::take(directory.path()).unwrap_err().to_string().contains(".lock"));
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }
}
