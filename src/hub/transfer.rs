//! The transfer of one file: resumed, and checked before it gets its name.

use super::digest::Hasher;
use super::failure::{Failure, Kind};
use super::http::Http;
use super::listing::{Missing, Planned};
use super::store;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use ureq::http::{HeaderMap, StatusCode, header};

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// Those who wait for a transfer.
pub(super) struct Watch<'a> {
    /// Ends the transfer.
    pub stop: &'a AtomicBool,
    /// Called with the change in bytes that are here.
    pub moved: &'a dyn Fn(i64),
}

/// Fetches a file to its place. Other processes that want it wait.
pub(super) fn fetch(http: &Http, file: &Planned, watch: &Watch) -> Result<(), Failure> {
    let Some(missing) = &file.missing else { return Ok(()) };
    let expected = missing.left();
    let said = || {
        if !http.options.quiet {
            log::warn!("{}: another process is fetching it; waiting for that", file.name);
        }
    };
    let _lock = store::lock(&missing.lock, watch.stop, &said)?;
    if missing.blob.exists() {
        (watch.moved)(expected as i64);
    } else {
        // A process that had the lock may have fetched a part.
        (watch.moved)(expected as i64 - missing.left() as i64);
        let mut partial = Partial::open(missing)?;
        receive(http, missing, &mut partial, watch)?;
        partial.publish(missing)?;
    }
    if missing.blob != file.place {
        store::link(&missing.blob, &file.place)?;
    }
    Ok(())
}

