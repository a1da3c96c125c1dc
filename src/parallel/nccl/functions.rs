//! NCCL's functions, as far as we call them. Numbers and signatures are those of nccl.h.

use super::find::{self, WANTED};
use crate::tensor::Dtype;
use anyhow::{Result, anyhow, bail};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};

/// `ncclResult_t`
type Status = c_int;

const SUCCESS: Status = 0;
const IN_PROGRESS: Status = 7;
/// `ncclSum`
const SUM: c_int = 0;

/// `ncclComm_t`: one rank's communicator. NCCL lets any thread ask about it, or abort it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Comm(*mut c_void);

// SAFETY: a handle, which does not belong to a thread.
unsafe impl Send for Comm {}

/// `ncclUniqueId`: what ranks need to find each other. Rank 0 makes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    pub const BYTES: usize = 128;
}

/// `cudaStream_t`, which is a `CUstream`.
pub type RawStream = *mut c_void;

/// Elements on the GPU, in the order NCCL's functions take them.
#[derive(Clone, Copy, Debug)]
pub struct Elements {
    pub send: *const c_void,
    pub receive: *mut c_void,
    pub count: usize,
    pub dtype: Dtype,
}

/// Declares the table and how it is looked up: a field for each function, by the name it has in the library.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) -> $result:ty;)*) => {
        struct Table {
            $($field: unsafe extern "C" fn($($arg),*) -> $result,)*
            /// Since 2.14.
            finalize: Option<unsafe extern "C" fn(Comm) -> Status>,
        }

        impl Table {
            fn of(library: &Library, name: &str) -> Result<Self> {
                Ok(Table {
                    // SAFETY: of the types that nccl.h declares.
                    $($field: *unsafe { library.get($symbol) }.map_err(|_| lacks(name, $symbol))?,)*
                    // SAFETY: as above.
                    finalize: unsafe { library.get("ncclCommFinalize") }.ok().map(|function| *function),
                })
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": fn(*mut c_int) -> Status;
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> Status;
    comm_init_rank = "ncclCommInitRank": fn(*mut Comm, c_int, UniqueId, c_int) -> Status;
    comm_destroy = "ncclCommDestroy": fn(Comm) -> Status;
    comm_abort = "ncclCommAbort": fn(Comm) -> Status;
    comm_get_async_error = "ncclCommGetAsyncError": fn(Comm, *mut Status) -> Status;
    all_reduce = "ncclAllReduce":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, RawStream) -> Status;
    reduce_scatter = "ncclReduceScatter":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, RawStream) -> Status;
    all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, Comm, RawStream) -> Status;
    reduce = "ncclReduce":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Comm, RawStream) -> Status;
    broadcast = "ncclBroadcast":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, RawStream) -> Status;
    group_start = "ncclGroupStart": fn() -> Status;
    group_end = "ncclGroupEnd": fn() -> Status;
    get_error_string = "ncclGetErrorString": fn(Status) -> *const c_char;
    get_last_error = "ncclGetLastError": fn(Comm) -> *const c_char;
}

/// All we call is there from this version on, and the next major one may take other arguments.
const OLDEST: i32 = 21_300;
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

/// 22707 is 2.27.7, and 2804, as versions before 2.9 counted, is 2.8.4.
pub fn show(version: i32) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", version / unit, version % unit / 100, version % 100)
}

/// `ncclDataType_t`
fn number_of(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::I32 => 2,
        Dtype::F16 => 6,
        Dtype::F32 => 7,
        Dtype::Bf16 => 9,
    }
}

/// The loaded library.
///
/// Of the unsafe functions each wants a communicator that is neither destroyed nor aborted, elements that are on its GPU until
/// the work queued for them is done, and a stream of that GPU.
pub struct Functions {
    table: Table,
    name: String,
    /// Never unloaded: NCCL has threads of its own.
    _library: std::mem::ManuallyDrop<Library>,
}

impl Functions {
    /// # Errors
    /// One line: no library, where it was looked for, what to do; or what it lacks, or its version if that is another than we know.
    pub fn load() -> Result<Self> {
        let (library, path) = find::load()?;
        let name = path.display().to_string();
        let version = version(&library, &name)?;
        if !(OLDEST..NEXT_MAJOR).contains(&version) {
            bail!("{name} is NCCL {}: {}", show(version), expected());
        }
        let table = Table::of(&library, &name)?;
        Ok(Functions { table, name, _library: std::mem::ManuallyDrop::new(library) })
    }

