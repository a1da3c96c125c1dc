//! What went wrong, and where.

use std::ffi::{CStr, c_char};
use std::fmt;

/// A place in a kernel, and what it does there.
#[derive(Clone, Copy)]
pub struct Site {
    pub what: &'static str,
    file: *const c_char,
    line: u32,
}

impl Site {
    pub const UNKNOWN: Site = Site { what: "", file: std::ptr::null(), line: 0 };

    /// `file` is null or a string literal.
    pub fn new(what: &'static str, file: *const c_char, line: u32) -> Self {
        Site { what, file, line }
    }

    fn file(&self) -> Option<&'static CStr> {
        // SAFETY: `new` wants a literal.
        (!self.file.is_null()).then(|| unsafe { CStr::from_ptr(self.file) })
    }

    pub fn is_same(&self, other: &Site) -> bool {
        let same_file = || self.file == other.file || self.file() == other.file();
        self.line == other.line && self.what == other.what && same_file()
    }
}

/// `__syncthreads at kernels/gelu.cu:12`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some(file) = self.file() {
            let space = if self.what.is_empty() { "" } else { " " };
            write!(f, "{space}at {}:{}", file.to_string_lossy(), self.line)?;
        }
        Ok(())
    }
}

/// An error of a kernel.
pub struct Failure {
    pub thread: Option<usize>,
    pub site: Site,
    pub message: String,
}

impl Failure {
    pub fn new(thread: Option<usize>, site: Site, message: String) -> Self {
        Failure { thread, site, message }
    }

    /// One line that names the kernel, the block and the thread.
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
        format!("{text}: {}", self.message)
    }
}
