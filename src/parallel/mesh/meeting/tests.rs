use super::super::acceptor::Acceptor;
use super::super::{TcpMesh, Timeouts};
use super::*;
use crate::parallel::secret::End;
use crate::parallel::transport::Transport;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Instant;

const LONG: Timeouts = timeouts(Duration::from_secs(20));
const SHORT: Timeouts = timeouts(Duration::from_millis(400));

const fn timeouts(connect: Duration) -> Timeouts {
    let long = Duration::from_secs(20);
    Timeouts { connect, message: long, heartbeat: long }
}

/// An address on which no process listens yet.
fn free_address() -> Rendezvous {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Rendezvous::Address(format!("127.0.0.1:{port}"))
}

fn secret() -> Secret {
    Secret::from_text("0123456789abcdef").unwrap()
}

fn meeting(rank: usize, world_size: usize, at: &Rendezvous) -> Meeting {
    let size_from = format!("-pn {world_size}");
    Meeting { rank, world_size, size_from, run: "run".to_owned(), secret: secret(), at: at.clone() }
}

fn connect(meeting: &Meeting, timeouts: Timeouts) -> Result<String, String> {
    let message = TcpMesh::connect(meeting, timeouts).map(|mesh| mesh.describe());
    let message = message.map_err(|why| format!("{why:#}"));
    assert!(message.as_ref().unwrap_or_else(|why| why).lines().count() == 1, "{message:?}");
    message
}

/// A connection to rank 0, which may not listen yet.
fn dial(at: &Rendezvous) -> TcpStream {
    let Rendezvous::Address(address) = at else { unreachable!() };
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(_) => sleep(super::super::RETRY),
        }
    }
}

fn hello(rank: usize, world_size: usize, to: usize) -> Hello {
    let run = "run".to_owned();
    Hello { warpsmith: PROTOCOL, run, world_size, rank, port: 9, to, nonce: nonce().unwrap() }
}

/// The next line of a host, or nothing if it has closed the connection.
fn answer(stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(LONG.connect)).unwrap();
    let line = Line::default().read(stream, LONGEST_HELLO);
    line.map_or(String::new(), |line| String::from_utf8(line.unwrap()).unwrap())
}

/// Connects all ranks while `others` does something else, and returns how long that took.
fn meet_beside(world_size: usize, at: &Rendezvous, others: impl FnOnce() + Send) -> Duration {
    let began = Instant::now();
    scope(|scope| {
        let start = |rank| scope.spawn(move || connect(&meeting(rank, world_size, at), LONG).unwrap());
        let first = start(0);
        scope.spawn(others).join().unwrap();
        let rest: Vec<_> = (1..world_size).map(start).collect();
        first.join().unwrap();
        rest.into_iter().for_each(|rank| drop(rank.join().unwrap()));
        began.elapsed()
    })
}

/// Connections of strangers, who stay.
fn strangers(address: &str) -> Vec<TcpStream> {
    let mut all: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (number, stream) in all.iter_mut().enumerate() {
        // The others are idle. Errors mean that the stranger was dropped.
        let _ = match number % 5 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            1 => stream.write_all(&[0; 5000]),
            2 => stream.write_all(b"{\"warpsmith\":9}\n"),
            _ => Ok(()),
        };
    }
    all
}