/// A file that is not whole yet, with the digest of what is there.
struct Partial<'a> {
    missing: &'a Missing,
    file: File,
    hasher: Hasher,
    len: u64,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier transfer left.
    fn open(missing: &'a Missing) -> Result<Self> {
        let path = &missing.partial;
        let context = || format!("cannot write {}", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let hasher = missing.digest.hasher(missing.bytes);
        let mut partial = Partial { missing, file: file.with_context(context)?, hasher, len: 0 };
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = partial.file.read(&mut buffer).with_context(context)?;
            if read == 0 {
                break;
            }
            partial.hasher.update(&buffer[..read]);
            partial.len += read as u64;
        }
        if partial.len > missing.bytes {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Forgets what is there. Returns how much that was.
    fn restart(&mut self) -> Result<u64> {
        let context = || format!("cannot write {}", self.missing.partial.display());
        self.file.set_len(0).with_context(context)?;
        self.file.seek(SeekFrom::Start(0)).with_context(context)?;
        self.hasher = self.missing.digest.hasher(self.missing.bytes);
        Ok(std::mem::take(&mut self.len))
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.with_context(|| format!("cannot write {}", self.missing.partial.display()))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Compares the digest, which is then that of nothing.
    fn check(&mut self) -> Result<(), Failure> {
        let Missing { url, digest, .. } = self.missing;
        let hasher = std::mem::replace(&mut self.hasher, Hasher::None);
        match hasher.finish() {
            Some(found) if found != digest.name() => Err(Failure::passing(format!(
                "{url}: expected {} {}, found {found}: the data are damaged",
                digest.kind(),
                digest.name()
            ))),
            Some(_) => Ok(()),
            None => {
                log::warn!("{url}: the server gave no digest, so only the length is checked");
                Ok(())
            }
        }
    }

    /// Gives the file its name.
    fn publish(self, missing: &Missing) -> Result<()> {
        let context = || format!("cannot write {}", missing.blob.display());
        self.file.sync_all().with_context(context)?;
        fs::rename(&missing.partial, &missing.blob).with_context(context)?;
        crate::files::sync_directory(&missing.blob).with_context(context)
    }
}

/// Makes attempts until the file is whole and its digest right. Progress makes up for failures.
fn receive(http: &Http, missing: &Missing, partial: &mut Partial, watch: &Watch) -> Result<(), Failure> {
    let (mut tries, mut best) = (0, partial.len);
    loop {
        let outcome = attempt(http, missing, partial, watch).and_then(|()| partial.check());
        let Err(failure) = outcome else { return Ok(()) };
        if partial.len == missing.bytes || failure.status == Some(StatusCode::RANGE_NOT_SATISFIABLE.as_u16())
        {
            // All of it is here and wrong, or the server knows of no such part.
            (watch.moved)(-(partial.restart()? as i64));
        }
        if partial.len > best {
            (best, tries) = (partial.len, 0);
        }
        http.wait(failure, tries, watch.stop)?;
        tries += 1;
    }
}

/// Makes one request for what is left, or for all of it, and adds the answer to the file.
fn attempt(http: &Http, missing: &Missing, partial: &mut Partial, watch: &Watch) -> Result<(), Failure> {
    let (url, bytes) = (&missing.url, missing.bytes);
    if partial.len == bytes {
        return Ok(());
    }
    let response = http.get(url, partial.len).map_err(|mut failure| {
        if failure.status == Some(StatusCode::RANGE_NOT_SATISFIABLE.as_u16()) && partial.len > 0 {
            failure.kind = Kind::Passing;
        }
        failure
    })?;
    let begins = match response.status() {
        StatusCode::PARTIAL_CONTENT => range_start(response.headers(), bytes),
        _ => Some(0),
    };
    let is_whole = response.status() != StatusCode::PARTIAL_CONTENT;
    if begins != Some(partial.len) {
        // A server that does not know ranges sends all of it, which is as good. Another one sends
        // what was not asked for: then the next request is for all.
        (watch.moved)(-(partial.restart()? as i64));
        if begins != Some(0) {
            return Err(Failure::passing(format!(
                "{url}: the server sent another part of the file than asked for"
            )));
        }
    }
    let promised = response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if let Some(promised) = promised.filter(|promised: &u64| *promised != bytes - partial.len) {
        let what = if is_whole { "file" } else { "rest of the file" };
        let expected = bytes - partial.len;
        return Err(Failure::passing(format!(
            "{url}: expected {expected} bytes as the {what}, found {promised} announced"
        )));
    }
    copy(url, response.into_body().into_reader(), partial, watch)
}

/// Adds an answer to the file.
fn copy(url: &str, mut body: impl Read, partial: &mut Partial, watch: &Watch) -> Result<(), Failure> {
    let bytes = partial.missing.bytes;
    let mut buffer = vec![0; CHUNK];
    loop {
        if watch.stop.load(Ordering::Relaxed) {
            return Err(Failure::fixed(format!("{url}: interrupted")));
        }
        let read = body.read(&mut buffer);
        let read = read.map_err(|error| {
            Failure::passing(format!(
                "{url}: the connection broke after {} of {bytes} bytes: {error}",
                partial.len
            ))
        })?;
        if read == 0 {
            break;
        }
        if read as u64 > bytes - partial.len {
            (watch.moved)(-(partial.restart()? as i64));
            return Err(Failure::passing(format!("{url}: expected {bytes} bytes, found more")));
        }
        partial.add(&buffer[..read])?;
        (watch.moved)(read as i64);
    }
    match partial.len == bytes {
        true => Ok(()),
        false => Err(Failure::passing(format!("{url}: expected {bytes} bytes, found {}", partial.len))),
    }
}

/// The first byte of a part, if it is a part of a file of `bytes` bytes.
fn range_start(headers: &HeaderMap, bytes: u64) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes")?;
    let (range, total) = range.trim_start().split_once('/')?;
    let is_whole = total.trim() == "*" || total.trim().parse() == Ok(bytes);
    range.split_once('-')?.0.trim().parse().ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::HeaderValue;

    #[test]
    fn parts_begin_where_they_say() {
        let start = |text: &str| {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_RANGE, HeaderValue::from_str(text).unwrap())]);
            range_start(&headers, 100)
        };
        assert_eq!((start("bytes 5-99/100"), start("bytes 0-99/*")), (Some(5), Some(0)));
        for text in ["bytes 5-99/99", "5-99/100", "bytes */100", "bytes x-99/100", "items 5-99/100", ""] {
            assert_eq!(start(text), None, "{text}");
        }
        assert_eq!(range_start(&HeaderMap::new(), 100), None);
    }
}
