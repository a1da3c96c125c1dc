//! Sources: names of the catalog, repositories of the hub, and their files.

use super::catalog::{self, Kept, MODEL_FILES};
use super::failure::{Failure, Kind};
use super::settings::{ENDPOINT, Settings};
use anyhow::{Result, anyhow, bail, ensure};
use clap::ValueEnum;
use glob::Pattern;
use hf_hub::{Repo, RepoType};

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    /// The prefix of names in the URLs of the hub.
    pub fn prefix(self) -> &'static str {
        match self {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        }
    }

    fn repo_type(self) -> RepoType {
        match self {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        }
    }
}

/// Some files of a repository, at a revision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Files {
    pub id: String,
    pub kind: RepoKind,
    pub revision: String,
    /// Names to fetch; none stands for all.
    pub include: Vec<Pattern>,
    pub exclude: Vec<Pattern>,
}

impl Files {
    /// The repository, as the hub's tools name it.
    pub fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), self.kind.repo_type(), self.revision.clone())
    }

    pub fn wants(&self, name: &str) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|pattern| pattern.matches(name));
        included && !self.exclude.iter().any(|pattern| pattern.matches(name))
    }

    /// The names that are wanted, if patterns are plain names.
    pub fn literal(&self) -> Option<Vec<&str>> {
        let names = self.include.iter().map(Pattern::as_str);
        let plain: Vec<&str> = names.filter(|name| !name.contains(['*', '?', '['])).collect();
        (!plain.is_empty() && plain.len() == self.include.len()).then_some(plain)
    }

    /// Whether these files are all that is needed, as far as names tell: each one that is wanted by
    /// its name, or a model's shape and all of its weights.
    pub fn is_enough(&self, names: &[String]) -> bool {
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        if let Some(wanted) = self.literal() {
            return wanted.into_iter().all(has);
        }
        let is_model = self.include.iter().map(Pattern::as_str).eq(MODEL_FILES.iter().copied());
        let count = |name: &String| name.strip_suffix(".safetensors")?.rsplit_once("-of-")?.1.parse().ok();
        let parts: Vec<usize> = names.iter().filter_map(count).collect();
        let is_whole = parts.first().is_some_and(|count| *count == parts.len());
        is_model && has("config.json") && (has("model.safetensors") || is_whole)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    Hub(Files),
    /// One file, by its path on GitHub.
    GitHub {
        path: &'static str,
        sha256: &'static str,
    },
}

/// Something that can be fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The name, as the user gave it.
    pub name: String,
    pub(super) origin: Origin,
}

impl Source {
    /// Reads a name: one of the catalog, `OWNER/NAME`, `OWNER/NAME/FILE`, any of these with
    /// `hf://`, `datasets/` or `models/` before them and `@REVISION` after NAME, or a URL of the
    /// hub. `kind` is that of a repository whose name does not tell.
    ///
    /// # Errors
    /// One line with the names that are known.
    pub fn parse(name: &str, kind: RepoKind) -> Result<Self> {
        if let Some(entry) = catalog::find(name) {
            let origin = match entry.kept {
                Kept::GitHub { path, sha256 } => Origin::GitHub { path, sha256 },
                Kept::Hub { id, kind, include } => Origin::Hub(Files {
                    id: id.to_owned(),
                    kind,
                    revision: "main".to_owned(),
                    include: include.iter().map(|text| pattern(text)).collect::<Result<_>>()?,
                    exclude: Vec::new(),
                }),
            };
            return Ok(Source { name: name.to_owned(), origin });
        }
        let unknown =
            || anyhow!("{name}: expected {}, or OWNER/NAME of a repository of the hub", catalog::names());
        let origin = Origin::Hub(repository(name, kind).ok_or_else(unknown)?);
        Ok(Source { name: name.to_owned(), origin })
    }

    /// Reads the name of a model: of its files, those that make up the model and its tokenizer.
    ///
    /// # Errors
    /// Those of [`Source::parse`], or if the name is that of a data set.
    pub fn model(name: &str) -> Result<Self> {
        let mut source = Self::parse(name, RepoKind::Model)?;
        match &mut source.origin {
            Origin::Hub(files) if files.kind == RepoKind::Model => {
                files.include = MODEL_FILES.iter().map(|text| pattern(text)).collect::<Result<_>>()?;
            }
            _ => bail!("{name}: expected a model, found a data set"),
        }
        Ok(source)
    }

