use super::*;
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::thread::scope;

const LONG: Duration = Duration::from_secs(20);
const TIMEOUTS: Timeouts = Timeouts { connect: LONG, message: LONG, heartbeat: LONG };
const SHORT: Timeouts =
    Timeouts { connect: Duration::from_millis(300), message: Duration::from_millis(200), heartbeat: LONG };

/// An address on which no process listens yet.
fn free_address() -> Rendezvous {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Rendezvous::Address(format!("127.0.0.1:{port}"))
}

/// One rank of a run.
fn meeting(rank: usize, world_size: usize, run: &str, at: &Rendezvous) -> Meeting {
    let (run, size_from, at) = (run.to_owned(), format!("-pn {world_size}"), at.clone());
    Meeting { rank, world_size, size_from, run, secret: Secret::NONE, at }
}

fn connect(
    rank: usize,
    world_size: usize,
    run: &str,
    at: &Rendezvous,
    timeouts: Timeouts,
) -> Result<TcpMesh> {
    TcpMesh::connect(&meeting(rank, world_size, run, at), timeouts)
}

/// Connects ranks that are threads, and runs `body` on each.
fn with_ranks<T: Send>(world_size: usize, at: &Rendezvous, body: impl Fn(TcpMesh) -> T + Sync) -> Vec<T> {
    with_timeouts(vec![TIMEOUTS; world_size], at, body)
}

/// The same, with timeouts per rank.
fn with_timeouts<T: Send>(
    timeouts: Vec<Timeouts>,
    at: &Rendezvous,
    body: impl Fn(TcpMesh) -> T + Sync,
) -> Vec<T> {
    let (body, timeouts) = (&body, &timeouts);
    let (world_size, began) = (timeouts.len(), Instant::now());
    let results = scope(|scope| {
        let rank = |rank: usize| {
            scope.spawn(move || body(connect(rank, world_size, "run", at, timeouts[rank]).unwrap()))
        };
        // In reverse order: higher ranks wait for rank 0.
        let ranks: Vec<_> = (0..world_size).rev().map(rank).collect();
        let mut results: Vec<T> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        results.reverse();
        results
    });
    assert!(began.elapsed() < LONG, "a rank waited in vain");
    results
}

/// Rank r sends `(s + 1) * scale` bytes of value 10 r + s to rank s: more than the sockets hold.
fn exchange(mesh: &mut TcpMesh, scale: usize) {
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
fn a_rank_that_leaves_or_is_silent_is_named() {
    let at = free_address();
    scope(|scope| {
        let (leave, left) = channel::<()>();
        let at = &at;
        scope.spawn(move || {
            let mesh = connect(1, 2, "run", at, TIMEOUTS).unwrap();
            left.recv().unwrap();
            drop(mesh);
        });
        let timeouts = Timeouts { message: SHORT.message, ..TIMEOUTS };
        let mut mesh = connect(0, 2, "run", at, timeouts).unwrap();
        let mut wait = || {
            let mut incoming = [[0; 4]; 2];
            let [ours, theirs] = &mut incoming;
            mesh.exchange(&[&[], &[]], &mut [ours, theirs]).unwrap_err().to_string()
        };
        assert!(wait().starts_with("rank 1 has sent no message for 0 s"));
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

/// Exchanges empty messages. Returns the error, or an empty string.
fn exchange_nothing(mesh: &mut TcpMesh) -> String {
    let nothing: Vec<&[u8]> = vec![&[]; mesh.world_size()];
    let mut incoming: Vec<[u8; 0]> = vec![[]; mesh.world_size()];
    let mut incoming: Vec<&mut [u8]> = incoming.iter_mut().map(<[u8; 0]>::as_mut_slice).collect();
    mesh.exchange(&nothing, &mut incoming).map_or_else(|e| e.to_string(), |()| String::new())
}

#[test]
fn a_busy_rank_sends_heartbeats_and_one_that_sends_none_is_named() {
    let timeouts = Timeouts { heartbeat: Duration::from_millis(600), ..TIMEOUTS };
    let busy = |mut mesh: TcpMesh| {
        sleep(if mesh.rank() == 1 { 3 * timeouts.heartbeat } else { Duration::ZERO });
        exchange_nothing(&mut mesh)
    };
    assert_eq!(with_timeouts(vec![timeouts; 2], &free_address(), busy), ["", ""]);
    // A rank with a longer timeout sends heartbeats less often.
    let said = with_timeouts(vec![timeouts, TIMEOUTS], &free_address(), busy);
    assert!(said[0].starts_with("rank 1 has sent no heartbeat for 0 s"), "{}", said[0]);
    // Heartbeats do not count as messages, whichever timeout is shorter.
    for (message, heartbeat) in [(500, 300), (300, 400)] {
        let [message, heartbeat] = [message, heartbeat].map(Duration::from_millis);
        let said = with_timeouts(vec![Timeouts { message, heartbeat, ..TIMEOUTS }; 2], &free_address(), busy);
        assert!(said[0].starts_with("rank 1 has sent no message for 0 s"), "{}", said[0]);
    }
}

#[test]
fn messages_arrive_although_heartbeats_are_unread() {
    let timeouts = Timeouts { heartbeat: Duration::from_millis(60), ..TIMEOUTS };
    // Fits into the buffers on the way.
    let message: Vec<u8> = (0..2_000_000).map(|i| (i % 251) as u8).collect();
    with_timeouts(vec![TIMEOUTS, timeouts], &free_address(), |mut mesh| {
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
fn failed_ranks_do_not_wait_for_each_other() {
    let began = with_ranks(3, &free_address(), |mut mesh| {
        let rank = mesh.rank();
        let (sent, mut received) = (vec![0; 30_000_000], vec![0; 30_000_000]);
        let began = Instant::now();
        if rank > 0 {
            // Both have more for each other than the buffers hold, and neither reads any more.
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
    assert!(began.iter().all(|elapsed| *elapsed < LINGER), "{began:?}");
}
