//! One call of a program that changes files is made to fail, or the program is killed before it.
//!
//! A filter (seccomp) stops the program at the system calls that create, write, sync, rename, cut
//! or remove files; everything else runs at full speed. This process, which traces it (ptrace),
//! counts those that concern one directory and tampers with the chosen one. So each of the moments
//! at which a run can die or a disk can fail is met once, without luck.

use libc::{c_int, c_long, c_void, pid_t, user_regs_struct};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::size_of;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The fault at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed before the call.
    Kill,
    /// The call fails with this number, and does nothing.
    Error(c_int),
    /// This call and all later ones fail: a disk that stays full.
    ErrorsFromHere(c_int),
    /// A write writes only half of its bytes, as it may.
    ShortWrite,
}

/// The end of a program that ran under a fault.
#[derive(Debug)]
pub struct Ending {
    pub status: ExitStatus,
    pub stderr: String,
    /// Calls counted.
    pub calls: usize,
    /// The call that was tampered with, if it was reached: `rename model_00000002.bin`.
    pub hit: Option<String>,
}

/// Longest time that a run may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A kind of call: its name, and the argument that holds a path or a file descriptor.
struct Call {
    number: c_long,
    name: &'static str,
    object: Object,
}

enum Object {
    Descriptor,
    /// The path in this argument.
    Path(usize),
    /// The path in the first argument that an opening call creates or writes to; the flags are in
    /// the second argument.
    Opened {
        path: usize,
        flags: usize,
    },
}

const CALLS: [Call; 19] = {
    use Object::{Descriptor, Opened, Path};
    const fn call(number: c_long, name: &'static str, object: Object) -> Call {
        Call { number, name, object }
    }
    [
        call(libc::SYS_open, "open", Opened { path: 0, flags: 1 }),
        call(libc::SYS_openat, "open", Opened { path: 1, flags: 2 }),
        call(libc::SYS_write, "write", Descriptor),
        call(libc::SYS_pwrite64, "write", Descriptor),
        call(libc::SYS_writev, "write", Descriptor),
        call(libc::SYS_fsync, "sync", Descriptor),
        call(libc::SYS_fdatasync, "sync", Descriptor),
        call(libc::SYS_ftruncate, "cut", Descriptor),
        call(libc::SYS_fchmod, "chmod", Descriptor),
        call(libc::SYS_rename, "rename", Path(0)),
        call(libc::SYS_renameat, "rename", Path(1)),
        call(libc::SYS_renameat2, "rename", Path(1)),
        call(libc::SYS_link, "link", Path(0)),
        call(libc::SYS_linkat, "link", Path(1)),
        call(libc::SYS_unlink, "remove", Path(0)),
        call(libc::SYS_unlinkat, "remove", Path(1)),
        call(libc::SYS_mkdir, "mkdir", Path(0)),
        call(libc::SYS_mkdirat, "mkdir", Path(1)),
        call(libc::SYS_rmdir, "rmdir", Path(0)),
    ]
};

/// Runs `command` to its end. The call number `at` (from 0) that concerns a file below `directory`
/// meets the fault. Files are told by absolute paths, so the program has to be given such.
#[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
pub fn run(mut command: Command, directory: &Path, at: usize, fault: Fault) -> Ending {
    let output = tempfile::NamedTempFile::new().unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output.reopen().unwrap());
    // SAFETY: the closure makes three system calls between fork and exec; it allocates nothing.
    unsafe {
        command.pre_exec(stop_at_calls);
    }
    let child = command.spawn().unwrap();
    let mut tracer = Tracer { pid: child.id() as pid_t, directory, at, fault, calls: 0, hit: None };
    let status = tracer.trace();
    let Tracer { calls, hit, .. } = tracer;
    Ending { status, stderr: fs::read_to_string(output.path()).unwrap(), calls, hit }
}

/// Runs in the child: its parent traces it, and the calls of the table stop it.
fn stop_at_calls() -> io::Result<()> {
    const fn statement(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    const COUNT: usize = CALLS.len();
    const FILTER: [libc::sock_filter; COUNT + 3] = {
        let load = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
        let mut filter = [load; COUNT + 3];
        let mut i = 0;
        while i < COUNT {
            // To the last statement if the number is this one, else on to the next.
            let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
            filter[i + 1] = statement(code, (COUNT - i) as u8, 0, CALLS[i].number as u32);
            i += 1;
        }
        filter[COUNT + 1] = statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
        filter[COUNT + 2] = statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_TRACE);
        filter
    };
    let program = libc::sock_fprog { len: FILTER.len() as u16, filter: FILTER.as_ptr().cast_mut() };
    // SAFETY: plain system calls; the kernel copies the filter.
    let failed = unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Tracer<'a> {
    pid: pid_t,
    directory: &'a Path,
    at: usize,
    fault: Fault,
    calls: usize,
    hit: Option<String>,
}

