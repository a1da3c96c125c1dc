use super::*;
use std::sync::mpsc::channel;
use std::thread::scope;

const LONG: Duration = Duration::from_secs(20);
const PATIENCE: Patience = Patience { meet: LONG, silence: LONG, lost: LONG };
const SHORT: Patience =
    Patience { meet: Duration::from_millis(300), silence: Duration::from_millis(200), lost: LONG };

/// An address that nobody listens at yet.
fn free_address() -> Meeting {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Meeting::Address(format!("127.0.0.1:{port}"))
}

/// Lets ranks meet that are threads, and does something with each.
fn with_ranks<T: Send>(world_size: usize, at: &Meeting, body: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    with_patience(vec![PATIENCE; world_size], at, body)
}

/// The same; each rank has a patience of its own.
fn with_patience<T: Send>(patience: Vec<Patience>, at: &Meeting, body: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let (body, patience) = (&body, &patience);
    let (world_size, began) = (patience.len(), Instant::now());
    let results = scope(|scope| {
        let rank = |rank: usize| {
            scope.spawn(move || body(Mesh::meet(rank, world_size, "run", at, patience[rank]).unwrap()))
        };
        // The later ones first: they wait for rank 0.
        let ranks: Vec<_> = (0..world_size).rev().map(rank).collect();
        let mut results: Vec<T> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        results.reverse();
        results
    });
    assert!(began.elapsed() < LONG, "somebody waited for nothing");
    results
}

fn error(result: Result<Mesh>) -> String {
    let message = format!("{:#}", result.map(|mesh| mesh.describe()).unwrap_err());
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Rank r sends s bytes of value 10 r + s to rank s, many times over: more than the sockets hold.
fn exchange(mesh: &mut Mesh, scale: usize) {
    let (rank, world_size) = (mesh.rank(), mesh.world_size());
    let outgoing: Vec<Vec<u8>> =
        (0..world_size).map(|other| vec![(10 * rank + other) as u8; (other + 1) * scale]).collect();
    let mut incoming: Vec<Vec<u8>> = (0..world_size).map(|_| vec![0; (rank + 1) * scale]).collect();
    let sent: Vec<&[u8]> = outgoing.iter().map(Vec::as_slice).collect();
    let mut received: Vec<&mut [u8]> = incoming.iter_mut().map(Vec::as_mut_slice).collect();
    mesh.exchange(&sent, &mut received).unwrap();
    for (other, bytes) in incoming.iter().enumerate().filter(|(other, _)| *other != rank) {
        assert!(bytes.iter().all(|&byte| byte as usize == 10 * other + rank));
    }
}

#[test]
fn every_rank_reaches_every_other() {
    for world_size in [2, 3, 5] {
        with_ranks(world_size, &free_address(), |mut mesh| {
            for scale in [0, 1, 1000, 2_000_000] {
                exchange(&mut mesh, scale);
            }
        });
    }
}

#[test]
fn a_file_of_an_earlier_run_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rank-0");
    // Nobody is there any more; and somebody is, but of another run.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    for stale in ["127.0.0.1:1".to_owned(), "nonsense".to_owned(), taken.to_string()] {
        std::fs::write(&path, stale).unwrap();
        with_ranks(3, &Meeting::File(path.clone()), |mut mesh| exchange(&mut mesh, 10));
        assert!(!path.exists(), "a run that has met leaves nothing behind");
    }
}

#[test]
fn strangers_are_turned_away() {
    let at = free_address();
    let Meeting::Address(address) = &at else { unreachable!() };
    scope(|scope| {
        let rank_0 = scope.spawn(|| Mesh::meet(0, 2, "run", &at, PATIENCE));
        let mut stranger = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(_) => sleep(RETRY),
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(stranger);
        let message = error(Mesh::meet(1, 2, "another", &at, PATIENCE));
        assert!(message.contains("belongs to another run"), "{message}");
        Mesh::meet(1, 2, "run", &at, PATIENCE).unwrap();
        rank_0.join().unwrap().unwrap();
    });
}

#[test]
fn who_does_not_fit_is_named_on_both_sides() {
    let both = |rank, world_size| {
        let at = free_address();
        scope(|scope| {
            let rank_0 = scope.spawn(|| error(Mesh::meet(0, 3, "run", &at, PATIENCE)));
            let first = scope.spawn(|| Mesh::meet(1, 3, "run", &at, PATIENCE).map(drop));
            sleep(Duration::from_millis(200));
            let message = error(Mesh::meet(rank, world_size, "run", &at, PATIENCE));
            let _ = first.join().unwrap();
            (rank_0.join().unwrap(), message)
        })
    };
    let (host, guest) = both(1, 3);
    assert!(host.contains("rank 1 came twice") && guest.contains("rank 1 came twice"), "{host}; {guest}");
    let (host, guest) = both(2, 4);
    assert!(host.contains("rank 2 of 4 came to a run of 3"), "{host}");
    assert!(guest.contains("rank 2 of 4 came to a run of 3"), "{guest}");
}

