//! A program on a terminal of its own.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The longest wait for something that a program writes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// Output that has not been expected yet.
    text: String,
}

/// Opens a pseudo-terminal: the side of this test, and that of the program.
fn open() -> (OwnedFd, OwnedFd) {
    let (mut own, mut other) = (0, 0);
    // SAFETY: both descriptors are places to write to, and null stands for what is not wanted.
    let status = unsafe { libc::openpty(&raw mut own, &raw mut other, null_mut(), null_mut(), null_mut()) };
    assert_eq!(status, 0, "{}", Error::last_os_error());
    // A copy, unlike the original, is not handed down to other programs.
    // SAFETY: the descriptors are new, and nothing else closes them.
    [own, other].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }.try_clone().unwrap()).into()
}

impl Terminal {
    /// Starts a program whose controlling terminal is a new one.
    pub fn start(command: &mut Command) -> Terminal {
        let (own, other) = open();
        let copy = || Stdio::from(other.try_clone().unwrap());
        command.stdin(copy()).stdout(copy()).stderr(copy()).env("TERM", "xterm");
        // SAFETY: between fork and exec the closure makes two system calls, and allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 {
                true => Ok(()),
                false => Err(Error::last_os_error()),
            });
        }
        let child = command.spawn().unwrap();
        // While anybody else holds the other side open, the end of the program does not show.
        drop(other);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (sender, screen) = channel();
        let mut reader = File::from(own.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            // Once nobody has the other side open, reading fails.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keyboard: File::from(own), screen, text: String::new() }
    }

    /// Presses keys.
    pub fn send(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until a text is written, and passes over all up to it.
    pub fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.text.find(text) {
                self.text.drain(..at + text.len());
                return;
            }
            let Ok(bytes) = self.screen.recv_timeout(PATIENCE) else {
                panic!("expected {text:?}, found {:?}", self.text);
            };
            self.text += &String::from_utf8_lossy(&bytes);
        }
    }

    /// Waits for the end of the program, and returns its exit status.
    pub fn end(mut self) -> Option<i32> {
        let silence = loop {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(silence) => break silence,
            }
        };
        assert_eq!(silence, RecvTimeoutError::Disconnected, "expected the end, found {:?}", self.text);
        self.child.wait().unwrap().code()
    }
}

/// A test that fails leaves no program behind.
impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
