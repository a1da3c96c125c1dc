//! The endpoints, and who may use them.

use super::engine::Message;
use super::error::ApiError;
use super::reply::{Reply, frame};
use super::request::{Kind, Model, Request};
use super::sequence::{Event, Sequence};
use crate::http::is_for_loopback;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Result<T> = std::result::Result<T, ApiError>;

/// Longest body of a request. A prompt is at most a context.
const MOST_BYTES: usize = 8 << 20;

/// The state behind the endpoints.
pub struct Api {
    pub model: Arc<Model>,
    /// To the engine.
    pub messages: Sender<Message>,
    /// A permit per sequence that may run or wait.
    pub room: Arc<Semaphore>,
    /// The number of those.
    pub most_sequences: usize,
    /// The digest of the key that requests must have. Without one, they must come from this
    /// machine.
    pub key: Option<[u8; 32]>,
    /// The start of the server, in seconds since 1970.
    pub created: u64,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The digest of a key, which hides its length and characters from whoever times comparisons.
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

pub fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such endpoint"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this endpoint has another method")
        })
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .layer(from_fn_with_state(Arc::clone(&api), guard))
        // Whoever watches over the server has no key.
        .route("/health", get(async || reply(&json!({ "status": "ok" }))))
        .with_state(api)
}

/// Refuses requests without the key, or, if there is none, those that a page of another site sends.
async fn guard(State(api): State<Arc<Api>>, request: HttpRequest, next: Next) -> Response {
    match api.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl Api {
    fn admits(&self, headers: &HeaderMap) -> Result<()> {
        let Some(key) = &self.key else {
            let message = "without a key, this server is for localhost alone";
            return match is_for_loopback(headers) {
                true => Ok(()),
                false => Err(ApiError::new(StatusCode::FORBIDDEN, message)),
            };
        };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let found = bearer.and_then(|value| value.split_once(' '));
        let found = found
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| digest(key.trim()));
        // All bytes are compared, so that time tells nothing.
        let differ = |found: [u8; 32]| found.iter().zip(key).fold(0, |all, (a, b)| all | (a ^ b)) != 0;
        let message = match found {
            Some(found) if !differ(found) => return Ok(()),
            Some(_) => "the key is not that of this server",
            None => "expected the header Authorization: Bearer KEY",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
    }

    fn model_object(&self) -> Value {
        let Model { name, context, .. } = &*self.model;
        let (created, owner) = (self.created, "warpsmith");
        json!({ "id": name, "object": "model", "created": created, "owned_by": owner, "max_model_len": context })
    }

    /// Hands the continuations of a request to the engine; their events arrive at the receiver.
    fn submit(&self, request: &Request, permits: OwnedSemaphorePermit) -> Result<UnboundedReceiver<Event>> {
        let (events, receiver) = unbounded_channel();
        let mut permits = permits;
        for index in 0..request.choices() {
            let prompt = request.prompts[index / request.n].clone();
            let mut options = request.options.clone();
            options.sampling.seed = options.sampling.seed.wrapping_add(index as u64);
            let tokenizer = self.model.tokenizer.clone();
            let permit = permits.split(1).expect("there is a permit for each");
            let sequence = Sequence::new(index, prompt, options, tokenizer, events.clone(), permit);
            let sequence =
                sequence.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("{error:#}")))?;
            let message = Message::Continue(Box::new(sequence));
            self.messages.send(message).map_err(|_| ApiError::stopping())?;
        }
        Ok(receiver)
    }

    /// Room for the continuations of a request.
    fn permits(&self, request: &Request) -> Result<OwnedSemaphorePermit> {
        let (count, most) = (request.choices(), self.most_sequences);
        if count > most {
            let message = format!("prompts times n is {count}; the slots and the queue hold {most}");
            return Err(ApiError::param("n", message));
        }
        let room = Arc::clone(&self.room);
        room.try_acquire_many_owned(count as u32).map_err(|_| ApiError::full())
    }
}

/// A JSON answer.
fn reply(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn models(State(api): State<Arc<Api>>) -> Response {
    reply(&json!({ "object": "list", "data": [api.model_object()] }))
}

async fn model(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response> {
    api.model.check_name(&name)?;
    Ok(reply(&api.model_object()))
}

/// The body of a request.
type Read = std::result::Result<Bytes, BytesRejection>;

async fn completions(State(api): State<Arc<Api>>, headers: HeaderMap, body: Read) -> Result<Response> {
    answer(api, Kind::Text, &headers, body).await
}

async fn chat(State(api): State<Arc<Api>>, headers: HeaderMap, body: Read) -> Result<Response> {
    answer(api, Kind::Chat, &headers, body).await
}

async fn answer(api: Arc<Api>, kind: Kind, headers: &HeaderMap, body: Read) -> Result<Response> {
    let body = body.map_err(|rejection| {
        let message = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("the body has more than {MOST_BYTES} bytes"),
            _ => format!("the body cannot be read: {}", rejection.body_text()),
        };
        ApiError::new(rejection.status(), message)
    })?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.and_then(|value| value.split(';').next());
    // A browser asks before it sends JSON to another site, and is told no.
    if !is_json.is_some_and(|value| value.trim().eq_ignore_ascii_case("application/json")) {
        let message = "expected the header Content-Type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let model = Arc::clone(&api.model);
    let parsed = tokio::task::spawn_blocking(move || Request::parse(kind, &body, &model)).await;
    let request =
        parsed.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "a request failed"))??;
    let mut events = api.submit(&request, api.permits(&request)?)?;
    let prompt_tokens = request.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let (name, tokenizer) = (api.model.name.clone(), api.model.tokenizer.clone());
    let mut reply_to = Reply::new(kind, &random_id()?, now(), name, tokenizer);
    reply_to = reply_to.expect(request.choices(), prompt_tokens, request.include_usage);
    if request.stream {
        return Ok(streamed(reply_to, events));
    }
    while let Some(event) = events.recv().await {
        if let Some(whole) = reply_to.collect(event)? {
            return Ok(reply(&whole));
        }
    }
    Err(ApiError::stopping())
}

fn random_id() -> Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the system has no random numbers: {error}"))
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Server-sent events, as the continuations grow. When the client goes, the receiver goes too, and
/// the engine notices that.
fn streamed(reply: Reply, events: UnboundedReceiver<Event>) -> Response {
    let frames: VecDeque<String> = reply.begin().into();
    let start = (reply, events, frames, false);
    let frames = stream::unfold(start, |(mut reply, mut events, mut frames, mut ended)| async move {
        while frames.is_empty() && !ended {
            let (more, last) = match events.recv().await {
                Some(event) => reply.events(event),
                None => (vec![frame(&ApiError::stopping().body())], true),
            };
            frames.extend(more);
            ended = last;
        }
        let text = frames.pop_front()?;
        Some((Ok::<_, Infallible>(text), (reply, events, frames, ended)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(frames)).into_response()
}
