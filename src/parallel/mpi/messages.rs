//! The messages of an exchange. Everything here calls MPI, so callers hold its state.

use anyhow::{Result, bail};
use mpi::ffi;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Tags of the two message kinds.
const LENGTH: c_int = 1;
const BYTES: c_int = 2;

/// Messages in flight.
pub struct Messages {
    communicator: ffi::MPI_Comm,
    in_flight: Vec<Message>,
}

struct Message {
    rank: usize,
    request: ffi::MPI_Request,
    kind: Kind,
}

enum Kind {
    Sent,
    /// Owns the bytes that are sent.
    SentLength {
        _length: Vec<u8>,
    },
    Received,
    ReceivedLength {
        length: Vec<u8>,
    },
}

/// A message that was sent or received.
pub struct Done {
    pub rank: usize,
    /// The number of bytes that the rank will send, if the message was its length.
    pub length: Option<usize>,
}

impl Messages {
    pub fn new(communicator: ffi::MPI_Comm) -> Self {
        Messages { communicator, in_flight: Vec::new() }
    }

    pub fn send_length(&mut self, rank: usize, length: usize) -> Result<()> {
        let length = (length as u64).to_le_bytes().to_vec();
        // SAFETY: the message owns the bytes until it is done.
        let request = unsafe { self.begin_send(rank, LENGTH, &length) }?;
        self.in_flight.push(Message { rank, request, kind: Kind::SentLength { _length: length } });
        Ok(())
    }

    pub fn receive_length(&mut self, rank: usize) -> Result<()> {
        let mut length = vec![0; size_of::<u64>()];
        // SAFETY: the message owns the bytes until it is done.
        let request = unsafe { self.begin_receive(rank, LENGTH, &mut length) }?;
        self.in_flight.push(Message { rank, request, kind: Kind::ReceivedLength { length } });
        Ok(())
    }

    /// # Safety
    /// The bytes are not changed until the message is done or withdrawn.
    pub unsafe fn send(&mut self, rank: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller guarantees that the bytes stay valid and unchanged.
        let request = unsafe { self.begin_send(rank, BYTES, bytes) }?;
        self.in_flight.push(Message { rank, request, kind: Kind::Sent });
        Ok(())
    }

    /// # Safety
    /// The bytes are not accessed until the message is done or withdrawn.
    pub unsafe fn receive(&mut self, rank: usize, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the caller guarantees exclusive access to the bytes.
        let request = unsafe { self.begin_receive(rank, BYTES, bytes) }?;
        self.in_flight.push(Message { rank, request, kind: Kind::Received });
        Ok(())
    }

    /// # Safety
    /// As [`Self::send`].
    unsafe fn begin_send(&self, rank: usize, tag: c_int, bytes: &[u8]) -> Result<ffi::MPI_Request> {
        let (count, to) = (c_int::try_from(bytes.len())?, c_int::try_from(rank)?);
        // SAFETY: the caller guarantees valid bytes, and `rank` is a rank of the communicator.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let bytes = bytes.as_ptr().cast::<c_void>();
            let kind = ffi::RSMPI_UINT8_T;
            check(ffi::MPI_Isend(bytes, count, kind, to, tag, self.communicator, &mut request))
                .map_err(about(rank))?;
            Ok(request)
        }
    }

    /// # Safety
    /// As [`Self::receive`].
    unsafe fn begin_receive(&self, rank: usize, tag: c_int, bytes: &mut [u8]) -> Result<ffi::MPI_Request> {
        let (count, from) = (c_int::try_from(bytes.len())?, c_int::try_from(rank)?);
        // SAFETY: the caller guarantees valid bytes, and `rank` is a rank of the communicator.
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
        self.in_flight.is_empty()
    }

    /// Returns a rank whose message has not arrived, or else one that has not received ours.
    pub fn first_awaited(&self) -> Option<usize> {
        let is_incoming =
            |message: &&Message| matches!(message.kind, Kind::Received | Kind::ReceivedLength { .. });
        self.in_flight.iter().find(is_incoming).or(self.in_flight.first()).map(|message| message.rank)
    }

    /// Removes and returns the messages that are done.
    pub fn take_done(&mut self) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        let mut i = 0;
        while i < self.in_flight.len() {
            let Message { rank, request, .. } = &mut self.in_flight[i];
            if !test(request).map_err(about(*rank))? {
                i += 1;
                continue;
            }
            let Message { rank, kind, .. } = self.in_flight.remove(i);
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

    /// Cancels receives. A message that has begun to arrive still does.
    pub fn cancel(&mut self) {
        for message in &mut self.in_flight {
            if matches!(message.kind, Kind::Received | Kind::ReceivedLength { .. }) {
                // SAFETY: the request is in flight. A failure to cancel it changes nothing.
                unsafe { ffi::MPI_Cancel(&mut message.request) };
            }
        }
    }

    /// Leaves the remaining requests to MPI, and leaks the lengths that they access.
    pub fn abandon(self) {
        std::mem::forget(self.in_flight);
    }
}

/// Whether the request is done. MPI then frees it.
fn test(request: &mut ffi::MPI_Request) -> Result<bool> {
    let mut done = 0;
    // SAFETY: the request is in flight.
    check(unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
    Ok(done != 0)
}

fn about(rank: usize) -> impl Fn(anyhow::Error) -> anyhow::Error {
    move |why| why.context(format!("rank {rank} cannot be reached by MPI"))
}

/// Turns a code other than MPI_SUCCESS into MPI's text for it.
pub fn check(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // Longer than the MPI_MAX_ERROR_STRING of any MPI.
    let mut text = [0u8; 4096];
    let mut length = 0;
    // SAFETY: the text has room for any error string, and the length is a valid int.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    let text = CStr::from_bytes_until_nul(&text).map_or("".into(), CStr::to_string_lossy);
    bail!("{text}")
}
