//! A server of pages for this machine: GET over HTTP/1.1, one connection per request.
//!
//! The requests are those of a browser on the same machine, so a framework has little to add: axum
//! brings tokio and hyper, some forty crates.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

/// Longest request, with its headers.
const MOST_BYTES: u64 = 1 << 16;

/// Longest silence of a browser in the middle of a request.
const SILENCE: Duration = Duration::from_secs(10);

/// An answer: its status, the type of its content, and the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: &'static str,
    pub content_type: &'static str,
    pub content: Vec<u8>,
}

impl Answer {
    pub fn new(content_type: &'static str, content: impl Into<Vec<u8>>) -> Self {
        Answer { status: "200 OK", content_type, content: content.into() }
    }

    /// A line of text that says what is wrong.
    pub fn refusal(status: &'static str, text: &str) -> Self {
        Answer { status, content_type: "text/plain; charset=utf-8", content: format!("{text}\n").into() }
    }
}

/// A server that waits for requests.
pub struct Server(TcpListener);

impl Server {
    /// Listens on the loopback address; port 0 stands for any free one.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn listen(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        listener
            .map(Server)
            .with_context(|| format!("--port {port}: cannot listen; choose another, or 0 for any"))
    }

    /// The address that a browser opens.
    ///
    /// # Errors
    /// If the system does not tell the port.
    pub fn url(&self) -> Result<String> {
        Ok(format!("http://{}", self.0.local_addr()?))
    }

    /// Answers requests until the process ends. `answer` gets the path with its query.
    ///
    /// # Errors
    /// If the listener fails.
    pub fn serve(self, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Result<()> {
        let answer = Arc::new(answer);
        for stream in self.0.incoming() {
            // A connection that broke before it was accepted concerns only the browser.
            let Ok(stream) = stream else { continue };
            let answer = Arc::clone(&answer);
            let work = move || drop(handle(stream, answer.as_ref()));
            let thread = Builder::new().name("request".to_owned()).spawn(work);
            thread.context("cannot start a thread for a request")?;
        }
        Ok(())
    }
}

/// Answers the request on a connection, and closes it.
fn handle(mut stream: TcpStream, answer: &dyn Fn(&str) -> Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let answer = match read_request(&mut BufReader::new((&stream).take(MOST_BYTES))) {
        Some(Request { host, .. }) if !is_loopback(&host) => {
            Answer::refusal("403 Forbidden", "this page is for localhost alone")
        }
        Some(Request { method, path, .. }) if method == "GET" => answer(&path),
        Some(_) => Answer::refusal("405 Method Not Allowed", "expected GET"),
        None => Answer::refusal("400 Bad Request", "expected an HTTP request"),
    };
    // Nothing may be loaded from elsewhere, and no other site may show the page or read it.
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\
         X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n\
         Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
         connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n\r\n",
        answer.status,
        answer.content_type,
        answer.content.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&answer.content)
}

struct Request {
    method: String,
    path: String,
    host: String,
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|_| line.ends_with('\n'))?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let mut host = String::new();
    loop {
        let header = line()?;
        if header.is_empty() {
            return Some(Request { method, path, host });
        }
        let (name, value) = header.split_once(':')?;
        if name.eq_ignore_ascii_case("host") {
            host = value.trim().to_owned();
        }
    }
}

/// Whether a `Host` header names this machine, at any port: it may be that of a tunnel. A page of
/// another site whose name resolves to this machine would send that name.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_served() {
        for host in ["localhost", "localhost:6007", "127.0.0.1:1", "LOCALHOST:80", "[::1]:6007", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.com",
            "evil.com:6007",
            "localhost.evil.com",
            "127.0.0.1.evil.com:80",
            "[::2]:1",
            "localhost:a",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    fn ask(url: &str, request: &str) -> String {
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn requests_are_answered_or_refused() {
        let server = Server::listen(0).unwrap();
        let url = server.url().unwrap();
        std::thread::spawn(move || server.serve(|path| Answer::new("text/plain", path)));
        let get = |path: &str, host: &str| {
            ask(&url, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX: y\r\n\r\n"))
        };
        let answer = get("/a?b=c", "localhost:1");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/a?b=c"), "{answer}");
        assert!(answer.contains("Content-Security-Policy: default-src 'none'"), "{answer}");
        assert!(get("/a", "evil.com").starts_with("HTTP/1.1 403 "));
        assert!(ask(&url, "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 405 "));
        for bad in ["", "GET", "GET / HTTP/1.1\r\nHost: localhost", "GET /\r\n\r\n", "\u{0}\r\n\r\n"] {
            assert!(ask(&url, bad).starts_with("HTTP/1.1 400 "), "{bad:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 17));
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        // The server may have closed the connection before all of it was sent.
        let _ = stream.write_all(long.as_bytes());
        assert!(get("/b", "localhost").ends_with("/b"), "it goes on");
    }
}
