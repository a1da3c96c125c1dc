//! The compiled kernels, as their translation units list them (`emulated/table.h`).

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

#[repr(C)]
pub struct Parameter {
    kind: *const c_char,
    bytes: u64,
}

impl Parameter {
    #[cfg(test)]
    pub(super) const fn new(kind: &'static CStr, bytes: u64) -> Self {
        Parameter { kind: kind.as_ptr(), bytes }
    }
}

// SAFETY: a parameter points only to a literal.
#[cfg(test)]
unsafe impl Sync for Parameter {}

/// A compiled kernel.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    run: extern "C" fn(*const *const c_void),
    parameters: *const Parameter,
    parameter_count: u32,
    max_threads: u32,
    cluster: u32,
}

// SAFETY: a kernel is a constant of a translation unit, and points only to constants.
unsafe impl Sync for Kernel {}

fn text(string: *const c_char) -> &'static str {
    // SAFETY: tables hold only string literals.
    unsafe { CStr::from_ptr(string) }.to_str().expect("ASCII")
}

impl Kernel {
    /// A kernel written in Rust; one without a name ends a table.
    #[cfg(test)]
    pub(super) const fn new(
        name: Option<&'static CStr>,
        run: extern "C" fn(*const *const c_void),
        parameters: &'static [Parameter],
    ) -> Self {
        let parameter_count = parameters.len() as u32;
        let name = match name {
            Some(name) => name.as_ptr(),
            None => std::ptr::null(),
        };
        Kernel { name, run, parameters: parameters.as_ptr(), parameter_count, max_threads: 0, cluster: 1 }
    }

    pub fn name(&self) -> &'static str {
        text(self.name)
    }

    /// The types of the parameters in C++, without `const`: `bf16*`, `float`.
    pub fn parameter_types(&self) -> Vec<&'static str> {
        // The compiler writes a struct as `… [with T = {anonymous}::Name]`.
        let short = |kind: &'static str| match kind.rsplit_once("T = ") {
            Some((_, name)) => name.trim_end_matches(']').rsplit("::").next().unwrap_or(name),
            None => kind,
        };
        self.parameters().iter().map(|p| short(text(p.kind))).collect()
    }

    pub(super) fn parameter_bytes(&self) -> impl Iterator<Item = usize> {
        self.parameters().iter().map(|p| p.bytes as usize)
    }

    fn parameters(&self) -> &[Parameter] {
        // SAFETY: `parameters` points to `parameter_count` constants.
        unsafe { std::slice::from_raw_parts(self.parameters, self.parameter_count as usize) }
    }

    /// The limit of `__launch_bounds__`.
    pub fn max_threads(&self) -> Option<u32> {
        Some(self.max_threads).filter(|n| *n > 0)
    }

    /// The number of blocks in a cluster, 1 without `CLUSTER`.
    pub fn cluster(&self) -> u32 {
        self.cluster
    }

    pub(super) fn run(&self, arguments: *const *const c_void) {
        (self.run)(arguments);
    }
}

/// The first kernel of a translation unit: the type of the symbol that it exports.
pub type TablePointer = *const Kernel;

/// The kernels of one file, compiled in one variant.
pub struct Table {
    pub file: &'static str,
    pub variant: &'static str,
    /// Instrumented for the checker.
    pub checked: bool,
    first: *const TablePointer,
}

// SAFETY: a table points only to constants.
unsafe impl Sync for Table {}

impl Table {
    /// Describes the kernels of one translation unit.
    ///
    /// # Safety
    /// `first` points to the symbol that a unit compiled with `emulated/table.h` exports.
    pub const unsafe fn new(
        file: &'static str,
        variant: &'static str,
        checked: bool,
        first: *const TablePointer,
    ) -> Self {
        Table { file, variant, checked, first }
    }

    pub fn kernels(&self) -> impl Iterator<Item = &'static Kernel> {
        // SAFETY: `new` promises a symbol that points to an array whose last kernel has no name;
        // the iterator stops there.
        unsafe {
            let mut next = self.first.read();
            std::iter::from_fn(move || {
                let kernel = next.as_ref().filter(|kernel| !kernel.name.is_null())?;
                next = next.add(1);
                Some(kernel)
            })
        }
    }
}

/// Collects the kernels of one variant, by name.
pub fn by_name(tables: &[Table], variant: &str, checked: bool) -> BTreeMap<&'static str, &'static Kernel> {
    let chosen = tables.iter().filter(|t| t.variant == variant && t.checked == checked);
    chosen.flat_map(Table::kernels).map(|kernel| (kernel.name(), kernel)).collect()
}
