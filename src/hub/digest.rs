//! Digests that the hub names files by: SHA-256 of large files, and of others git's SHA-1.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The digest that a file must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content.
    Git(String),
    /// A name that is no digest, as a mirror may give.
    Other(String),
}

impl Digest {
    /// Reads an etag, as it is in a header. `None` if it could not be the name of a file.
    pub fn parse(etag: &str) -> Option<Self> {
        let name = etag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(plain) {
            return None;
        }
        let is_hex = name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Some(match name.len() {
            64 if is_hex => Digest::Sha256(name),
            40 if is_hex => Digest::Git(name),
            _ => Digest::Other(name),
        })
    }

    /// The name of the file in the cache.
    pub fn name(&self) -> &str {
        match self {
            Digest::Sha256(name) | Digest::Git(name) | Digest::Other(name) => name,
        }
    }

    /// The kind of digest, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Digest::Sha256(_) => "sha256",
            Digest::Git(_) => "git's sha1",
            Digest::Other(_) => "etag",
        }
    }

    /// Starts to compute the digest of `bytes` bytes.
    pub fn hasher(&self, bytes: u64) -> Hasher {
        match self {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Digest::Git(_) => Hasher::Git(Sha1::new_with_prefix(format!("blob {bytes}\0"))),
            Digest::Other(_) => Hasher::None,
        }
    }
}

/// A digest of what has been seen so far.
pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
    None,
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Git(hasher) => hasher.update(bytes),
            Hasher::None => {}
        }
    }

    /// The digest in hexadecimal, or `None` if none is computed.
    pub fn finish(self) -> Option<String> {
        match self {
            Hasher::Sha256(hasher) => Some(hex(&hasher.finalize())),
            Hasher::Git(hasher) => Some(hex(&hasher.finalize())),
            Hasher::None => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(etag: &str, content: &[u8]) -> Option<String> {
        let mut hasher = Digest::parse(etag).unwrap().hasher(content.len() as u64);
        content.chunks(3).for_each(|chunk| hasher.update(chunk));
        hasher.finish()
    }

    /// Digests of `hello` and a newline, by sha256sum and by git hash-object.
    #[test]
    fn digests_are_those_of_git_and_of_its_large_files() {
        let large = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(digest_of(large, b"hello\n").as_deref(), Some(large));
        let small = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(digest_of(&format!("W/\"{small}\""), b"hello\n").as_deref(), Some(small));
        assert_eq!(digest_of("\"5d41402abc4b2a76b9719d911017c592-2\"", b"hello\n"), None);
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for etag in ["", "\"\"", "../x", "a/b", "..", ".x", "a b", "a\0b", &"a".repeat(200)] {
            assert_eq!(Digest::parse(etag), None, "{etag:?}");
        }
    }
}