    /// The library's place.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `22707`.
    ///
    /// # Errors
    /// If NCCL fails.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: it writes a number.
        self.check("ncclGetVersion", unsafe { (self.table.get_version)(&mut version) })?;
        Ok(version)
    }

    /// # Errors
    /// If NCCL finds no network interface that it can use.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: it writes an id.
        self.check("ncclGetUniqueId", unsafe { (self.table.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// Waits until all ranks are there. The GPU is the one whose context is current.
    ///
    /// # Errors
    /// If NCCL fails.
    pub fn comm_init_rank(&self, world_size: usize, id: UniqueId, rank: usize) -> Result<Comm> {
        let mut comm = Comm(std::ptr::null_mut());
        // SAFETY: it writes a handle.
        let status =
            unsafe { (self.table.comm_init_rank)(&mut comm, world_size as c_int, id, rank as c_int) };
        self.check("ncclCommInitRank", status).map(|()| comm)
    }

    /// Ends a communicator when its work is done. All ranks do it together.
    ///
    /// # Errors
    /// If NCCL fails.
    ///
    /// # Safety
    /// See [`Functions`]; the communicator is gone afterwards.
    pub unsafe fn comm_destroy(&self, comm: Comm) -> Result<()> {
        // SAFETY: as promised.
        let finalized = self.table.finalize.map_or(SUCCESS, |finalize| unsafe { finalize(comm) });
        // SAFETY: as promised.
        let destroyed = unsafe { (self.table.comm_destroy)(comm) };
        self.check("ncclCommFinalize", finalized).and(self.check("ncclCommDestroy", destroyed))
    }

    /// Ends a communicator whatever it is at, and what it does on the GPU.
    ///
    /// # Errors
    /// If NCCL fails.
    ///
    /// # Safety
    /// See [`Functions`]; the communicator is gone afterwards. Another thread may be in a call that waits for other ranks.
    pub unsafe fn comm_abort(&self, comm: Comm) -> Result<()> {
        // SAFETY: as promised.
        self.check("ncclCommAbort", unsafe { (self.table.comm_abort)(comm) })
    }

    /// What went wrong since it was asked for.
    ///
    /// # Errors
    /// If something did.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn comm_async_error(&self, comm: Comm) -> Result<()> {
        let mut error = SUCCESS;
        // SAFETY: as promised, and it writes a number.
        let asked = unsafe { (self.table.comm_get_async_error)(comm, &mut error) };
        self.check("ncclCommGetAsyncError", asked)?;
        let error = if error == IN_PROGRESS { SUCCESS } else { error };
        self.check("a collective", error)
    }

    /// # Safety
    /// See [`Functions`].
    pub unsafe fn all_reduce(&self, elements: Elements, comm: Comm, stream: RawStream) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        // SAFETY: as promised.
        let status =
            unsafe { (self.table.all_reduce)(send, receive, count, number_of(dtype), SUM, comm, stream) };
        self.check("ncclAllReduce", status)
    }

    /// `count` is what each rank receives.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn reduce_scatter(&self, elements: Elements, comm: Comm, stream: RawStream) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        // SAFETY: as promised.
        let status =
            unsafe { (self.table.reduce_scatter)(send, receive, count, number_of(dtype), SUM, comm, stream) };
        self.check("ncclReduceScatter", status)
    }

    /// `count` is what each rank sends.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn all_gather(&self, elements: Elements, comm: Comm, stream: RawStream) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        // SAFETY: as promised.
        let status = unsafe { (self.table.all_gather)(send, receive, count, number_of(dtype), comm, stream) };
        self.check("ncclAllGather", status)
    }

    /// The sum goes to `root`.
    ///
    /// # Safety
    /// See [`Functions`].
    pub unsafe fn reduce(
        &self,
        elements: Elements,
        root: usize,
        comm: Comm,
        stream: RawStream,
    ) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        let (dtype, root) = (number_of(dtype), root as c_int);
        // SAFETY: as promised.
        let status = unsafe { (self.table.reduce)(send, receive, count, dtype, SUM, root, comm, stream) };
        self.check("ncclReduce", status)
    }

    /// # Safety
    /// See [`Functions`].
    pub unsafe fn broadcast(
        &self,
        elements: Elements,
        root: usize,
        comm: Comm,
        stream: RawStream,
    ) -> Result<()> {
        let Elements { send, receive, count, dtype } = elements;
        let (dtype, root) = (number_of(dtype), root as c_int);
        // SAFETY: as promised.
        let status = unsafe { (self.table.broadcast)(send, receive, count, dtype, root, comm, stream) };
        self.check("ncclBroadcast", status)
    }

    /// Makes one of all that `body` calls in this thread.
    ///
    /// # Errors
    /// The first of `body` or NCCL.
    pub fn group(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: no preconditions.
        self.check("ncclGroupStart", unsafe { (self.table.group_start)() })?;
        let result = body();
        // SAFETY: as above; what was begun is ended whatever happened within.
        let ended = unsafe { (self.table.group_end)() };
        result.and_then(|()| self.check("ncclGroupEnd", ended))
    }

    fn check(&self, what: &str, status: Status) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: both return texts that stay; the second knows of no communicator in particular.
        let (short, last) = unsafe {
            let none = Comm(std::ptr::null_mut());
            (text((self.table.get_error_string)(status)), text((self.table.get_last_error)(none)))
        };
        let last = if last.is_empty() { "NCCL_DEBUG=WARN says more".to_owned() } else { last };
        Err(anyhow!("NCCL, {what}: {short} ({last})"))
    }
}

/// Asked before anything else is, as a library of another version may lack it.
fn version(library: &Library, name: &str) -> Result<i32> {
    const SYMBOL: &str = "ncclGetVersion";
    // SAFETY: of the type that nccl.h declares.
    let get = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> Status>(SYMBOL) };
    let mut version = 0;
    // SAFETY: it writes a number.
    match unsafe { get.map_err(|_| lacks(name, SYMBOL))?(&mut version) } {
        SUCCESS => Ok(version),
        status => bail!("NCCL at {name}, {SYMBOL}: error {status}"),
    }
}

/// In one line.
///
/// # Safety
/// A C string, or null.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as promised.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