    /// The names of a file for training and one for validation, if the source is just these two.
    pub fn splits(&self) -> Option<(String, String)> {
        let Origin::Hub(files) = &self.origin else { return None };
        let names = files.literal().filter(|names| names.len() == 2)?;
        let of = |split: &str| names.iter().find(|name| name.contains(split));
        let Files { id, kind, revision, .. } = files;
        let full = |name: &&str| format!("hf://{}{id}@{revision}/{name}", kind.prefix());
        Some((full(of("train")?), full(of("valid")?)))
    }

    /// Whether the repository is that of a model.
    pub fn is_model(&self) -> bool {
        matches!(&self.origin, Origin::Hub(files) if files.kind == RepoKind::Model)
    }

    /// Takes another revision: a branch, a tag or a commit.
    ///
    /// # Errors
    /// If the file is not in a repository of the hub, or the name cannot be that of a revision.
    pub fn at_revision(mut self, revision: Option<&str>) -> Result<Self> {
        let Some(revision) = revision else { return Ok(self) };
        ensure!(
            is_revision(revision),
            "--revision {revision}: expected a branch, a tag or a commit, found something else"
        );
        match &mut self.origin {
            Origin::Hub(files) => files.revision = revision.to_owned(),
            Origin::GitHub { .. } => bail!("--revision: {} is one file on GitHub; drop the flag", self.name),
        }
        Ok(self)
    }

    /// Takes only files that match one of `include`, if there are any, and none of `exclude`.
    ///
    /// # Errors
    /// If the file is not in a repository of the hub, or a pattern is not one.
    pub fn only(mut self, include: &[String], exclude: &[String]) -> Result<Self> {
        if include.is_empty() && exclude.is_empty() {
            return Ok(self);
        }
        let patterns = |texts: &[String], flag: &str| -> Result<Vec<Pattern>> {
            texts.iter().map(|text| pattern(text).map_err(|e| e.context(flag.to_owned()))).collect()
        };
        let (include, exclude) = (patterns(include, "--include")?, patterns(exclude, "--exclude")?);
        match &mut self.origin {
            Origin::Hub(files) => {
                if !include.is_empty() {
                    files.include = include;
                }
                files.exclude = exclude;
            }
            Origin::GitHub { .. } => {
                bail!("--include, --exclude: {} is one file on GitHub; drop the flag", self.name)
            }
        }
        Ok(self)
    }

    /// One line for a user without a connection: what to fetch by hand, and where to put it.
    pub(super) fn by_hand(&self, why: &str, settings: &Settings) -> String {
        let name = &self.name;
        match &self.origin {
            Origin::GitHub { path, .. } => {
                let url = format!("{}/{path}", settings.raw_github);
                let place = super::store::github_place(settings, path);
                format!(
                    "{name}: not in the cache, and {why}; fetch {url} by hand and store it as {}",
                    place.display()
                )
            }
            Origin::Hub(files) => {
                let (id, revision) = (&files.id, &files.revision);
                let base = format!("{}/{}{id}", settings.endpoint, files.kind.prefix());
                let what = match (files.kind, files.literal()) {
                    (RepoKind::Model, _) => {
                        let at = format!("{base}/resolve/{revision}");
                        return format!(
                            "{name}: not in the cache, and {why}; fetch {at}/config.json and \
                             {at}/model.safetensors by hand into a folder, and give that folder with -e"
                        );
                    }
                    (_, Some(names)) => {
                        let urls: Vec<_> =
                            names.iter().map(|n| format!("{base}/resolve/{revision}/{n}")).collect();
                        urls.join(" and ")
                    }
                    (_, None) => {
                        let folder = files.include.first().and_then(|p| Some(p.as_str().rsplit_once('/')?.0));
                        format!("the files of {base}/tree/{revision}/{}", folder.unwrap_or_default())
                    }
                };
                format!(
                    "{name}: not all in the cache, and {why}; fetch {what} by hand into a folder, and give that \
                     folder to warpsmith data"
                )
            }
        }
    }

