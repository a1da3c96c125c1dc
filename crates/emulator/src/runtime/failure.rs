//! Errors of kernels, with the place where they happened.

use std::ffi::{CStr, c_char};
use std::fmt;

/// A place in a kernel, and the operation there.
#[derive(Clone, Copy)]
pub struct Site {
    pub what: &'static str,
    file: *const c_char,
    line: u32,
}

impl Site {
    pub const UNKNOWN: Site = Site { what: "", file: std::ptr::null(), line: 0 };

    /// Makes a site; `file` is null or a string literal.
    pub fn new(what: &'static str, file: *const c_char, line: u32) -> Self {
        Site { what, file, line }
    }

    fn file(&self) -> Option<&'static CStr> {
        // SAFETY: `new` takes only null and literals.
        (!self.file.is_null()).then(|| unsafe { CStr::from_ptr(self.file) })
    }

    /// Whether two sites are the same. Every barrier asks, so texts are compared only if they are
    /// not the same literals.
    #[inline]
    pub fn is_same(&self, other: &Site) -> bool {
        self.line == other.line
            && (std::ptr::eq(self.what, other.what) || self.what == other.what)
            && (self.file == other.file || self.file() == other.file())
    }
}

/// Shows `__syncthreads at kernels/gelu.cu:12`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some(file) = self.file() {
            let space = if self.what.is_empty() { "" } else { " " };
            let file = file.to_string_lossy();
            write!(f, "{space}at {}:{}", file.trim_start_matches("./"), self.line)?;
        }
        Ok(())
    }
}

/// An error of a kernel.
pub struct Failure {
    thread: Option<usize>,
    site: Site,
    message: String,
    /// The return addresses of the thread, innermost first.
    trace: Vec<usize>,
}

impl Failure {
    pub fn new(thread: Option<usize>, site: Site, message: String) -> Self {
        let mut trace = Vec::new();
        if thread.is_some() {
            backtrace::trace(|frame| {
                trace.push(frame.ip().addr());
                trace.len() < 32
            });
        }
        Failure { thread, site, message, trace }
    }

    /// Formats one line that names the kernel, the block and the thread.
    pub fn describe(&self, kernel: &str, block: [u32; 3], block_dim: [u32; 3]) -> String {
        let [x, y, z] = block;
        let mut text = format!("kernel {kernel}, block ({x},{y},{z})");
        if let Some(thread) = self.thread {
            let t = thread as u32;
            let [x, y] = [t % block_dim[0], t / block_dim[0] % block_dim[1]];
            let z = t / (block_dim[0] * block_dim[1]);
            text += &format!(", thread ({x},{y},{z}) (warp {}, lane {})", thread / 32, thread % 32);
        }
        let site = self.site.to_string();
        if !site.is_empty() {
            text += &format!(", {site}");
        }
        let lines = self.lines();
        let mut news = lines.iter().filter(|line| !site.ends_with(line.as_str()));
        if let Some(line) = news.next() {
            let how = if site.is_empty() { "at" } else { "from" };
            text += &format!(", {how} {line}");
        }
        if let Some(kernel) = news.next_back() {
            text += &format!(", from {kernel}");
        }
        format!("{text}: {}", self.message)
    }

    /// The source lines in kernels and their headers, innermost first.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ip in &self.trace {
            backtrace::resolve(std::ptr::without_provenance_mut(*ip), |symbol| {
                let file = symbol.filename().and_then(|file| file.to_str()).unwrap_or_default();
                // Relative to the directory that it was compiled in.
                let file = file.rsplit_once("/./").map_or(file, |(_, file)| file).trim_start_matches("./");
                if file.ends_with(".cu") || file.ends_with(".cuh") {
                    lines.push(format!("{file}:{}", symbol.lineno().unwrap_or(0)));
                }
            });
        }
        lines
    }
}
