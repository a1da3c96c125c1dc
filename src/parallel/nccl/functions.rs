//! The functions of NCCL that this program calls.
//!
//! Types are those of cudarc's `nccl::sys`; its functions are not used, because they panic when the
//! library or a symbol is missing, and because they open the library by names such as `libnccl.so`
//! while NVIDIA's packages contain `libnccl.so.2` alone, which they do not find even after it was
//! loaded, as the loader compares names. Results are plain numbers here: a newer NCCL may return
//! one that cudarc's enum lacks.

use super::find::{self, WANTED};
use crate::libraries::Missing;
use crate::tensor::Dtype;
use anyhow::{Result, anyhow, bail};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `ncclResult_t`
type Status = c_uint;

const SUCCESS: Status = ncclResult_t::ncclSuccess as Status;
const IN_PROGRESS: Status = ncclResult_t::ncclInProgress as Status;
const SUM: ncclRedOp_t = ncclRedOp_t::ncclSum;

/// One rank's communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm(ncclComm_t);

// SAFETY: the handle does not belong to a thread. NCCL lets any thread query or abort it.
unsafe impl Send for Comm {}

/// A collective as NCCL counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    AllReduce,
    /// `count` is the number of elements that each rank receives.
    ReduceScatter,
    /// `count` is the number of elements that each rank sends.
    AllGather,
    Reduce {
        root: usize,
    },
    Broadcast {
        root: usize,
    },
}

/// Elements on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct Elements {
    pub send: *const c_void,
    pub receive: *mut c_void,
    pub count: usize,
    pub dtype: Dtype,
}

/// Declares the table of functions, with a field for each, and how it is filled by symbol.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) -> $result:ty;)*) => {
        struct Table {
            $($field: unsafe extern "C" fn($($arg),*) -> $result,)*
            /// Exists since 2.14.
            finalize: Option<unsafe extern "C" fn(ncclComm_t) -> Status>,
        }

        impl Table {
            fn new(library: &Library, name: &str) -> Result<Self> {
                Ok(Table {
                    // SAFETY: the types are those that nccl.h declares.
                    $($field: *unsafe { library.get($symbol) }.map_err(|_| lacks(name, $symbol))?,)*
                    // SAFETY: the type is the one that nccl.h declares.
                    finalize: unsafe { library.get("ncclCommFinalize") }.ok().map(|function| *function),
                })
            }
        }
    };
}

functions! {
    get_unique_id = "ncclGetUniqueId": fn(*mut ncclUniqueId) -> Status;
    comm_init_rank = "ncclCommInitRank": fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Status;
    comm_destroy = "ncclCommDestroy": fn(ncclComm_t) -> Status;
    comm_abort = "ncclCommAbort": fn(ncclComm_t) -> Status;
    comm_get_async_error = "ncclCommGetAsyncError": fn(ncclComm_t, *mut Status) -> Status;
    all_reduce = "ncclAllReduce":
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Status;
    reduce_scatter = "ncclReduceScatter":
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Status;
    all_gather = "ncclAllGather":
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> Status;
    reduce = "ncclReduce":
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, c_int, ncclComm_t, cudaStream_t) -> Status;
    broadcast = "ncclBroadcast":
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Status;
    group_start = "ncclGroupStart": fn() -> Status;
    group_end = "ncclGroupEnd": fn() -> Status;
    get_error_string = "ncclGetErrorString": fn(Status) -> *const c_char;
    get_last_error = "ncclGetLastError": fn(ncclComm_t) -> *const c_char;
}

/// The first version with all functions of the table.
const OLDEST: i32 = 21_300;
/// The next major version, whose functions may take other arguments.
const NEXT_MAJOR: i32 = 30_000;

fn lacks(library: &str, symbol: &str) -> anyhow::Error {
    anyhow!("{library} has no {symbol}: {}", expected())
}