    /// One line for a failure that the cache cannot make up for.
    pub(super) fn explain(&self, failure: Failure, has_token: bool) -> anyhow::Error {
        let name = &self.name;
        let Failure { text, status, code, wait, kind } = failure;
        let help = match (status, &self.origin) {
            (Some(401), _) if has_token => {
                "the token was not accepted, or may not read it; check HF_TOKEN".to_owned()
            }
            (Some(401), _) => format!(
                "there is no such repository, or it is private or gated; check the name, or give a token of \
                 {ENDPOINT}/settings/tokens in HF_TOKEN"
            ),
            (Some(403), Origin::Hub(files)) => format!(
                "accept its conditions at {ENDPOINT}/{}{}, and give a token of that account in HF_TOKEN",
                files.kind.prefix(),
                files.id
            ),
            (Some(404), Origin::Hub(files)) if code == "RevisionNotFound" => {
                format!("there is no revision {}; check --revision", files.revision)
            }
            (Some(404), Origin::Hub(files)) => {
                let (kind, other) = match files.kind {
                    RepoKind::Model => ("model", "dataset"),
                    RepoKind::Dataset => ("data set", "model"),
                };
                format!("there is no such {kind}; check the name, or say --repo-type {other}")
            }
            (Some(429), _) => {
                let later = wait.map_or("later".to_owned(), |wait| format!("in {} s", wait.as_secs()));
                let token = if has_token { "" } else { "; a token in HF_TOKEN raises the limit" };
                format!("too many requests; run it again {later}{token}")
            }
            _ if kind != Kind::Final => "run it again to go on from here".to_owned(),
            _ => return anyhow!("{name}: {text}"),
        };
        anyhow!("{name}: {text}: {help}")
    }
}

/// Whether a text may be the name of a model of the hub.
pub fn is_model_name(text: &str) -> bool {
    match catalog::find(text) {
        Some(entry) => entry.is_model(),
        None if is_model_file(text) => false,
        None => repository(text, RepoKind::Model).is_some_and(|files| files.kind == RepoKind::Model),
    }
}

/// Whether a text names a file with a model, by how it ends.
pub fn is_model_file(text: &str) -> bool {
    [".bin", ".safetensors", ".gguf"].iter().any(|end| text.ends_with(end))
}

/// Reads a pattern; a folder stands for all files in it.
fn pattern(text: &str) -> Result<Pattern> {
    let text = if text.ends_with('/') { format!("{text}*") } else { text.to_owned() };
    Pattern::new(&text).map_err(|error| anyhow!("{text}: expected a pattern with *, ? and []: {}", error.msg))
}

fn repository(text: &str, kind: RepoKind) -> Option<Files> {
    let text = text.trim_end_matches('/');
    let (rest, is_url) = match (text.strip_prefix("hf://"), text.strip_prefix(ENDPOINT)) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest.strip_prefix('/')?, true),
        (None, None) => (text, false),
    };
    let (rest, kind) = match (rest.strip_prefix("datasets/"), rest.strip_prefix("models/")) {
        (Some(rest), _) => (rest, RepoKind::Dataset),
        (None, Some(rest)) => (rest, RepoKind::Model),
        (None, None) => (rest, if is_url { RepoKind::Model } else { kind }),
    };
    let mut parts = rest.splitn(3, '/');
    let (owner, name, path) = (parts.next()?, parts.next()?, parts.next());
    let (name, mut revision) = name.split_once('@').unwrap_or((name, "main"));
    let mut path = path.unwrap_or_default();
    // The hub's pages: OWNER/NAME/tree/REVISION/PATH.
    if is_url && !path.is_empty() {
        let (view, rest) = path.split_once('/')?;
        ["tree", "blob", "resolve"].contains(&view).then_some(())?;
        (revision, path) = rest.split_once('/').unwrap_or((rest, ""));
    }
    let is_word = |word: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        !word.is_empty() && !word.starts_with('.') && word.len() <= 96 && word.bytes().all(plain)
    };
    let leaves = path.split('/').any(|part| part == "..") || path.starts_with('/');
    if !is_word(owner) || !is_word(name) || !is_revision(revision) || leaves {
        return None;
    }
    // A path is a file, or a folder.
    let include = match path {
        "" => Vec::new(),
        path => [path.to_owned(), format!("{path}/*")]
            .iter()
            .map(|p| Pattern::new(p).ok())
            .collect::<Option<_>>()?,
    };
    let revision = revision.to_owned();
    Some(Files { id: format!("{owner}/{name}"), kind, revision, include, exclude: Vec::new() })
}

