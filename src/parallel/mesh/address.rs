//! Addresses of ranks: where they listen, and how they find rank 0.

use super::Rendezvous;
use crate::files::lock::host_name;
use crate::files::{self, NewFile};
use crate::parallel::environment::MAX_PROCESSES;
use crate::parallel::secret::{Secret, VARIABLE};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts to listen as rank 0: at the address of the rendezvous, or else on any port.
pub fn listen(at: &Rendezvous) -> Result<TcpListener> {
    match at {
        Rendezvous::File(_) => bind(None, 0),
        Rendezvous::Address(address) => {
            let found = || format!("expected host:port, found {address}");
            let (host, port) = address.rsplit_once(':').with_context(found)?;
            bind(interface(host), port.parse().ok().with_context(found)?)
        }
    }
}

/// Starts to listen as another rank, on any port: on loopback if rank 0 does, else on all
/// interfaces.
pub fn listen_beside(at: &Rendezvous) -> Result<TcpListener> {
    let host = match at {
        Rendezvous::Address(address) => address.rsplit_once(':').map_or("", |(host, _)| host),
        Rendezvous::File(_) => "",
    };
    bind(interface(host).filter(IpAddr::is_loopback), 0)
}

/// The interface of a host that is given as a number, or as `localhost`. Other names are not looked
/// up: that of this machine often stands for loopback here and for something else elsewhere.
fn interface(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => host.trim_matches(['[', ']']).parse().ok(),
    }
}

/// Listens on one interface of this machine, or on all: on IPv6, which also accepts IPv4, or else
/// on IPv4 alone.
fn bind(interface: Option<IpAddr>, port: u16) -> Result<TcpListener> {
    let all = || {
        TcpListener::bind(("::", port)).or_else(|e| match e.kind() {
            ErrorKind::AddrInUse => Err(e),
            _ => TcpListener::bind(("0.0.0.0", port)),
        })
    };
    let listener = match interface.map(|ip| TcpListener::bind((ip, port))) {
        // The address may be translated on the way to this machine.
        Some(Err(e)) if e.kind() == ErrorKind::AddrNotAvailable => all(),
        Some(bound) => bound,
        None => all(),
    };
    let listener = listener.with_context(|| format!("cannot listen on port {port}: choose another"))?;
    // The standard library lets 128 connections wait, fewer than there may be ranks.
    rustix::net::listen(&listener, MAX_PROCESSES as i32)?;
    Ok(listener)
}

/// Dials the first reachable address of a name, which may have several.
pub fn dial(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Returns the address of rank 0, and the secret of the run: `given`, or else that of the file.
///
/// # Errors
/// If the file is missing, or not one that only this user can read.
pub fn find_rank0(at: &Rendezvous, given: &Secret) -> Result<(String, Secret)> {
    let path = match at {
        Rendezvous::Address(address) => return Ok((address.clone(), given.clone())),
        Rendezvous::File(path) => path,
    };
    let name = path.display();
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    ensure!(!is_link, "{name}: expected a file, found a link");
    let (file, metadata) = files::open(path)?;
    if given.is_none() {
        check_private(&metadata).with_context(|| name.to_string())?;
    }
    let mut text = String::new();
    file.take(LONGEST_FILE).read_to_string(&mut text)?;
    let mut lines = text.lines();
    let address = lines.next().unwrap_or_default().to_owned();
    if !given.is_none() {
        return Ok((address, given.clone()));
    }
    let secret = Secret::from_text(lines.next().unwrap_or_default())?;
    ensure!(!secret.is_none(), "{name}: holds no secret; set {VARIABLE} here as for rank 0");
    Ok((address, secret))
}

const LONGEST_FILE: u64 = 4096;

/// Refuses a secret that somebody else has written or can read.
fn check_private(metadata: &Metadata) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o777);
    ensure!(owner == own, "belongs to user {owner}, expected {own}, the user of this rank");
    ensure!(
        mode & 0o077 == 0,
        "others can read it (mode {mode:o}); if the disk knows no modes, set {VARIABLE} on all ranks"
    );
    Ok(())
}

/// The file in which rank 0 publishes its address, and a secret if it drew one. Dropped, it is
/// removed: the next run must not find the address of this one.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    /// [`files::identity`] of the file.
    identity: (u64, u64),
}

impl Published {
    /// Writes the file for this user alone, and replaces one that an earlier run has left.
    ///
    /// # Errors
    /// If the directory is missing or not writable.
    pub fn new(path: &Path, port: u16, secret: &Secret) -> Result<Self> {
        let mut host = host_name();
        if host.is_empty() {
            host = "localhost".to_owned();
        }
        let mut file = NewFile::create_private(path)?;
        writeln!(file, "{host}:{port}\n{}", secret.reveal())?;
        let identity = file.identity()?;
        file.complete()?.publish()?;
        Ok(Published { path: path.to_owned(), identity })
    }

    /// # Errors
    /// If another process has removed or replaced the file, so that ranks find the wrong rank 0.
    pub fn check(&self) -> Result<()> {
        if !self.is_ours() {
            bail!("another run meets through this file: give each run a directory of its own with -pf");
        }
        Ok(())
    }

    fn is_ours(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => files::identity(&found) == self.identity,
            // A disk that fails for a moment.
            Err(e) => e.kind() != ErrorKind::NotFound,
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
