//! A lock on a directory, which one process holds until it ends, however it ends.
//!
//! The system's lock on `DIR/.lock` goes with its process. On a shared disk it may not reach other
//! machines, so the file also names its holder, who writes it again at every [`beat`](Times::beat).
//! A file from another machine that stays silent until it is [`stale`](Times::stale) belongs to a
//! process that is gone. The holder removes the file in the end, unless another has taken it over.

use super::is_at;
use anyhow::{Context, Result, bail};
use log::warn;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

const NAME: &str = ".lock";

#[derive(Clone, Copy, Debug)]
struct Times {
    /// Between two signs of life.
    beat: Duration,
    /// The time that a holder has to end before it is in the way.
    patience: Duration,
    /// The silence after which a holder on another machine is gone.
    stale: Duration,
}

const TIMES: Times = Times {
    beat: Duration::from_secs(20),
    patience: Duration::from_secs(2),
    stale: Duration::from_secs(120),
};

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

    /// The holder that the file at the path names, if that is another one.
    fn other_at(&self, path: &Path) -> Option<Self> {
        Self::read(&super::open(path).ok()?.0).filter(|found| found != self)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let start = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.started));
        let running = start.and_then(|start| start.elapsed().ok()).map_or(0, |time| time.as_secs());
        write!(f, "process {} on {}, started {running} s ago", self.pid, self.host)
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
    holder: Holder,
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
        Self::take_as(Holder::this_process(), dir, NAME, TIMES)
    }

    /// Locks the files of `name` in the directory.
    ///
    /// # Errors
    /// Those of [`DirLock::take`].
    pub fn take_for(dir: &Path, name: &str) -> Result<DirLock> {
        Self::take_as(Holder::this_process(), dir, &format!(".{name}{NAME}"), TIMES)
    }

    fn take_as(holder: Holder, dir: &Path, name: &str, times: Times) -> Result<DirLock> {
        let made = !dir.exists();
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot create the directory", dir.display()))?;
        let path = dir.join(name);
        let file = lock(&holder, dir, name, times)?;
        let context = || format!("cannot write {}", path.display());
        holder.write(&file).with_context(context)?;
        let (stop, stopped) = channel();
        let beating = file.try_clone().with_context(context)?;
        let (own, place) = (holder.clone(), path.clone());
        let beat = move || {
            while stopped.recv_timeout(times.beat) == Err(RecvTimeoutError::Timeout) {
                // A process that was suspended for long may have lost its lock.
                if own.other_at(&place).is_some() {
                    break;
                }
                // A disk that fails is reported by those who write what matters.
                let _ = own.write(&beating);
            }
        };
        let thread = Builder::new().name("directory lock".to_owned()).spawn(beat).with_context(context)?;
        let (dir, stop, thread) = (dir.to_owned(), Some(stop), Some(thread));
        Ok(DirLock { dir, path, made, holder, file, stop, thread })
    }

    /// Locks the directory again if it has been removed or replaced.
    ///
    /// # Errors
    /// Those of [`DirLock::take`]; or one line that names the new holder, if another process has
    /// taken the directory over.
    pub fn renew(&mut self) -> Result<()> {
        if !is_at(&self.file, &self.path) {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            *self = Self::take_as(Holder::this_process(), &self.dir, &name, TIMES)?;
        } else if let Some(other) = self.holder.other_at(&self.path) {
            bail!(
                "{}: taken over by {other}, because this process gave no sign for too long; stop one of them",
                self.dir.display()
            );
        }
        Ok(())
    }
}

