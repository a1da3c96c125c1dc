//! NVTX ranges: the names of a program's parts, in the timelines of Nsight Systems and Nsight
//! Compute.
//!
//! This is the protocol of NVTX 3, whose headers do the same in C
//! (github.com/NVIDIA/NVTX, `nvtxDetail/nvtxTypes.h` and `nvtxInit.h`). A tool starts the program
//! with the path of a library in [`VARIABLE`]. The program loads it and calls its
//! `InitializeInjectionNvtx2` with a function that hands out tables of slots. The tool writes its
//! own functions into the slots, and the program calls those. Without the variable nothing is
//! loaded.

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::forget;
use std::path::{Path, PathBuf};
use std::ptr::{self, null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The environment variable with the path of a tool's library.
pub const VARIABLE: &str = "NVTX_INJECTION64_PATH";

/// The value with which a user tells NVTX to load nothing.
const NOTHING: &str = "./.";

/// A tool that listens.
#[derive(Debug)]
pub struct Tool {
    library: PathBuf,
    push: Option<Push>,
    pop: Option<Pop>,
    name_thread: Option<NameThread>,
}

/// `nvtxRangePushA`
type Push = unsafe extern "C" fn(*const c_char) -> c_int;
/// `nvtxRangePop`
type Pop = unsafe extern "C" fn() -> c_int;
/// `nvtxNameOsThreadA`
type NameThread = unsafe extern "C" fn(u32, *const c_char);
/// `InitializeInjectionNvtx2`
type Initialize = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;

const INITIALIZE: &CStr = c"InitializeInjectionNvtx2";

/// A place for one function of a tool.
type Slot = AtomicPtr<c_void>;

/// Slots by module and number, whose first one NVTX leaves out.
static SLOTS: [[Slot; MOST]; MODULES.len()] =
    [const { [const { AtomicPtr::new(null_mut()) }; MOST] }; MODULES.len()];

/// The number of slots in each of NVTX's modules: none, core, CUDA, OpenCL, CUDA runtime, domains,
/// synchronization. Tools may fill any of them, so all are there.
const MODULES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const MOST: usize = 16;

const CORE: usize = 1;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;
const NAME_OS_THREAD: usize = 14;

/// `NvtxExportTableCallbacks`
#[repr(C)]
struct Callbacks {
    struct_size: usize,
    get_module_function_table: unsafe extern "C" fn(c_uint, *mut *const usize, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`
#[repr(C)]
struct VersionInfo {
    struct_size: usize,
    version: u32,
    reserved: u32,
    set_injection_version: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { struct_size: size_of::<Callbacks>(), get_module_function_table };

static VERSION_INFO: VersionInfo =
    VersionInfo { struct_size: size_of::<VersionInfo>(), version: 3, reserved: 0, set_injection_version };

/// Hands out a table by its number; null for those that are not known.
extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => ptr::from_ref(&CALLBACKS).cast(),
        3 => ptr::from_ref(&VERSION_INFO).cast(),
        _ => null(),
    }
}

extern "C" fn set_injection_version(_version: u32) {}

/// Passes on the table of a module and its length, and returns 1; or 0, if there is no such module.
///
/// # Safety
/// `table` and `size` must be null or valid for a write.
unsafe extern "C" fn get_module_function_table(
    module: c_uint,
    table: *mut *const usize,
    size: *mut c_uint,
) -> c_int {
    let Some((slots, len)) = tables().get(module as usize).filter(|(_, len)| *len > 0) else { return 0 };
    if !table.is_null() {
        // SAFETY: the caller vouches for the pointer.
        unsafe { table.write(slots.as_ptr()) };
    }
    if !size.is_null() {
        // SAFETY: the caller vouches for the pointer.
        unsafe { size.write(*len as c_uint) };
    }
    1
}

/// The table of each module: the addresses of its slots, with null for the first and after the
/// last; and its length without the latter.
fn tables() -> &'static [(Vec<usize>, usize)] {
    static TABLES: OnceLock<Vec<(Vec<usize>, usize)>> = OnceLock::new();
    let table = |(slots, len): (&'static [Slot; MOST], usize)| {
        let addresses = slots[..len].iter().skip(1).map(|slot| ptr::from_ref(slot).expose_provenance());
        ([0].into_iter().chain(addresses).chain([0]).collect(), len)
    };
    TABLES.get_or_init(|| SLOTS.iter().zip(MODULES).map(table).collect())
}

/// Loads the tool that [`VARIABLE`] names; `None` if it names none. Called once by a process.
///
/// # Errors
/// One line, if the library cannot be loaded, or does not start.
pub fn attach() -> Result<Option<Tool>> {
    let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty() && path != NOTHING) else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    let tool = load(&path);
    tool.map(Some).with_context(|| {
        format!("{VARIABLE}={}: not a profiler's library; unset it to run without one", path.display())
    })
}

fn load(path: &Path) -> Result<Tool> {
    // SAFETY: whoever sets the variable asks for the library's initializers to run.
    let library = unsafe { Library::new(path) }?;
    // SAFETY: the name belongs to a function of this type by NVTX's protocol.
    let initialize = unsafe { library.get::<Initialize>(INITIALIZE) };
    let Ok(initialize) = initialize.map(|function| *function) else {
        bail!("it has no {}", INITIALIZE.to_string_lossy())
    };
    // SAFETY: the tables that `export_table` returns are static.
    let status = unsafe { initialize(export_table) };
    ensure!(status != 0, "it refused to start");
    // The tool's functions are called until the process ends.
    forget(library);
    let function = |number: usize| {
        let function = SLOTS[CORE][number].load(Ordering::Acquire);
        (!function.is_null()).then_some(function)
    };
    // SAFETY: the tool has put functions of these types, by NVTX's protocol, into these slots.
    let tool = unsafe {
        Tool {
            library: path.to_owned(),
            push: function(RANGE_PUSH).map(|f| std::mem::transmute::<*mut c_void, Push>(f)),
            pop: function(RANGE_POP).map(|f| std::mem::transmute::<*mut c_void, Pop>(f)),
            name_thread: function(NAME_OS_THREAD).map(|f| std::mem::transmute::<*mut c_void, NameThread>(f)),
        }
    };
    Ok(tool)
}

impl Tool {
    /// The path of its library.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Begins a range of this thread, within those that have begun and not ended.
    pub fn push(&self, name: &str) {
        if let Some(push) = self.push {
            let name = CString::new(name).unwrap_or_default();
            // SAFETY: the name ends with a NUL, and the tool copies it before it returns.
            unsafe { push(name.as_ptr()) };
        }
    }

    /// Ends the range of this thread that began last.
    pub fn pop(&self) {
        if let Some(pop) = self.pop {
            // SAFETY: it takes no arguments.
            unsafe { pop() };
        }
    }

    /// Names this thread in the tool's timeline.
    #[cfg(target_os = "linux")]
    pub fn name_thread(&self, name: &str) {
        if let Some(name_thread) = self.name_thread {
            let name = CString::new(name).unwrap_or_default();
            // SAFETY: `gettid` cannot fail; the tool copies the name before it returns.
            unsafe { name_thread(libc::gettid() as u32, name.as_ptr()) };
        }
    }

    /// Threads have no numbers that tools know here.
    #[cfg(not(target_os = "linux"))]
    pub fn name_thread(&self, _name: &str) {
        let _ = self.name_thread;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_laid_out_as_tools_read_them() {
        let mut table = null();
        let mut size = 0;
        for (module, len) in MODULES.into_iter().enumerate() {
            // SAFETY: both point to variables.
            let found = unsafe { get_module_function_table(module as c_uint, &mut table, &mut size) };
            assert_eq!(found, c_int::from(len > 0), "{module}");
            if len == 0 {
                continue;
            }
            assert_eq!(size as usize, len);
            // SAFETY: a table has `len` entries and one more.
            let entries = unsafe { std::slice::from_raw_parts(table, len + 1) };
            assert!(entries[0] == 0 && entries[len] == 0);
            let slots = (1..len).map(|number| ptr::from_ref(&SLOTS[module][number]).addr());
            assert!(entries[1..len].iter().copied().eq(slots), "{module}");
        }
        // SAFETY: nothing is written.
        assert_eq!(unsafe { get_module_function_table(7, null_mut(), null_mut()) }, 0);
    }

    #[test]
    fn only_known_tables_are_handed_out() {
        let known = [0, 1, 2, 3, 4].map(|id| !export_table(id).is_null());
        assert_eq!(known, [false, true, false, true, false]);
    }
}