fn expected() -> String {
    format!(
        "expected NCCL {} or newer, below {}; install it ({}), or name another in {}",
        show(OLDEST),
        show(NEXT_MAJOR),
        WANTED.install,
        WANTED.variable
    )
}

/// Formats a version number: 22707 is 2.27.7, and 2804, in the encoding before 2.9, is 2.8.4.
pub fn show(version: i32) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", version / unit, version % unit / 100, version % 100)
}

fn data_type(dtype: Dtype) -> ncclDataType_t {
    match dtype {
        Dtype::I32 => ncclDataType_t::ncclInt32,
        Dtype::F16 => ncclDataType_t::ncclFloat16,
        Dtype::F32 => ncclDataType_t::ncclFloat32,
        Dtype::Bf16 => ncclDataType_t::ncclBfloat16,
    }
}

/// The loaded library.
///
/// The unsafe functions require a communicator that was neither destroyed nor aborted, elements
/// that stay on its GPU until the work queued for them is done, and a stream of that GPU.
pub struct Functions {
    table: Table,
    version: i32,
    path: String,
    /// Never unloaded: NCCL runs threads of its own.
    _library: std::mem::ManuallyDrop<Library>,
}

impl Functions {
    /// Loads NCCL.
    ///
    /// # Errors
    /// One line: no library was found, where it was searched for and what to do; or what the
    /// library lacks; or its version, if that is not supported.
    pub fn load() -> Result<Self> {
        let (library, path) = find::load()?;
        let path = path.display().to_string();
        let version = version(&library, &path)?;
        if !(OLDEST..NEXT_MAJOR).contains(&version) {
            bail!("{path} is NCCL {}: {}", show(version), expected());
        }
        let table = Table::new(&library, &path)?;
        log::info!("NCCL {} from {path}", show(version));
        Ok(Functions { table, version, path, _library: std::mem::ManuallyDrop::new(library) })
    }

    /// Describes the library for an overview: `2.27.7 from /usr/lib/libnccl.so.2`, or why there is
    /// none.
    pub fn describe() -> String {
        match Functions::load() {
            Ok(nccl) => format!("{} from {}", show(nccl.version), nccl.path),
            Err(error) => match error.downcast_ref::<Missing>() {
                Some(missing) => missing.brief().to_owned(),
                None => format!("{error:#}"),
            },
        }
    }