impl Tracer<'_> {
    fn trace(&mut self) -> ExitStatus {
        let started = Instant::now();
        let mut known = BTreeSet::new();
        loop {
            let mut status = 0;
            // SAFETY: a plain system call. Only this thread's children are waited for, because
            // other tests have children of their own.
            let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
            assert!(tid > 0, "waitpid: {}", io::Error::last_os_error());
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                if tid == self.pid {
                    return ExitStatus::from_raw(status);
                }
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            let new = known.insert(tid);
            let mut deliver = 0;
            if status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_SECCOMP << 8) {
                self.at_call(tid);
            } else if new && tid == self.pid {
                let options =
                    libc::PTRACE_O_TRACESECCOMP | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
                ptrace(libc::PTRACE_SETOPTIONS, tid, options as usize as *mut c_void).unwrap();
            } else if !new && status >> 16 == 0 {
                deliver = signal;
            }
            if started.elapsed() > LIMIT {
                self.kill();
            }
            // A killed thread is gone.
            let _ = ptrace(libc::PTRACE_CONT, tid, deliver as usize as *mut c_void);
        }
    }

    /// Counts the call at which a thread stopped, and applies the fault if its turn has come.
    fn at_call(&mut self, tid: pid_t) {
        // SAFETY: all bits zero are valid registers.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        if ptrace(libc::PTRACE_GETREGS, tid, (&raw mut registers).cast()).is_err() {
            return;
        }
        let number = registers.orig_rax as c_long;
        let call = CALLS.iter().find(|call| call.number == number).expect("the filter has these calls alone");
        let Some(path) = self.path_of(call, tid, &registers) else { return };
        let (turn, later) = (self.calls == self.at, self.calls > self.at);
        self.calls += 1;
        if turn {
            self.hit = Some(format!("{} {}", call.name, path.file_name().unwrap_or_default().display()));
        }
        match self.fault {
            Fault::Kill if turn => self.kill(),
            Fault::ShortWrite if turn && call.name == "write" && registers.rdx > 1 => registers.rdx /= 2,
            Fault::Error(error) if turn => fail(&mut registers, error),
            // A full disk still lets files be removed.
            Fault::ErrorsFromHere(error) if (turn || later) && call.name != "remove" => {
                fail(&mut registers, error);
            }
            _ => return,
        }
        let _ = ptrace(libc::PTRACE_SETREGS, tid, (&raw mut registers).cast());
    }

    /// The file that a call concerns, if it is below the directory and the call may change it.
    fn path_of(&self, call: &Call, tid: pid_t, registers: &user_regs_struct) -> Option<PathBuf> {
        let argument = |n: usize| [registers.rdi, registers.rsi, registers.rdx, registers.r10][n];
        let path = match call.object {
            Object::Descriptor => fs::read_link(format!("/proc/{tid}/fd/{}", argument(0))).ok()?,
            Object::Path(n) => string_at(tid, argument(n))?,
            Object::Opened { path, flags } => {
                let writes = libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR | libc::O_TRUNC;
                if argument(flags) as c_int & writes == 0 {
                    return None;
                }
                string_at(tid, argument(path))?
            }
        };
        path.starts_with(self.directory).then_some(path)
    }

    fn kill(&self) {
        // SAFETY: a plain system call on a child that was not waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }
}

/// Makes the call that is about to happen fail.
fn fail(registers: &mut user_regs_struct, error: c_int) {
    registers.orig_rax = u64::MAX;
    registers.rax = -i64::from(error) as u64;
}

/// Reads the path at an address in the program's memory.
fn string_at(tid: pid_t, address: u64) -> Option<PathBuf> {
    let mut memory = File::open(format!("/proc/{tid}/mem")).ok()?;
    memory.seek(SeekFrom::Start(address)).ok()?;
    let mut bytes = Vec::new();
    let mut chunk = [0; size_of::<u64>()];
    while !bytes.contains(&0) && bytes.len() < libc::PATH_MAX as usize {
        memory.read_exact(&mut chunk).ok()?;
        bytes.extend_from_slice(&chunk);
    }
    let end = bytes.iter().position(|&b| b == 0)?;
    Some(PathBuf::from(String::from_utf8_lossy(&bytes[..end]).into_owned()))
}

fn ptrace(request: libc::c_uint, tid: pid_t, data: *mut c_void) -> io::Result<()> {
    // SAFETY: `data` is a number or points to what the request reads or writes.
    let result = unsafe { libc::ptrace(request, tid, std::ptr::null_mut::<c_void>(), data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