/// Sends a byte every millisecond until `done`.
fn drip(mut stream: TcpStream, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) && stream.write_all(b"x").is_ok() {
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn strangers_neither_take_a_place_nor_delay_a_start() {
    let at = free_address();
    let Rendezvous::Address(address) = &at else { unreachable!() };
    let done = AtomicBool::new(false);
    scope(|scope| {
        let mut stay = Vec::new();
        let elapsed = meet_beside(3, &at, || {
            let (dripping, done) = (dial(&at), &done);
            scope.spawn(move || drip(dripping, done));
            stay = strangers(address);
        });
        done.store(true, Ordering::Relaxed);
        assert!(elapsed < Duration::from_secs(3), "it took {elapsed:?}");
    });
}

#[test]
fn links_of_ranks_are_accepted_beside_strangers() {
    let listener = address::listen_beside(&free_address()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let began = Instant::now();
    let (_stay, mut streams) = (strangers(&address), [None, None, None]);
    scope(|scope| {
        let call = || {
            let stream = TcpStream::connect(&address).unwrap();
            Call::handshake(stream, &hello(2, 3, 1), &secret(), &mut || Ok(())).unwrap().stream
        };
        let caller = scope.spawn(call);
        let own = meeting(1, 3, &free_address());
        accept_links(listener, &own, &secret(), &mut Waiting::new(LONG.connect), &mut streams).unwrap();
        let mut caller = caller.join().unwrap();
        caller.write_all(b"after the handshake").unwrap();
        let mut read = [0; 19];
        streams[2].as_ref().unwrap().read_exact(&mut read).unwrap();
        assert_eq!(&read, b"after the handshake");
    });
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
}

#[test]
fn who_does_not_know_the_secret_takes_no_place() {
    let at = free_address();
    meet_beside(2, &at, || {
        for wrong in [Secret::NONE, Secret::draw().unwrap()] {
            // A program that ignores that rank 0 does not know its secret either.
            let stream = dial(&at);
            let said = send(&stream, &hello(1, 2, 0)).unwrap();
            let FromHost::Challenge { nonce, .. } = serde_json::from_str(&answer(&stream)).unwrap() else {
                panic!("no challenge");
            };
            send(&stream, &FromCaller::Proof(wrong.proof(End::Caller, &said, &nonce))).unwrap();
            assert!(answer(&stream).contains("rank 1 does not know the secret of this run"));
            assert_eq!(answer(&stream), "", "it is dropped");
        }
    });
}

#[test]
fn a_handshake_that_is_repeated_or_reflected_is_dropped() {
    let (at, listener) = (free_address(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let (own, secret) = (meeting(0, 2, &at), secret());
    let mut acceptor = Acceptor::new(listener, &own, &secret).unwrap();
    let mut verified = || (0..20).flat_map(|_| acceptor.accept_ready(TICK).unwrap()).count();
    let stream = TcpStream::connect(address).unwrap();
    let said = send(&stream, &hello(1, 2, 0)).unwrap();
    assert_eq!(verified(), 0);
    let FromHost::Challenge { nonce, proof } = serde_json::from_str(&answer(&stream)).unwrap() else {
        panic!("no challenge");
    };
    let right = secret.proof(End::Caller, &said, &nonce);
    for (what, proof, first) in
        [("reflected", proof, false), ("right", right, true), ("repeated", right, false)]
    {
        let fresh = TcpStream::connect(address).unwrap();
        let stream = if first { &stream } else { &fresh };
        if !first {
            (&fresh).write_all(&[&said[..], b"\n"].concat()).unwrap();
            assert_eq!(verified(), 0);
            answer(stream);
        }
        send(stream, &FromCaller::Proof(proof)).unwrap();
        assert_eq!(verified(), usize::from(first), "{what}");
    }
    assert!(acceptor.refused().contains("rank 1 does not know the secret"));
}

#[test]
fn a_rank_0_that_does_not_know_the_secret_gets_no_proof() {
    let at = free_address();
    scope(|scope| {
        let Rendezvous::Address(address) = &at else { unreachable!() };
        let listener = TcpListener::bind(address).unwrap();
        let caller = scope.spawn(|| connect(&meeting(1, 2, &at), SHORT).unwrap_err());
        let (stream, _) = listener.accept().unwrap();
        let said = answer(&stream);
        assert!(said.contains("\"rank\":1") && !said.contains(secret().reveal()), "{said}");
        let nonce = nonce().unwrap();
        let proof = Secret::NONE.proof(End::Host, said.as_bytes(), &nonce);
        send(&stream, &FromHost::Challenge { nonce, proof }).unwrap();
        assert_eq!(answer(&stream), "");
        let why = caller.join().unwrap();
        assert!(why.contains("rank 0 at 127.0.0.1:") && why.contains("did not accept this rank"), "{why}");
    });
}

#[test]
fn who_does_not_fit_is_refused_with_its_reason_and_the_run_goes_on() {
    let at = free_address();
    meet_beside(3, &at, || {
        let mut stays = Call::handshake(dial(&at), &hello(1, 3, 0), &secret(), &mut || Ok(())).unwrap();
        let why = connect(&meeting(1, 3, &at), LONG).unwrap_err();
        assert!(why.contains("two processes have rank 1: give each process a rank of its own"), "{why}");
        for (rank, world_size) in [(2, 4), (7, 8)] {
            let why = connect(&meeting(rank, world_size, &at), LONG).unwrap_err();
            let expected = format!("rank {rank} of {world_size} tried to join a run of 3 processes");
            assert!(why.ends_with(&expected), "{why}");
        }
        // Nobody has proven anything to this one.
        let another = Meeting { run: "another".to_owned(), ..meeting(1, 3, &at) };
        let why = connect(&another, SHORT).unwrap_err();
        assert!(why.contains("rank 0 here belongs to another run"), "{why}");
        // A rank that leaves may come back.
        assert!(stays.line.read(&stays.stream, LONGEST_HELLO).unwrap().is_none());
    });
}

#[test]
fn a_rank_has_met_when_it_has_answered() {
    let at = free_address();
    scope(|scope| {
        let rank_0 = scope.spawn(|| connect(&meeting(0, 3, &at), LONG).unwrap());
        let mut slow = Call::handshake(dial(&at), &hello(1, 3, 0), &secret(), &mut || Ok(())).unwrap();
        let rank_2 = scope.spawn(|| connect(&meeting(2, 3, &at), LONG).unwrap());
        let FromHost::Welcome { round: 1, places } = slow.receive(&mut || Ok(())).unwrap() else {
            panic!("no welcome");
        };
        assert_eq!(places[1], (None, 9));
        // It leaves without an answer, and another process takes its place.
        sleep(Duration::from_millis(100));
        assert!(!rank_0.is_finished() && !rank_2.is_finished());
        drop(slow);
        connect(&meeting(1, 3, &at), LONG).unwrap();
        rank_2.join().unwrap();
        rank_0.join().unwrap();
    });
}

#[test]
fn ranks_that_are_missing_are_named_and_so_is_who_was_refused() {
    let (at, short) = (free_address(), timeouts(Duration::from_secs(1)));
    scope(|scope| {
        let rank_0 = scope.spawn(move || connect(&meeting(0, 3, &free_address()), SHORT).unwrap_err());
        let why = rank_0.join().unwrap();
        assert!(why.ends_with(": ranks 1, 2 of 3 did not come within 0 s (-pn 3)"), "{why}");
        let rank_0 = scope.spawn(|| connect(&meeting(0, 3, &at), short).unwrap_err());
        let rank_1 = scope.spawn(|| connect(&meeting(1, 3, &at), LONG).unwrap_err());
        connect(&meeting(3, 8, &at), LONG).unwrap_err();
        let why = rank_0.join().unwrap();
        let refused = "; refused meanwhile: rank 3 of 8 tried to join a run of 3 processes";
        assert!(why.contains("rank 2 of 3 did not come") && why.ends_with(refused), "{why}");
        // The others end with it.
        let why = rank_1.join().unwrap();
        assert!(why.contains("rank 0 ended: rank 2 of 3 did not come"), "{why}");
    });
    let why = connect(&meeting(2, 3, &free_address()), SHORT).unwrap_err();
    assert!(why.contains("rank 0 at 127.0.0.1:") && why.contains("(-pn 3) did not accept"), "{why}");
    let nowhere = Rendezvous::Address("nowhere".to_owned());
    let why = connect(&meeting(0, 2, &nowhere), SHORT).unwrap_err();
    assert!(why.contains("expected host:port, found nowhere"), "{why}");
    assert_eq!(
        name_ranks(&(1..40).collect::<Vec<_>>(), 40),
        "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 31 more of 40"
    );
}

/// The same without a secret in the environment: rank 0 puts one into the file.
fn through(rank: usize, world_size: usize, path: &Path) -> Meeting {
    let at = Rendezvous::File(path.to_owned());
    Meeting { secret: Secret::NONE, ..meeting(rank, world_size, &at) }
}

#[test]
fn a_file_holds_a_secret_for_this_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank-0");
    scope(|scope| {
        let rank_0 = scope.spawn(|| connect(&through(0, 2, &path), LONG).unwrap());
        while !path.exists() {
            sleep(TICK);
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        let (address, secret) = text.trim().split_once('\n').unwrap();
        assert!(address.contains(':') && secret.len() == 32, "{text}");
        connect(&through(1, 2, &path), LONG).unwrap();
        rank_0.join().unwrap();
    });
    assert!(!path.exists(), "a connected run removes the file");
    // Somebody else's words are no secret, and a link leads nowhere.
    std::fs::write(&path, "127.0.0.1:1\n0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let why = connect(&through(1, 2, &path), SHORT).unwrap_err();
    assert!(why.contains("others can read it (mode 644)"), "{why}");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let why = connect(&through(1, 2, &link), SHORT).unwrap_err();
    assert!(why.contains("expected a file, found a link"), "{why}");
}

#[test]
fn a_file_of_an_earlier_run_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank-0");
    // The process is gone, or another one listens there.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("{}\n0123456789abcdef\n", other.local_addr().unwrap());
    for stale in ["127.0.0.1:1\n0123456789abcdef\n", "nonsense", &taken] {
        let mut file = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
        file.write_all(stale.as_bytes()).unwrap();
        file.persist(&path).unwrap();
        scope(|scope| {
            let start = |rank| {
                let path = &path;
                scope.spawn(move || connect(&through(rank, 3, path), LONG).unwrap())
            };
            let late = [1, 2].map(start);
            sleep(Duration::from_millis(100));
            start(0).join().unwrap();
            late.into_iter().for_each(|rank| drop(rank.join().unwrap()));
        });
        assert!(!path.exists(), "a connected run removes the file");
    }
}

#[test]
fn two_runs_that_meet_through_one_file_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank-0");
    scope(|scope| {
        let first = scope.spawn(|| connect(&through(0, 2, &path), LONG).unwrap_err());
        while !path.exists() {
            sleep(TICK);
        }
        let second = scope.spawn(|| connect(&through(0, 2, &path), LONG).unwrap());
        let why = first.join().unwrap();
        assert!(why.ends_with("give each run a directory of its own with -pf"), "{why}");
        connect(&through(1, 2, &path), LONG).unwrap();
        second.join().unwrap();
    });
}

#[test]
fn ranks_listen_only_where_others_call() {
    let Rendezvous::Address(address) = free_address() else { unreachable!() };
    let is_loopback =
        |listener: Result<TcpListener>| listener.unwrap().local_addr().unwrap().ip().is_loopback();
    let local = Rendezvous::Address(address.clone());
    assert!(is_loopback(address::listen(&local)) && is_loopback(address::listen_beside(&local)));
    let named = Rendezvous::Address(address.replace("127.0.0.1", "localhost"));
    assert!(is_loopback(address::listen(&named)) && is_loopback(address::listen_beside(&named)));
    for elsewhere in [Rendezvous::Address("node7:0".to_owned()), Rendezvous::File("rank-0".into())] {
        assert!(
            !is_loopback(address::listen(&elsewhere)) && !is_loopback(address::listen_beside(&elsewhere))
        );
    }
}
