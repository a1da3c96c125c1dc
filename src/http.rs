//! HTTP for the programs that listen: the page of `warpsmith watch`, the API of `warpsmith serve`.
//!
//! axum, on one thread, because requests are few and what takes long runs elsewhere.

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{HeaderMap, header};
use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpListener};

/// A server that has its port, and does not answer yet.
pub struct Server(TcpListener);

impl Server {
    /// Listens on an address of this machine; port 0 stands for any free one.
    ///
    /// # Errors
    /// If the port is in use, or the address is not of this machine.
    pub fn listen(host: IpAddr, port: u16) -> Result<Self> {
        let listen = || {
            let listener = TcpListener::bind(SocketAddr::new(host, port))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        listen().map(Server).with_context(|| match host.is_loopback() {
            true => format!("--port {port}: cannot listen; choose another, or 0 for any"),
            false => format!("--host {host}, --port {port}: cannot listen; choose others"),
        })
    }

    /// The address that a client opens.
    ///
    /// # Errors
    /// If the system does not tell the port.
    pub fn url(&self) -> Result<String> {
        Ok(format!("http://{}", self.0.local_addr()?))
    }

    /// Answers requests until `stop` is ready. It then accepts no others, and returns when those in
    /// flight have their answer.
    ///
    /// # Errors
    /// If the system has no resources for a server.
    pub fn serve(self, routes: Router, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the server")?.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.0)?;
            axum::serve(listener, routes).with_graceful_shutdown(stop).await?;
            Ok(())
        })
    }
}

/// Whether a request names this machine as its host, at any port: it may be that of a tunnel. A
/// page of another site whose name resolves to this machine would send that name.
pub fn is_for_loopback(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next().map(|host| host.to_str()), hosts.next()) {
        (Some(Ok(host)), None) => is_loopback(host),
        _ => false,
    }
}

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
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    #[test]
    fn only_names_of_this_machine_are_loopback() {
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
        let mut headers = HeaderMap::new();
        assert!(!is_for_loopback(&headers));
        headers.append(header::HOST, "localhost".parse().unwrap());
        assert!(is_for_loopback(&headers));
        headers.append(header::HOST, "evil.com".parse().unwrap());
        assert!(!is_for_loopback(&headers), "two hosts");
    }

    #[test]
    fn a_server_that_stops_ends_what_is_in_flight() {
        let server = Server::listen(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        let address = server.url().unwrap().strip_prefix("http://").unwrap().to_owned();
        let error =
            Server::listen(Ipv4Addr::LOCALHOST.into(), address.rsplit_once(':').unwrap().1.parse().unwrap());
        assert!(error.err().unwrap().to_string().contains("choose another"));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (begun, begins) = std::sync::mpsc::channel();
        let slow = move || async move {
            begun.send(()).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            "late"
        };
        let routes = Router::new().fallback(slow);
        let serving = std::thread::spawn(|| server.serve(routes, async { drop(stopped.await) }));
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        begins.recv().unwrap();
        stop.send(()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nlate"), "{text}");
        serving.join().unwrap().unwrap();
        assert!(TcpStream::connect(&address).is_err());
    }
}
