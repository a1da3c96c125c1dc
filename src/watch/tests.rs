use super::*;
use crate::report::jsonl::Jsonl;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

/// Directories `a` and `b`, each with a run of two lines.
fn runs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a"] {
        let run = dir.path().join(name);
        fs::create_dir(&run).unwrap();
        let mut log = Jsonl::create(&run).unwrap();
        log.val(0, 2.0).unwrap();
        log.sample(0, 0, "</script><b>").unwrap();
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    dir
}

/// The head and the lines of an answer.
fn log_from(watch: &Watch, query: &str) -> (Value, Vec<String>) {
    let answer = watch.answer(&format!("/api/log?run=0{query}"));
    assert_eq!(answer.status, StatusCode::OK);
    let text = String::from_utf8(answer.content).unwrap();
    let mut lines = text.lines().map(ToOwned::to_owned);
    (serde_json::from_str(&lines.next().unwrap()).unwrap(), lines.collect())
}

fn query_of(head: &Value) -> String {
    let text = |name: &str| head["place"][name].as_str().unwrap().to_owned();
    format!("&device={}&inode={}&position={}", text("device"), text("inode"), text("position"))
}

#[test]
fn runs_and_directories_of_runs_are_found() {
    let dir = runs();
    let path = |name: &str| dir.path().join(name);
    let names = |dirs: &[PathBuf]| -> Vec<String> {
        let overview = Watch::new(dirs).unwrap().overview().unwrap();
        overview["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| run["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&[dir.path().to_owned()]), ["a", "b"]);
    assert_eq!(names(&[path("b"), dir.path().to_owned()]), ["b", "a"], "each once");
    for (name, words) in [("empty", "expected a metrics.jsonl"), ("none", "expected the directory of a run")]
    {
        let error = Watch::new(&[path(name)]).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
}

#[test]
fn the_page_gets_each_line_once() {
    let dir = runs();
    let watch = Watch::new(&[dir.path().join("a")]).unwrap();
    let (head, lines) = log_from(&watch, "");
    assert_eq!((head["from_start"].as_bool(), lines.len()), (Some(true), 2));
    let (again, lines) = log_from(&watch, &query_of(&head));
    assert_eq!((again["from_start"].as_bool(), lines.len()), (Some(false), 0));
    let mut log = Jsonl::resume(&dir.path().join("a"), 9).unwrap();
    log.val(1, 3.0).unwrap();
    log.file.line("not JSON").unwrap();
    let (head, lines) = log_from(&watch, &query_of(&again));
    assert_eq!((head["from_start"].as_bool(), lines.len()), (Some(false), 2));
    Jsonl::resume(&dir.path().join("a"), 1).unwrap();
    let (head, lines) = log_from(&watch, &query_of(&head));
    assert_eq!((head["from_start"].as_bool(), lines.len()), (Some(true), 3), "cut back at a resume");
}

#[test]
fn other_requests_are_refused() {
    let dir = runs();
    let watch = Watch::new(&[dir.path().to_owned()]).unwrap();
    for (path, status) in [
        ("/x", "404"),
        ("/api/log?run=2", "500"),
        ("/api/log?run=-1", "500"),
        ("/api/log", "500"),
        ("/api/log?run=18446744073709551615", "500"),
        ("/../a/metrics.jsonl", "404"),
    ] {
        assert_eq!(watch.answer(path).status.as_str(), status, "{path}");
    }
    assert_eq!(watch.answer("/").status, StatusCode::OK);
}

#[test]
fn an_exported_page_holds_the_data_and_ends_its_script_once() {
    let dir = runs();
    File::options()
        .append(true)
        .open(dir.path().join("a/metrics.jsonl"))
        .unwrap()
        .write_all(b"torn")
        .unwrap();
    let page = Watch::new(&[dir.path().to_owned()]).unwrap().export().unwrap();
    let empty = super::page(&Value::Null);
    assert_eq!(page.matches("</script>").count(), empty.matches("</script>").count());
    let data = page.split("type=\"application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let logs = data["logs"].as_array().unwrap();
    assert_eq!(logs.len(), 2);
    assert!(
        logs[0].as_str().unwrap().contains("</script><b>") && !logs[0].as_str().unwrap().contains("torn")
    );
    assert_eq!(data["baselines"].as_array().unwrap().len(), 3);
}

/// Nothing is loaded from elsewhere, and the markers are gone.
#[test]
fn the_page_is_one_file() {
    let page = super::page(&Value::Null);
    for outside in ["http://", "https://", "src=", "@import", "url(", "/*CSS*/", "/*JS*/", "/*DATA*/"] {
        let found = page.lines().find(|line| line.contains(outside) && !line.contains("www.w3.org"));
        assert_eq!(found, None, "{outside}");
    }
}

/// The server's answer to a request as it is written.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    // The server may close the connection before all of it was sent.
    drop(stream.write_all(request.as_bytes()));
    if !request.contains("\r\n\r\n") {
        // Nothing more comes; after a whole request, that would mean that nobody waits.
        drop(stream.shutdown(std::net::Shutdown::Write));
    }
    let mut text = Vec::new();
    drop(stream.read_to_end(&mut text));
    String::from_utf8(text).unwrap()
}

#[test]
fn requests_are_answered_or_refused() {
    let dir = runs();
    let watch = Watch::new(&[dir.path().to_owned()]).unwrap();
    let server = Server::listen(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
    let address = server.url().unwrap().strip_prefix("http://").unwrap().to_owned();
    std::thread::spawn(move || serve(server, watch));
    let get = |path: &str, host: &str| {
        ask(&address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    let answer = get("/api/runs", "localhost:1");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"name\":\"a\""), "{answer}");
    assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
    assert!(get("/api/log?run=1", "localhost").contains("from_start"), "queries arrive");
    assert!(get("/", "evil.com").starts_with("HTTP/1.1 403 "));
    assert!(ask(&address, "GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 403 "), "no host");
    let post = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(ask(&address, post).starts_with("HTTP/1.1 405 "));
    for bad in ["", "GET", "GET / HTTP/1.1\r\nHost: localhost", "GET /\r\n\r\n", "\u{0}\r\n\r\n"] {
        let answer = ask(&address, bad);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{bad:?}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    assert!(!ask(&address, &long).starts_with("HTTP/1.1 200 "));
    assert!(get("/", "localhost").starts_with("HTTP/1.1 200 "), "it goes on");
}