/// Opens and locks the file for `holder`. Waits for a holder on another machine that may be gone.
fn lock(holder: &Holder, dir: &Path, name: &str, times: Times) -> Result<File> {
    let (path, place, started) = (dir.join(name), dir.display(), Instant::now());
    // The other holder, and the time of its last sign when it was first seen.
    let mut seen = None;
    loop {
        let file = open_or_create(&path)?;
        let locks = match file.try_lock() {
            Ok(()) => true,
            // A process that was killed a moment ago may still be on its way out.
            Err(TryLockError::WouldBlock) if started.elapsed() < times.patience => {
                sleep(times.patience / 40);
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
        let Some(other) = other else { return Ok(file) };
        let silence = silence(&file, dir).unwrap_or(Duration::ZERO);
        if silence >= times.stale {
            return Ok(file);
        }
        let sign = Some((other, file.metadata().and_then(|found| found.modified()).ok()));
        if seen.is_some() && seen != sign {
            bail!(
                "{place} is in use by {}, which gave a sign of life {} s ago; wait for it, stop it, or choose another",
                name_of(&file),
                silence.as_secs()
            );
        }
        if seen.is_none() {
            warn!(
                "{place} is in use by {}, which gave its last sign {} s ago: waiting for up to {} s for another; if \
                 it is gone, remove {} to go on at once",
                name_of(&file),
                silence.as_secs(),
                (times.stale - silence).as_secs() + 1,
                path.display()
            );
            seen = sign;
        }
        drop(file);
        sleep(times.stale / 240);
    }
}

fn open_or_create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path).with_context(|| format!("cannot write {}", path.display()))
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
    Holder::read(file).map_or("another process".to_owned(), |holder| holder.to_string())
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
        if is_at(&self.file, &self.path) && self.holder.other_at(&self.path).is_none() {
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

    const SHORT: Times = Times {
        beat: Duration::from_millis(50),
        patience: Duration::from_millis(40),
        stale: Duration::from_millis(1200),
    };

    /// The host that the file names.
    fn host_at(path: &Path) -> String {
        Holder::read(&File::open(path).unwrap()).unwrap().host
    }

    /// As if the system's lock did not reach this machine.
    fn write_as(host: &str, path: &Path) {
        fs::write(path, serde_json::to_string(&holder(host)).unwrap()).unwrap();
    }

    #[test]
    fn a_lock_of_another_machine_counts_until_it_is_silent() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, path) = (directory.path(), directory.path().join(NAME));
        write_as("far", &path);
        let written = Instant::now();
        let held = DirLock::take_as(holder("near"), dir, NAME, SHORT).unwrap();
        assert!(written.elapsed() > SHORT.stale / 2, "taken after {:?}", written.elapsed());
        assert_eq!(host_at(&path), "near");
        drop(held);
        // Already silent for long enough.
        write_as("far", &path);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - TIMES.stale - Duration::from_secs(1)).unwrap();
        drop(DirLock::take_as(holder("near"), dir, NAME, TIMES).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_of_another_machine_that_gives_a_sign_is_respected() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, path) = (directory.path(), directory.path().join(NAME));
        write_as("far", &path);
        let message = std::thread::scope(|scope| {
            let times = Times { stale: Duration::from_secs(60), ..SHORT };
            let waiting = scope.spawn(move || DirLock::take_as(holder("near"), dir, NAME, times));
            sleep(Duration::from_millis(400));
            assert!(!waiting.is_finished(), "it waits for a sign");
            write_as("far", &path);
            waiting.join().unwrap().unwrap_err().to_string()
        });
        for word in ["is in use by process", "on far", "sign of life 0 s ago"] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(host_at(&dir.join(NAME)), "far");
    }

    #[test]
    fn a_lock_that_was_taken_over_stays_with_its_new_holder() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, path) = (directory.path(), directory.path().join(NAME));
        let mut held = DirLock::take_as(holder("near"), dir, NAME, SHORT).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        sleep(SHORT.beat * 6);
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > before, "it gives signs of life");
        held.renew().unwrap();
        write_as("far", &path);
        sleep(SHORT.beat * 6);
        assert_eq!(host_at(&path), "far");
        let message = held.renew().unwrap_err().to_string();
        assert!(message.contains("taken over by process") && message.contains("on far"), "{message}");
        drop(held);
        assert_eq!(host_at(&path), "far");
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
