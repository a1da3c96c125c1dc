//! Requests, redirects and waits between attempts.

use super::Options;
use super::failure::{Failure, Kind};
use super::settings::Settings;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body, Timeout};

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 10;

/// Bytes that an answer in JSON may have: the names of a million files.
const MOST_JSON_BYTES: u64 = 1 << 28;

/// The longest wait that a server may ask for.
const MOST_WAIT: Duration = Duration::from_secs(300);

/// A wait that is worth a line.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// Connections to the hub, and to where it sends us.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    pub options: Options,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Head,
    Get,
}

impl Http {
    pub fn new(settings: &Settings, options: Options) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, because the token must not leave the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("warpsmith/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .build();
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        Http { agent: Agent::new_with_config(config), endpoint, token, options }
    }

    /// URL of a path of the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// Sends one request; `from` is the first byte of interest.
    fn send(&self, method: Method, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        let request = match &self.token {
            Some(token) if is_under(url, &self.endpoint) => {
                request.header(header::AUTHORIZATION, format!("Bearer {token}"))
            }
            _ => request,
        };
        let request = match from {
            0 => request,
            from => request.header(header::RANGE, format!("bytes={from}-")),
        };
        request.call().map_err(|error| broken(url, &error))
    }

    /// The headers of a file, and its URL. The answer of the hub itself counts, as it has the
    /// digest; a redirect within the hub is followed.
    ///
    /// # Errors
    /// Also a status other than that of a file or a redirect to it.
    pub fn head(&self, url: &str) -> Result<HeaderMap, Failure> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let response = self.send(Method::Head, &url, 0)?;
            let has_digest = response.headers().contains_key("x-linked-etag");
            if response.status() == StatusCode::OK || (response.status().is_redirection() && has_digest) {
                return Ok(response.into_parts().0.headers);
            }
            url = next(&url, response)?;
        }
        Err(Failure::fixed(format!("{url}: more than {MOST_REDIRECTS} redirects")))
    }

    /// The content of a file from byte `from` on, or all of it if the server does so.
    ///
    /// # Errors
    /// Also a status other than those two.
    pub fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let response = self.send(Method::Get, &url, from)?;
            if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                return Ok(response);
            }
            url = next(&url, response)?;
        }
        Err(Failure::fixed(format!("{url}: more than {MOST_REDIRECTS} redirects")))
    }

    /// An answer in JSON.
    ///
    /// # Errors
    /// Also an answer that is cut, too long, or not JSON.
    pub fn json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        let mut response = self.get(url, 0)?;
        let body = response.body_mut().with_config().limit(MOST_JSON_BYTES).read_to_vec();
        let body = body.map_err(|error| broken(url, &error))?;
        serde_json::from_slice(&body)
            .map_err(|_| Failure::passing(format!("{url}: expected JSON, found something else")))
    }

    /// Makes attempts until one succeeds or no further one is worth it.
    pub fn patiently<T>(
        &self,
        stop: &AtomicBool,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            let failure = match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            self.wait(failure, tries, stop)?;
            tries += 1;
        }
    }

    /// Waits before another attempt, after `tries` failed ones before this one.
    ///
    /// # Errors
    /// The failure, if another attempt is not worth it.
    pub fn wait(&self, failure: Failure, tries: u32, stop: &AtomicBool) -> Result<(), Failure> {
        if !failure.may_pass() || tries >= self.options.retries || stop.load(Ordering::Relaxed) {
            return Err(failure);
        }
        let wait = failure.wait.unwrap_or_else(|| Duration::from_millis(500 << tries.min(6)));
        if wait > MOST_WAIT {
            return Err(failure);
        }
        let text = format!("{failure}; trying again in {:.1} s", wait.as_secs_f32());
        match wait >= LONG_WAIT && !self.options.quiet {
            true => log::warn!("{text}"),
            false => log::info!("{text}"),
        }
        let start = Instant::now();
        while start.elapsed() < wait && !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20).min(wait));
        }
        Ok(())
    }
}

/// Whether a URL is on the server of `base`.
fn is_under(url: &str, base: &str) -> bool {
    url.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The URL that a redirect leads to.
///
/// # Errors
/// The refusal that any other status is.
fn next(url: &str, response: Response<Body>) -> Result<String, Failure> {
    if !response.status().is_redirection() {
        return Err(refusal(url, response));
    }
    let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let expected = || Failure::fixed(format!("{url}: a redirect without a usable location"));
    let target = target.ok_or_else(expected)?;
    if target.starts_with("https://") || target.starts_with("http://") {
        return Ok(target.to_owned());
    }
    let after = url.find("://").map_or(0, |at| at + 3);
    let host = url[after..].find('/').map_or(url.len(), |at| at + after);
    match target.starts_with('/') {
        true => Ok(format!("{}{target}", &url[..host])),
        false => Err(expected()),
    }
}

/// The failure of a request that the server refused.
fn refusal(url: &str, response: Response<Body>) -> Failure {
    let (status, headers) = (response.status(), response.headers());
    let text_of = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let may_pass = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    let seconds = text_of("retry-after").trim().parse().ok().map(Duration::from_secs);
    let said: String = text_of("x-error-message").chars().take(200).collect();
    let said = if said.is_empty() { said } else { format!(" ({said})") };
    Failure {
        kind: if may_pass { Kind::Passing } else { Kind::Final },
        text: format!("{url}: the server answered {status}{said}"),
        status: Some(status.as_u16()),
        code: text_of("x-error-code").to_owned(),
        wait: seconds.filter(|_| may_pass),
    }
}

/// The failure of a request that got no whole answer.
fn broken(url: &str, error: &ureq::Error) -> Failure {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
    };
    let kind = match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Kind::Unreachable,
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => Kind::Unreachable,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Kind::Unreachable,
        ureq::Error::Io(e) => match e.kind() {
            ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => {
                Kind::Unreachable
            }
            // A name that does not resolve has no kind of its own.
            _ if e.to_string().contains("lookup address") => Kind::Unreachable,
            _ => Kind::Passing,
        },
        ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => Kind::Final,
        _ => Kind::Passing,
    };
    let after = url.find("://").map_or(0, |at| at + 3);
    let host = url[after..].find('/').map_or(url, |at| &url[..after + at]);
    match kind {
        Kind::Unreachable => Failure::new(kind, format!("cannot reach {host} ({error})")),
        _ => Failure::new(kind, format!("{url}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(url: &str, location: &str) -> Result<String, Failure> {
        let response = Response::builder().status(302).header("location", location);
        next(url, response.body(Body::builder().data("")).unwrap())
    }

    #[test]
    fn redirects_stay_on_the_host_or_name_another() {
        assert_eq!(redirect("http://a:1/x/y", "/z?q").unwrap(), "http://a:1/z?q");
        assert_eq!(redirect("http://a:1", "/z").unwrap(), "http://a:1/z");
        assert_eq!(redirect("http://a/x", "https://b/z").unwrap(), "https://b/z");
        for location in ["", "z", "ftp://b/z", "../z"] {
            assert!(redirect("http://a/x", location).is_err(), "{location}");
        }
    }

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        assert!(is_under("https://hub/x", "https://hub") && is_under("http://a/b/x", "http://a/b"));
        for url in ["https://hub.evil/x", "https://hub@evil/x", "http://hub/x", "https://cdn/https://hub/x"] {
            assert!(!is_under(url, "https://hub"), "{url}");
        }
    }
}