#[test]
fn who_does_not_come_is_named() {
    let message = error(Mesh::meet(0, 3, "run", &free_address(), SHORT));
    assert!(message.contains("rank(s) 1, 2 did not come"), "{message}");
    let message = error(Mesh::meet(2, 3, "run", &free_address(), SHORT));
    assert!(message.contains("rank 0 was not there in time"), "{message}");
    let message = error(Mesh::meet(0, 2, "run", &Meeting::Address("nowhere".to_owned()), SHORT));
    assert!(message.contains("expected host:port, found nowhere"), "{message}");
}

#[test]
fn who_leaves_or_falls_silent_is_named() {
    let at = free_address();
    scope(|scope| {
        let (leave, left) = channel::<()>();
        let at = &at;
        scope.spawn(move || {
            let mesh = Mesh::meet(1, 2, "run", at, PATIENCE).unwrap();
            left.recv().unwrap();
            drop(mesh);
        });
        let patience = Patience { silence: SHORT.silence, ..PATIENCE };
        let mut mesh = Mesh::meet(0, 2, "run", at, patience).unwrap();
        let mut wait = || {
            let mut incoming = [[0; 4]; 2];
            let [ours, theirs] = &mut incoming;
            mesh.exchange(&[&[], &[]], &mut [ours, theirs]).unwrap_err().to_string()
        };
        assert!(wait().starts_with("rank 1 has not been heard of"));
        leave.send(()).unwrap();
        let message = wait();
        assert!(message.starts_with("rank 1 is gone"), "{message}");
    });
}

#[test]
fn ranks_out_of_step_are_named() {
    let errors = with_ranks(2, &free_address(), |mut mesh| {
        let rank = mesh.rank();
        let sent = vec![0; 3 + rank];
        let mut received = [[0; 3]; 2];
        let [a, b] = &mut received;
        let result = mesh.exchange(&[&sent, &sent], &mut [a, b]);
        result.map_or_else(|e| e.to_string(), |()| String::new())
    });
    assert!(errors[0].starts_with("rank 1 sent 4 bytes where 3 were expected"), "{}", errors[0]);
    assert_eq!(errors[1], "");
}

/// Exchanges nothing but that it is there. Why it could not.
fn nod(mesh: &mut Mesh) -> String {
    let nothing: Vec<&[u8]> = vec![&[]; mesh.world_size()];
    let mut incoming: Vec<[u8; 0]> = vec![[]; mesh.world_size()];
    let mut incoming: Vec<&mut [u8]> = incoming.iter_mut().map(<[u8; 0]>::as_mut_slice).collect();
    mesh.exchange(&nothing, &mut incoming).map_or_else(|e| e.to_string(), |()| String::new())
}

#[test]
fn who_is_busy_gives_signs_of_life_and_who_gives_none_is_named() {
    let patience = Patience { lost: Duration::from_millis(600), ..PATIENCE };
    let busy = |mut mesh: Mesh| {
        sleep(if mesh.rank() == 1 { 3 * patience.lost } else { Duration::ZERO });
        nod(&mut mesh)
    };
    assert_eq!(with_patience(vec![patience; 2], &free_address(), busy), ["", ""]);
    // One who expects signs much later gives them as rarely.
    let said = with_patience(vec![patience, PATIENCE], &free_address(), busy);
    assert!(said[0].starts_with("rank 1 has given no sign of life for 0 s"), "{}", said[0]);
    // Signs of life are no messages, be they more frequent than that or not.
    for (silence, lost) in [(500, 300), (300, 400)] {
        let [silence, lost] = [silence, lost].map(Duration::from_millis);
        let said = with_patience(vec![Patience { silence, lost, ..PATIENCE }; 2], &free_address(), busy);
        assert!(said[0].starts_with("rank 1 has not been heard of"), "{}", said[0]);
    }
}

#[test]
fn what_was_sent_arrives_though_signs_of_life_are_unread() {
    let patience = Patience { lost: Duration::from_millis(60), ..PATIENCE };
    // It all fits into the buffers on the way.
    let message: Vec<u8> = (0..2_000_000).map(|i| (i % 251) as u8).collect();
    with_patience(vec![PATIENCE, patience], &free_address(), |mut mesh| {
        let rank = mesh.rank();
        let peer = mesh.peers().next().unwrap();
        if rank == 0 {
            return peer.send(message.clone());
        }
        sleep(Duration::from_millis(300));
        let mut received = vec![0; message.len()];
        peer.receive(&mut received).unwrap();
        assert!(received == message);
    });
}

#[test]
fn who_fails_waits_for_nobody_who_has_failed() {
    let began = with_ranks(3, &free_address(), |mut mesh| {
        let rank = mesh.rank();
        let (sent, mut received) = (vec![0; 30_000_000], vec![0; 30_000_000]);
        let began = Instant::now();
        if rank > 0 {
            // Both have more for each other than the buffers hold, and nobody takes it any more.
            let result = mesh.exchange(
                &[&[], &sent, &sent],
                &mut match rank {
                    1 => [&mut [], &mut [], &mut received],
                    _ => [&mut [], &mut received, &mut []],
                },
            );
            assert!(result.unwrap_err().to_string().starts_with("rank 0 is gone"));
        }
        drop(mesh);
        began.elapsed()
    });
    assert!(began.iter().all(|elapsed| *elapsed < PARTING), "{began:?}");
}
