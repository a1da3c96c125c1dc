//! A pipe that tells trainers that their launcher is gone, even if it was killed: behind a wrapper
//! script a trainer is not a child of the launcher. Only the launcher has the end for writing, so
//! the pipe is closed when it ends. A trainer then stops with a checkpoint, as after SIGTERM.

use anyhow::{Context, Result};
use rustix::io::FdFlags;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::process::Command;

/// Variable with the descriptor of the end for reading, and the inode of the pipe: a wrapper may
/// have closed the descriptor, and its number may belong to another file.
#[cfg(target_os = "linux")]
const VARIABLE: &str = "WARPSMITH_LIFELINE";

/// The launcher's side.
#[derive(Debug)]
pub struct Lifeline {
    reader: PipeReader,
    /// Stays open for as long as the launcher runs.
    _writer: PipeWriter,
}

impl Lifeline {
    /// # Errors
    /// If the system has no pipe left.
    pub fn new() -> Result<Self> {
        let (reader, writer) = std::io::pipe().context("launch: no pipe")?;
        // The ranks inherit this end.
        rustix::io::fcntl_setfd(&reader, FdFlags::empty()).context("launch: no pipe")?;
        Ok(Lifeline { reader, _writer: writer })
    }

    /// Names the pipe in the environment of a rank.
    #[cfg(target_os = "linux")]
    pub fn hand_to(&self, command: &mut Command) {
        if let Ok(inode) = trainer::inode(self.reader.as_raw_fd()) {
            command.env(VARIABLE, format!("{} {inode}", self.reader.as_raw_fd()));
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub fn hand_to(&self, _command: &mut Command) {}
}

/// Makes this process stop when its launcher ends. Without a launcher, or behind a wrapper that
/// closed the pipe, it does nothing.
pub fn follow(variable: &dyn Fn(&str) -> Option<String>) {
    #[cfg(target_os = "linux")]
    if let Some(pipe) = variable(VARIABLE).and_then(|text| trainer::open(&text)) {
        // Without a thread the run is merely not stopped early.
        let _ = std::thread::Builder::new().name("lifeline".to_owned()).spawn(move || {
            trainer::wait_for_end(&pipe);
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = variable;
}

#[cfg(target_os = "linux")]
mod trainer {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::fs::{File, OpenOptions};
    use std::io::{ErrorKind, Read};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

    fn path(descriptor: i32) -> String {
        format!("/proc/self/fd/{descriptor}")
    }

    pub fn inode(descriptor: i32) -> std::io::Result<u64> {
        Ok(std::fs::metadata(path(descriptor))?.ino())
    }

    /// Opens the pipe that the variable names, if this process has inherited it.
    pub fn open(text: &str) -> Option<File> {
        let (descriptor, expected) = text.split_once(' ')?;
        let (descriptor, expected): (i32, u64) = (descriptor.parse().ok()?, expected.parse().ok()?);
        let found = std::fs::metadata(path(descriptor)).ok()?;
        if !found.file_type().is_fifo() || found.ino() != expected {
            return None;
        }
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path(descriptor)).ok()
    }

    /// Returns when nobody has the end for writing any more.
    pub fn wait_for_end(mut pipe: &File) {
        loop {
            // Nothing is ever written. A pipe that was closed before it was opened here is not
            // reported by poll, but it has an end.
            match pipe.read(&mut [0]) {
                Ok(0) => return,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // An error is a signal.
                    let _ = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], None);
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_writer_has_ended() {
        let Lifeline { reader, _writer: writer } = Lifeline::new().unwrap();
        let number = reader.as_raw_fd();
        let inode = trainer::inode(number).unwrap();
        let [early, late] = [(); 2].map(|()| format!("{number} {inode}"));
        let early = trainer::open(&early).unwrap();
        let waiting = std::thread::spawn(move || trainer::wait_for_end(&early));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(writer);
        waiting.join().unwrap();
        trainer::wait_for_end(&trainer::open(&late).unwrap());
    }

    #[test]
    fn a_number_of_another_file_is_ignored() {
        let lifeline = Lifeline::new().unwrap();
        let number = lifeline.reader.as_raw_fd();
        let null = std::fs::File::open("/dev/null").unwrap();
        let null = format!("{0} {1}", null.as_raw_fd(), trainer::inode(null.as_raw_fd()).unwrap());
        for text in ["", "7", "x y", "-1 5", "99999 1", &format!("{number} 1"), &null] {
            assert!(trainer::open(text).is_none(), "{text}");
        }
    }
}