/// Whether a text can be the name of a branch, a tag or a commit, and of a file in the cache.
fn is_revision(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.');
    text.len() <= 200 && text.bytes().all(plain) && text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str) -> Files {
        match Source::parse(name, RepoKind::Model).unwrap().origin {
            Origin::Hub(files) => files,
            Origin::GitHub { .. } => panic!("{name}: not of the hub"),
        }
    }

    #[test]
    fn repositories_are_named_in_many_ways() {
        for (name, id, kind, revision, wanted) in [
            ("gpt2", "openai-community/gpt2", RepoKind::Model, "main", "config.json"),
            ("a/b", "a/b", RepoKind::Model, "main", "x/y"),
            ("datasets/a/b", "a/b", RepoKind::Dataset, "main", "x"),
            ("hf://datasets/a/b@v1.0/sub/*.txt", "a/b", RepoKind::Dataset, "v1.0", "sub/x.txt"),
            ("hf://a/b/sub", "a/b", RepoKind::Model, "main", "sub/x/y"),
            ("https://huggingface.co/a/b", "a/b", RepoKind::Model, "main", "x"),
            ("https://huggingface.co/datasets/a/b/tree/dev/sub", "a/b", RepoKind::Dataset, "dev", "sub/x"),
            ("https://huggingface.co/a/b/blob/main/c.json", "a/b", RepoKind::Model, "main", "c.json"),
        ] {
            let found = files(name);
            assert_eq!(
                (found.id.as_str(), found.kind, found.revision.as_str()),
                (id, kind, revision),
                "{name}"
            );
            assert!(found.wants(wanted), "{name}");
        }
        assert!(!files("hf://a/b/sub").wants("subway") && !files("gpt2").wants("pytorch_model.bin"));
        let source = Source::parse("a/b", RepoKind::Dataset).unwrap();
        let some = source.only(&["data/".into(), "*.md".into()], &["*secret*".into()]).unwrap();
        let Origin::Hub(some) = some.origin else { panic!() };
        assert_eq!(["data/x", "y.md", "data/secret", "z"].map(|n| some.wants(n)), [true, true, false, false]);
    }

    #[test]
    fn names_that_are_none_are_refused_with_those_that_are() {
        for name in
            ["", "x", "tinystory", "/a", "a/", "../b", "a/..", "a b/c", "a/b@", "a/b@../x", "a/b@x//y"]
        {
            let error = Source::parse(name, RepoKind::Model).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: expected tinyshakespeare, tinystories")), "{error}");
        }
        let one = || Source::parse("hellaswag", RepoKind::Model).unwrap();
        let refused = |result: Result<Source>| result.unwrap_err().to_string();
        assert_eq!(
            refused(one().at_revision(Some("x"))),
            "--revision: hellaswag is one file on GitHub; drop the flag"
        );
        assert!(refused(one().only(&["x".into()], &[])).starts_with("--include"));
        let two = Source::parse("a/b", RepoKind::Model).unwrap();
        assert!(refused(two.clone().at_revision(Some("../x"))).starts_with("--revision ../x: expected"));
        let error = format!("{:#}", two.only(&["a[".into()], &[]).unwrap_err());
        assert!(error.starts_with("--include: a[: expected a pattern"), "{error}");
    }

    #[test]
    fn a_part_of_a_model_is_not_enough() {
        let enough = |name: &str, names: &str| {
            let Origin::Hub(files) = Source::parse(name, RepoKind::Model).unwrap().origin else { panic!() };
            files.is_enough(&names.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        let [one, two] = [1, 2].map(|i| format!("model-0000{i}-of-00002.safetensors"));
        assert!(enough("gpt2", "config.json model.safetensors"));
        assert!(enough("gpt2", &format!("config.json {one} {two} model.safetensors.index.json")));
        for names in ["", "config.json", "model.safetensors", &format!("config.json {one}")] {
            assert!(!enough("gpt2", names), "{names}");
        }
        let [train, valid] = ["train", "valid"].map(|split| format!("TinyStoriesV2-GPT4-{split}.txt"));
        assert!(enough("tinystories", &format!("{train} {valid}")) && !enough("tinystories", &train));
        assert!(!enough("fineweb", "sample/10BT/000_00000.parquet") && !enough("a/b", "config.json"));
    }

    #[test]
    fn models_are_told_from_data_and_paths() {
        for name in ["gpt2", "gpt2-xl", "openai-community/gpt2", "hf://a/b", "a/b"] {
            assert!(is_model_name(name) && Source::model(name).is_ok(), "{name}");
        }
        for name in ["d12", "tinystories", "datasets/a/b", "./a/b", "../a", "/a/b", "a", "a/b.gguf"] {
            assert!(!is_model_name(name), "{name}");
        }
    }
}
