//! Clients that leave, and servers that end.

use crate::common::signal;
use crate::server::{LONG, Server};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// A request of the long model whose text is on its way.
fn begin_long(server: &Server, tokens: usize) -> BufReader<TcpStream> {
    let body = json!({ "model": "m", "max_tokens": tokens, "stream": true, "temperature": 0,
        "logit_bias": { "502": -100 } });
    let body = body.to_string();
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    write!(stream, "POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    BufReader::new(stream)
}

/// Reads until so many events have come.
fn read_events(stream: &mut BufReader<TcpStream>, count: usize) {
    let lines = stream.lines().map(Result::unwrap);
    assert_eq!(lines.filter(|line| line.starts_with("data: ")).take(count).count(), count);
}

#[test]
fn a_client_that_leaves_frees_its_slot_and_a_full_queue_is_said() {
    let server = Server::start("-e long --slots 1 --queue 0");
    let mut stream = begin_long(&server, LONG - 1);
    read_events(&mut stream, 5);
    let start = Instant::now();
    read_events(&mut stream, 100);
    let whole = start.elapsed() / 100 * LONG as u32;
    let one = || server.ask("/v1/completions", json!({ "max_tokens": 1 }));
    let (status, full) = one();
    assert_eq!((status, &full["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    drop(stream);
    let left = Instant::now();
    while one().0 != 200 {
        assert!(
            left.elapsed() < whole / 4,
            "the slot is still taken after {:?} of {whole:?}",
            left.elapsed()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_lets_streams_end() {
    let server = Server::start("-e long --slots 1 --queue 4");
    let mut running = begin_long(&server, 600);
    read_events(&mut running, 5);
    let mut waiting = begin_long(&server, 10);
    thread::sleep(Duration::from_millis(50));
    signal(server.child.id(), "TERM");
    let (mut rest, mut refused) = (String::new(), String::new());
    running.read_to_string(&mut rest).unwrap();
    waiting.read_to_string(&mut refused).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert!(refused.contains("shutting down") && !refused.contains("[DONE]"), "{refused}");
    let url = server.url.clone();
    assert_eq!(server.wait().code(), Some(0));
    assert!(TcpStream::connect(url.strip_prefix("http://").unwrap()).is_err());

    let idle = Server::start("-e m");
    // It listens for signals when it answers.
    assert_eq!(idle.get("/health").0, 200);
    signal(idle.child.id(), "INT");
    assert_eq!(idle.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Server::start("-e long --slots 1");
    let mut stream = begin_long(&server, LONG - 1);
    read_events(&mut stream, 5);
    signal(server.child.id(), "INT");
    thread::sleep(Duration::from_millis(100));
    signal(server.child.id(), "INT");
    assert_eq!(server.wait().code(), Some(130));
}