    /// The library's path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The version in NCCL's encoding: 22707 is 2.27.7.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Creates the id by which ranks find each other.
    ///
    /// # Errors
    /// If NCCL finds no network interface that it can use.
    pub fn unique_id(&self) -> Result<ncclUniqueId> {
        let mut id = ncclUniqueId { internal: [0; _] };
        // SAFETY: the function writes an id to a place that holds one.
        self.check("ncclGetUniqueId", unsafe { (self.table.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// Creates a communicator on the GPU whose context is current. Blocks until all ranks call it.
    pub fn comm_init_rank(&self, world_size: usize, id: ncclUniqueId, rank: usize) -> Result<Comm> {
        let mut comm = std::ptr::null_mut();
        // SAFETY: the function writes a handle to a place that holds one.
        let status =
            unsafe { (self.table.comm_init_rank)(&mut comm, world_size as c_int, id, rank as c_int) };
        self.check("ncclCommInitRank", status).map(|()| Comm(comm))
    }

    /// Destroys a communicator after its work is done. All ranks call it together.
    ///
    /// # Safety
    /// See [`Functions`]. The communicator must not be used afterwards.
    pub unsafe fn comm_destroy(&self, comm: Comm) -> Result<()> {
        // SAFETY: the caller guarantees that the communicator is alive.
        let finalized = self.table.finalize.map_or(SUCCESS, |finalize| unsafe { finalize(comm.0) });
        // SAFETY: finalizing keeps the communicator alive.
        let destroyed = unsafe { (self.table.comm_destroy)(comm.0) };
        self.check("ncclCommFinalize", finalized).and(self.check("ncclCommDestroy", destroyed))
    }

    /// Aborts a communicator and its work on the GPU. Another thread may be inside a call that
    /// waits for other ranks; that call then returns.
    ///
    /// # Safety
    /// See [`Functions`]. The communicator must not be used afterwards.
    pub unsafe fn comm_abort(&self, comm: Comm) -> Result<()> {
        // SAFETY: the caller guarantees that the communicator is alive.
        self.check("ncclCommAbort", unsafe { (self.table.comm_abort)(comm.0) })
    }

    /// Returns the error of a collective that failed since the last query.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn comm_async_error(&self, comm: Comm) -> Result<()> {
        let mut error = SUCCESS;
        // SAFETY: the caller guarantees that the communicator is alive; the function writes a
        // number.
        let queried = unsafe { (self.table.comm_get_async_error)(comm.0, &mut error) };
        self.check("ncclCommGetAsyncError", queried)?;
        let error = if error == IN_PROGRESS { SUCCESS } else { error };
        self.check("a collective", error)
    }

    /// Queues a collective in a stream. Reductions are sums.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn enqueue(
        &self,
        call: Call,
        elements: Elements,
        comm: Comm,
        stream: cudaStream_t,
    ) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        let (table, comm, dtype) = (&self.table, comm.0, data_type(dtype));
        // SAFETY: the caller guarantees that communicator, elements and stream are alive and belong
        // together; the arguments are in the order of nccl.h.
        let (name, status) = unsafe {
            match call {
                Call::AllReduce => {
                    ("ncclAllReduce", (table.all_reduce)(send, receive, count, dtype, SUM, comm, stream))
                }
                Call::ReduceScatter => {
                    let status = (table.reduce_scatter)(send, receive, count, dtype, SUM, comm, stream);
                    ("ncclReduceScatter", status)
                }
                Call::AllGather => {
                    ("ncclAllGather", (table.all_gather)(send, receive, count, dtype, comm, stream))
                }
                Call::Reduce { root } => {
                    let root = root as c_int;
                    ("ncclReduce", (table.reduce)(send, receive, count, dtype, SUM, root, comm, stream))
                }
                Call::Broadcast { root } => {
                    let root = root as c_int;
                    ("ncclBroadcast", (table.broadcast)(send, receive, count, dtype, root, comm, stream))
                }
            }
        };
        self.check(name, status)
    }

    /// Groups all calls that `body` makes in this thread into one.
    ///
    /// # Errors
    /// The error of `body`, or else NCCL's.
    pub fn group(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: the function has no preconditions.
        self.check("ncclGroupStart", unsafe { (self.table.group_start)() })?;
        let result = body();
        // SAFETY: a group was started. It is ended even if `body` failed.
        let ended = unsafe { (self.table.group_end)() };
        result.and_then(|()| self.check("ncclGroupEnd", ended))
    }

    fn check(&self, what: &str, status: Status) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: both functions return strings that stay valid; the second accepts a null
        // communicator.
        let (short, last) = unsafe {
            let none = std::ptr::null_mut();
            (text((self.table.get_error_string)(status)), text((self.table.get_last_error)(none)))
        };
        let last = if last.is_empty() { "NCCL_DEBUG=WARN says more".to_owned() } else { last };
        Err(anyhow!("NCCL, {what}: {short} ({last})"))
    }
}

/// Returns the version, which is queried before other symbols are looked up, as another version may
/// lack them.
fn version(library: &Library, path: &str) -> Result<i32> {
    const SYMBOL: &str = "ncclGetVersion";
    // SAFETY: the type is the one that nccl.h declares.
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> Status>(SYMBOL) };
    let mut version = 0;
    // SAFETY: the function writes a number.
    match unsafe { get.map_err(|_| lacks(path, SYMBOL))?(&mut version) } {
        SUCCESS => Ok(version),
        status => bail!("NCCL at {path}, {SYMBOL}: error {status}"),
    }
}

/// Returns a C string as one line.
///
/// # Safety
/// `text` is null or points to a C string.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller guarantees a C string, and null was handled above.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
