//! A server that speaks the hub's protocol, and misbehaves when told to: the interface for
//! programs, the files themselves, a second server to which large ones are redirected, and files of
//! GitHub.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_secret";

/// A way to misbehave.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status and header.
    Status(u16, &'static str),
    /// Closes the connection after so many bytes of the content.
    Cut(usize),
    /// Announces so many bytes more or fewer than there are.
    Announce(i64),
    /// Says nothing about the length, and sends so many bytes more than there are.
    Endless(usize),
    /// Sends all, whatever part was asked for.
    IgnoreRange,
    /// Sends another part than the one that was asked for.
    OtherPart,
    /// Changes one byte.
    Corrupt,
    /// Sends so many bytes, and then nothing for a long time.
    Stall(usize),
    /// Sends slowly, in pieces of so many bytes.
    Slow(usize),
}

struct Repo {
    files: BTreeMap<String, (Vec<u8>, bool)>,
    /// The header of a refusal to those without the token.
    gate: Option<(u16, &'static str)>,
}

#[derive(Default)]
struct State {
    repos: Mutex<BTreeMap<String, Repo>>,
    github: Mutex<BTreeMap<String, Vec<u8>>>,
    /// A part of the path, the fault, and how often it strikes.
    faults: Mutex<Vec<(String, Fault, usize)>>,
    requests: Mutex<Vec<String>>,
    ended: AtomicBool,
}

/// The server; it ends when dropped.
pub struct Server {
    hub: SocketAddr,
    content: SocketAddr,
    state: Arc<State>,
}

/// A request, as far as it matters.
struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    authorization: Option<String>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Server {
    pub fn start() -> Self {
        let state = Arc::new(State::default());
        let [hub, content] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [&hub, &content].map(|listener| listener.local_addr().unwrap());
        for (listener, is_hub) in [(hub, true), (content, false)] {
            let state = Arc::clone(&state);
            spawn(move || {
                for stream in listener.incoming().flatten() {
                    if state.ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let state = Arc::clone(&state);
                    spawn(move || serve(&state, stream, is_hub.then_some(addresses[1])));
                }
            });
        }
        Server { hub: addresses[0], content: addresses[1], state }
    }

    /// Adds a file to a repository, such as `datasets/a/b`. Those of more than 1,000 bytes are
    /// large.
    pub fn add(&self, repo: &str, name: &str, content: &[u8]) {
        let mut repos = self.state.repos.lock().unwrap();
        let repo = repos.entry(repo.into()).or_insert(Repo { files: BTreeMap::new(), gate: None });
        repo.files.insert(name.into(), (content.to_vec(), content.len() > 1000));
    }

    pub fn add_github(&self, path: &str, content: &[u8]) {
        self.state.github.lock().unwrap().insert(path.into(), content.to_vec());
    }

    /// Refuses a repository to those without the token.
    pub fn gate(&self, repo: &str, status: u16, code: &'static str) {
        self.state.repos.lock().unwrap().get_mut(repo).unwrap().gate = Some((status, code));
    }

    /// Misbehaves `times` times where the path contains `path`.
    pub fn fault(&self, path: &str, fault: Fault, times: usize) {
        self.state.faults.lock().unwrap().push((path.into(), fault, times));
    }

    pub fn heal(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// The requests so far that contain `text`, and forgets all: `GET /path`, `GET /path from 500`.
    pub fn requests(&self, text: &str) -> Vec<String> {
        let all = std::mem::take(&mut *self.state.requests.lock().unwrap());
        all.into_iter().filter(|request| request.contains(text)).collect()
    }

    /// Sets the environment of a program whose hub this is, and whose cache is in `dir`.
    pub fn env<'a>(&self, command: &'a mut Command, dir: &Path) -> &'a mut Command {
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", format!("http://{}", self.hub)).env("HF_HOME", dir.join("hf"));
        command.env("WARPSMITH_RAW_GITHUB", format!("http://{}/raw", self.hub));
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "2").env("NO_PROXY", "127.0.0.1")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        for address in [self.hub, self.content] {
            let _ = TcpStream::connect(address);
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { method, path, range: None, authorization: None };
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

/// Answers one request. `content` is the server of large files, for the hub.
fn serve(state: &State, stream: TcpStream, content: Option<SocketAddr>) -> Option<()> {
    let request = read_request(&stream)?;
    let from = request.range.map_or(String::new(), |from| format!(" from {from}"));
    let secret = if content.is_none() && request.authorization.is_some() { " WITH A TOKEN" } else { "" };
    let line = format!("{} {}{from}{secret}", request.method, request.path);
    state.requests.lock().unwrap().push(line);
    let fault = strike(state, &request);
    if let Some(Fault::Status(status, header)) = fault {
        let headers = header.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let answer = Answer { status, headers: headers.into_iter().collect(), body: b"no".to_vec() };
        return send(&stream, &request, answer, None);
    }
    let answer = match content {
        Some(content) => hub(state, &request, content),
        None => large(state, &request.path),
    };
    send(&stream, &request, answer, fault)
}

/// The fault that this request meets.
fn strike(state: &State, request: &Request) -> Option<Fault> {
    let mut faults = state.faults.lock().unwrap();
    let line = format!("{} {}", request.method, request.path);
    let (_, fault, times) =
        faults.iter_mut().find(|(path, _, times)| line.contains(path.as_str()) && *times > 0)?;
    *times -= 1;
    Some(fault.clone())
}

fn status(status: u16, headers: &[(&str, String)]) -> Answer {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Answer { status, headers, body: Vec::new() }
}

fn hub(state: &State, request: &Request, content: SocketAddr) -> Answer {
    let path = request.path.trim_start_matches('/');
    if let Some(path) = path.strip_prefix("raw/") {
        let found = state.github.lock().unwrap().get(path).cloned();
        return found.map_or(status(404, &[]), |body| Answer { status: 200, headers: Vec::new(), body });
    }
    let is_api = path.starts_with("api/");
    let path = path.strip_prefix("api/").unwrap_or(path);
    let path = path.strip_prefix("models/").unwrap_or(path);
    let repos = state.repos.lock().unwrap();
    let Some((id, repo)) = repos.iter().find(|(id, _)| path.starts_with(&format!("{id}/"))) else {
        return status(404, &[("X-Error-Code", "RepoNotFound".into())]);
    };
    if let Some((refusal, code)) = repo.gate
        && request.authorization.as_deref() != Some(&format!("Bearer {TOKEN}"))
    {
        return status(refusal, &[("X-Error-Code", code.into())]);
    }
    let rest = &path[id.len() + 1..];
    let Some((_, rest)) = rest.split_once('/') else { return status(404, &[]) };
    let revision = rest.split('/').next().unwrap();
    if !["main", COMMIT].contains(&revision) {
        return status(404, &[("X-Error-Code", "RevisionNotFound".into())]);
    }
    if is_api {
        let names: Vec<_> = repo.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"id": id, "sha": COMMIT, "siblings": names});
        return Answer { status: 200, headers: Vec::new(), body: info.to_string().into_bytes() };
    }
    let name = &rest[revision.len() + 1..].replace("%20", " ");
    let Some((body, is_large)) = repo.files.get(name) else {
        return status(404, &[("X-Error-Code", "EntryNotFound".into())]);
    };
    let commit = ("X-Repo-Commit", COMMIT.to_owned());
    if !is_large {
        let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", body.len()));
        hasher.update(body);
        let answer = status(200, &[commit, ("ETag", format!("\"{}\"", hex(&hasher.finalize())))]);
        return Answer { body: body.clone(), ..answer };
    }
    let digest = hex(&Sha256::digest(body));
    let location = format!("http://{content}/{id}/{name}?signature=x");
    status(
        302,
        &[
            commit,
            ("Location", location),
            ("X-Linked-Etag", format!("\"{digest}\"")),
            ("X-Linked-Size", body.len().to_string()),
        ],
    )
}

