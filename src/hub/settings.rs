//! The environment variables of the hub's own tools, with their meaning there.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub, unless `HF_ENDPOINT` names another.
pub(super) const ENDPOINT: &str = "https://huggingface.co";

/// GitHub's files, unless `WARPSMITH_RAW_GITHUB` names a mirror of them.
const RAW_GITHUB: &str = "https://raw.githubusercontent.com";

/// Seconds of silence, unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const SILENCE_SECONDS: u64 = 30;

/// The places of the hub and its cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// URL without a slash at its end.
    pub endpoint: String,
    pub raw_github: String,
    /// The cache of repositories.
    pub cache: PathBuf,
    /// The cache of other files.
    pub assets: PathBuf,
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// The longest silence of a server.
    pub silence: Duration,
}

impl Settings {
    /// Reads the settings; `variable` looks up the environment.
    ///
    /// # Errors
    /// One line that names the variable, if its value cannot be used.
    pub fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| variable(name).map(|path| expand(&path, variable("HOME")));
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")))
            .context("HOME: not set, so there is no place for downloads; set it, or HF_HOME")?;
        let first = |names: &[&str]| names.iter().find_map(|name| path(name));
        let is_set = |name: &str| {
            variable(name)
                .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").map(|text| {
            let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
            seconds.with_context(|| format!("HF_HUB_DOWNLOAD_TIMEOUT={text}: expected whole seconds"))
        });
        Ok(Settings {
            endpoint: url("HF_ENDPOINT", variable("HF_ENDPOINT"), ENDPOINT)?,
            raw_github: url("WARPSMITH_RAW_GITHUB", variable("WARPSMITH_RAW_GITHUB"), RAW_GITHUB)?,
            cache: first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")),
            assets: first(&["HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE"])
                .unwrap_or_else(|| home.join("assets")),
            token: token
                .map_or_else(|| token_in(&token_file), |token| checked("HF_TOKEN", token).map(Some))?,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            silence: Duration::from_secs(seconds.transpose()?.unwrap_or(SILENCE_SECONDS)),
        })
    }
}

/// A path in which `~` is the home directory.
fn expand(path: &str, home: Option<String>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn url(name: &str, value: Option<String>, default: &str) -> Result<String> {
    let given = value.as_deref().unwrap_or(default);
    let url = given.trim_end_matches('/').to_owned();
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let plain = |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic());
    ensure!(
        host.is_some_and(plain),
        "{name}={given}: expected a URL that starts with https:// or http://, such as {default}"
    );
    Ok(url)
}

/// The token in the file that the hub's tools write after a log-in.
fn token_in(path: &Path) -> Result<Option<String>> {
    const MOST_BYTES: u64 = 1 << 12;
    if !path.exists() {
        return Ok(None);
    }
    let text = crate::files::read_text(path, MOST_BYTES)?;
    let token = text.trim();
    if token.is_empty() { Ok(None) } else { checked(&path.display().to_string(), token.to_owned()).map(Some) }
}

/// Refuses a token that cannot be a header, without quoting it.
fn checked(place: &str, token: String) -> Result<String> {
    ensure!(
        token.bytes().all(|b| b.is_ascii_graphic()),
        "{place}: expected a token of the hub in one word, found other characters"
    );
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::find(&|name| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn places_are_those_of_the_hubs_tools() {
        let place = |variables: &[(&str, &str)]| settings(variables).unwrap().cache;
        assert_eq!(place(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(place(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(place(&[("HOME", "/h"), ("HF_HOME", "~/hf")]), Path::new("/h/hf/hub"));
        assert_eq!(place(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        let all = settings(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "http://a:1/"), ("HF_HUB_OFFLINE", "true")]);
        let all = all.unwrap();
        assert_eq!((all.endpoint.as_str(), all.offline), ("http://a:1", true));
        assert_eq!(all.assets, Path::new("/hf/assets"));
        assert!(settings(&[]).unwrap_err().to_string().starts_with("HOME: not set"));
    }

    #[test]
    fn the_token_comes_from_the_environment_or_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("hf_file"));
        let both = [("HF_HOME", home), ("HF_TOKEN", " hf_variable ")];
        assert_eq!(settings(&both).unwrap().token.as_deref(), Some("hf_variable"));
        std::fs::write(dir.path().join("token"), "two words").unwrap();
        let error = settings(&[("HF_HOME", home)]).unwrap_err().to_string();
        assert!(error.contains("token: expected a token") && !error.contains("two words"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "https://"),
            ("WARPSMITH_RAW_GITHUB", "ftp://x"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
        ] {
            let error = settings(&[("HF_HOME", "/h"), (name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}={value}: expected")), "{error}");
        }
    }
}
