//! The messages of an exchange. Everything here calls MPI: its caller holds the state of MPI.

use anyhow::{Result, bail};
use mpi::ffi;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Tags of the two kinds of messages.
const LENGTH: c_int = 1;
const BYTES: c_int = 2;

/// What was begun and is not known to be done.
pub struct Messages {
    communicator: ffi::MPI_Comm,
    under_way: Vec<Message>,
}

struct Message {
    rank: usize,
    request: ffi::MPI_Request,
    kind: Kind,
}

enum Kind {
    Sent,
    /// Keeps the bytes that are sent.
    SentLength {
        _length: Vec<u8>,
    },
    Received,
    ReceivedLength {
        length: Vec<u8>,
    },
}

/// A message that has been sent, or has come.
pub struct Done {
    pub rank: usize,
    /// How many bytes that rank is going to send, if that is what it said.
    pub length: Option<usize>,
}

impl Messages {
    pub fn new(communicator: ffi::MPI_Comm) -> Self {
        Messages { communicator, under_way: Vec::new() }
    }

    pub fn send_length(&mut self, rank: usize, length: usize) -> Result<()> {
        let length = (length as u64).to_le_bytes().to_vec();
        // SAFETY: kept until it is done.
        let request = unsafe { self.begin_send(rank, LENGTH, &length) }?;
        self.under_way.push(Message { rank, request, kind: Kind::SentLength { _length: length } });
        Ok(())
    }

    pub fn receive_length(&mut self, rank: usize) -> Result<()> {
        let mut length = vec![0; size_of::<u64>()];
        // SAFETY: as above.
        let request = unsafe { self.begin_receive(rank, LENGTH, &mut length) }?;
        self.under_way.push(Message { rank, request, kind: Kind::ReceivedLength { length } });
        Ok(())
    }

    /// # Safety
    /// The bytes stay as they are until this is done or withdrawn.
    pub unsafe fn send(&mut self, rank: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: as promised.
        let request = unsafe { self.begin_send(rank, BYTES, bytes) }?;
        self.under_way.push(Message { rank, request, kind: Kind::Sent });
        Ok(())
    }

    /// # Safety
    /// Nobody touches the bytes until this is done or withdrawn.
    pub unsafe fn receive(&mut self, rank: usize, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as promised.
        let request = unsafe { self.begin_receive(rank, BYTES, bytes) }?;
        self.under_way.push(Message { rank, request, kind: Kind::Received });
        Ok(())
    }

    unsafe fn begin_send(&self, rank: usize, tag: c_int, bytes: &[u8]) -> Result<ffi::MPI_Request> {
        let (count, to) = (c_int::try_from(bytes.len())?, c_int::try_from(rank)?);
        // SAFETY: as the caller promises; the rank is one of the communicator's.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let bytes = bytes.as_ptr().cast::<c_void>();
            let kind = ffi::RSMPI_UINT8_T;
            check(ffi::MPI_Isend(bytes, count, kind, to, tag, self.communicator, &mut request))
                .map_err(about(rank))?;
            Ok(request)
        }
    }

    unsafe fn begin_receive(&self, rank: usize, tag: c_int, bytes: &mut [u8]) -> Result<ffi::MPI_Request> {
        let (count, from) = (c_int::try_from(bytes.len())?, c_int::try_from(rank)?);
        // SAFETY: as above.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let bytes = bytes.as_mut_ptr().cast::<c_void>();
            let kind = ffi::RSMPI_UINT8_T;
            check(ffi::MPI_Irecv(bytes, count, kind, from, tag, self.communicator, &mut request))
                .map_err(about(rank))?;
            Ok(request)
        }
    }

    pub fn are_done(&self) -> bool {
        self.under_way.is_empty()
    }

    /// A rank from which something is to come, or else one that does not take what it is sent.
    pub fn first_awaited(&self) -> Option<usize> {
        let comes = |message: &&Message| matches!(message.kind, Kind::Received | Kind::ReceivedLength { .. });
        self.under_way.iter().find(comes).or(self.under_way.first()).map(|message| message.rank)
    }

    /// Takes out what has been done since the last time.
    pub fn take_done(&mut self) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        let mut i = 0;
        while i < self.under_way.len() {
            let Message { rank, request, .. } = &mut self.under_way[i];
            if !test(request).map_err(about(*rank))? {
                i += 1;
                continue;
            }
            let Message { rank, kind, .. } = self.under_way.remove(i);
            let length = match kind {
                Kind::ReceivedLength { length } => {
                    let length = length.try_into().expect("eight bytes");
                    Some(usize::try_from(u64::from_le_bytes(length))?)
                }
                Kind::Sent | Kind::SentLength { .. } | Kind::Received => None,
            };
            done.push(Done { rank, length });
        }
        Ok(done)
    }

    /// Asks for nothing more to be received. What has begun to come still does.
    pub fn cancel(&mut self) {
        for message in &mut self.under_way {
            if matches!(message.kind, Kind::Received | Kind::ReceivedLength { .. }) {
                // SAFETY: a request that is not done; a failure changes nothing.
                unsafe { ffi::MPI_Cancel(&mut message.request) };
            }
        }
    }

    /// Leaves the rest to MPI, and its lengths where they are.
    pub fn abandon(self) {
        std::mem::forget(self.under_way);
    }
}

/// Whether it is done; then the request is none any more.
fn test(request: &mut ffi::MPI_Request) -> Result<bool> {
    let mut done = 0;
    // SAFETY: a request that is not done.
    check(unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
    Ok(done != 0)
}

fn about(rank: usize) -> impl Fn(anyhow::Error) -> anyhow::Error {
    move |why| why.context(format!("rank {rank} cannot be reached by MPI"))
}

/// # Errors
/// What MPI says of a code that is not MPI_SUCCESS.
pub fn check(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // Longer than MPI_MAX_ERROR_STRING of any MPI.
    let mut text = [0u8; 4096];
    let mut length = 0;
    // SAFETY: it has room.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    let text = CStr::from_bytes_until_nul(&text).map_or("".into(), CStr::to_string_lossy);
    bail!("{text}")
}