/// A large file, from the second server.
fn large(state: &State, path: &str) -> Answer {
    let path = path.trim_start_matches('/').split('?').next().unwrap();
    let repos = state.repos.lock().unwrap();
    let found = repos.iter().find_map(|(id, repo)| repo.files.get(path.strip_prefix(&format!("{id}/"))?));
    found.map_or(status(404, &[]), |(body, _)| Answer {
        status: 200,
        headers: vec![("ETag".into(), "\"of-the-store\"".into())],
        body: body.clone(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn send(mut stream: &TcpStream, request: &Request, answer: Answer, fault: Option<Fault>) -> Option<()> {
    let Answer { mut status, mut headers, mut body } = answer;
    let total = body.len();
    if let (Some(from), 200, false) = (request.range, status, matches!(fault, Some(Fault::IgnoreRange))) {
        let from = if matches!(fault, Some(Fault::OtherPart)) { from / 2 } else { from };
        if from >= total {
            (status, body) = (416, Vec::new());
        } else {
            status = 206;
            headers.push(("Content-Range".into(), format!("bytes {from}-{}/{total}", total - 1)));
            body.drain(..from);
        }
    }
    if matches!(fault, Some(Fault::Corrupt)) {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    if let Some(Fault::Endless(more)) = fault {
        body.extend(vec![b'x'; more]);
    } else {
        let more = if let Some(Fault::Announce(more)) = fault { more } else { 0 };
        headers.push(("Content-Length".into(), (body.len() as i64 + more).to_string()));
    }
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    if request.method == "HEAD" {
        return Some(());
    }
    match fault {
        Some(Fault::Cut(after)) => stream.write_all(&body[..after.min(body.len())]).ok(),
        Some(Fault::Stall(after)) => {
            stream.write_all(&body[..after.min(body.len())]).ok()?;
            sleep(Duration::from_secs(20));
            Some(())
        }
        Some(Fault::Slow(piece)) => body.chunks(piece).try_for_each(|piece| {
            sleep(Duration::from_millis(10));
            stream.write_all(piece).ok()
        }),
        _ => stream.write_all(&body).ok(),
    }
}
