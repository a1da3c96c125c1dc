//! `warpsmith serve`: a model behind OpenAI's API of completions.
//!
//! Two threads. One answers HTTP: it [reads](request) a request, hands its continuations to the
//! engine, and turns their events into a [reply]. The other is the [engine]: it owns the
//! device, and decodes the sequences of all requests together.

pub mod api;
pub mod engine;
mod error;
mod fields;
mod logprobs;
mod reply;
pub mod request;
mod sequence;

use crate::http::Server;
use crate::report::say;
use anyhow::{Context, Result};
use api::Api;
use engine::{Engine, Message};
use futures_util::future::{Either, select};
use request::Model;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

/// Time for clients to read the rest of their answers after the engine has ended.
const LINGER: Duration = Duration::from_secs(5);

/// Options of [`serve`].
pub struct Options {
    pub server: Server,
    pub model: Model,
    /// Sequences that may wait for a slot.
    pub queue: usize,
    /// The key that requests must have.
    pub key: Option<String>,
}

/// Serves requests until SIGINT or SIGTERM. Then sequences that run are finished, those that wait
/// get an error, and nothing new is accepted; a second signal ends the process at once.
///
/// # Errors
/// If the device or the server fails.
pub fn serve(options: Options, mut engine: Engine) -> Result<()> {
    let Options { server, model, queue, key } = options;
    let (messages, received) = channel();
    let most_sequences = engine.slots() + queue;
    let api = Arc::new(Api {
        model: Arc::new(model),
        messages: messages.clone(),
        room: Arc::new(Semaphore::new(most_sequences)),
        most_sequences,
        key: key.as_deref().map(api::digest),
        created: api::now(),
    });
    let stop = Arc::new(Notify::new());
    let (ended, ends) = channel();
    let front = Front { stop: Arc::clone(&stop), messages };
    let thread = std::thread::Builder::new().name("http".to_owned());
    thread
        .spawn(move || drop(ended.send(front.run(server, api))))
        .context("cannot start the thread of the server")?;
    let outcome = engine.run(&received);
    drop(received);
    stop.notify_one();
    // A client that does not read does not keep the server from ending.
    let served = ends.recv_timeout(LINGER).unwrap_or(Ok(()));
    outcome.and(served)
}

/// The thread of HTTP, and its ways to the engine and back.
struct Front {
    /// The engine has ended.
    stop: Arc<Notify>,
    messages: Sender<Message>,
}

impl Front {
    fn run(self, server: Server, api: Arc<Api>) -> Result<()> {
        let Front { stop, messages } = self;
        let ask = messages.clone();
        let outcome = server.serve(api::routes(api), async move {
            let Ok(mut signals) = Signals::listen() else { return stop.notified().await };
            let asked = matches!(select(pin!(signals.next()), pin!(stop.notified())).await, Either::Left(_));
            if asked {
                say("finishing what runs; another signal ends it at once");
                drop(ask.send(Message::Stop));
                tokio::spawn(async move {
                    std::process::exit(128 + signals.next().await);
                });
            }
        });
        // A server that could not start would leave the engine waiting.
        drop(messages.send(Message::Stop));
        outcome
    }
}

/// The signals that ask the server to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let [interrupt, terminate] = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        Ok(Signals { interrupt, terminate })
    }

    /// The number of the next one.
    async fn next(&mut self) -> i32 {
        match select(pin!(self.interrupt.recv()), pin!(self.terminate.recv())).await {
            Either::Left(_) => SignalKind::interrupt().as_raw_value(),
            Either::Right(_) => SignalKind::terminate().as_raw_value(),
        }
    }
}
