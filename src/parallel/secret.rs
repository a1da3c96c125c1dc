//! The secret of a job, by which its ranks recognize each other. A rank never sends it: it proves
//! that it knows the secret with a MAC (HMAC-SHA-256) over a nonce that the other end has drawn.

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;

/// The variable that holds the secret: `warpsmith launch` draws one; users of other launchers may
/// set it.
pub const VARIABLE: &str = "WARPSMITH_TOKEN";

/// The shortest secret that cannot be guessed if its characters are random.
const SHORTEST: usize = 16;

/// The secret of a job. Without one, any process can join.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// A number that is used once.
pub type Nonce = [u8; 32];

/// A MAC under the secret.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Proof([u8; 32]);

/// The end of a connection that makes a proof, so that none can be reflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Caller,
    Host,
}

impl Secret {
    /// No secret.
    pub const NONE: Self = Secret(String::new());

    /// Draws 128 bits.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn draw() -> Result<Self> {
        let mut bits = [0; 16];
        fill(&mut bits)?;
        Ok(Secret(bits.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Takes a text that a user or [`Self::reveal`] made. Space around it is ignored.
    ///
    /// # Errors
    /// If it is too short, but not empty.
    pub fn from_text(text: &str) -> Result<Self> {
        let text = text.trim();
        ensure!(
            text.is_empty() || text.len() >= SHORTEST,
            "expected at least {SHORTEST} random characters, such as those of `openssl rand -hex 16`, found {}",
            text.len()
        );
        Ok(Secret(text.to_owned()))
    }

    /// The text, for the environment of a rank or for a file that only the user can read.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The proof of one end of a connection, for the caller's `hello` and the host's nonce.
    pub fn proof(&self, of: End, hello: &[u8], nonce: &Nonce) -> Proof {
        Proof(self.mac(of, hello, nonce).finalize().into_bytes().into())
    }

    /// Whether the other end's proof is right. Takes the same time wherever it is wrong.
    pub fn verify(&self, proof: &Proof, of: End, hello: &[u8], nonce: &Nonce) -> bool {
        self.mac(of, hello, nonce).verify_slice(&proof.0).is_ok()
    }

    fn mac(&self, of: End, hello: &[u8], nonce: &Nonce) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(self.0.as_bytes()).expect("keys of any length are allowed");
        mac.update(match of {
            End::Caller => b"warpsmith caller",
            End::Host => b"warpsmith host  ",
        });
        mac.update(nonce);
        mac.update(hello);
        mac
    }
}

/// Hides the text: errors and logs show structures.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if self.is_none() { "no secret" } else { "a secret" })
    }
}

/// Draws a nonce.
///
/// # Errors
/// If the system has no random numbers.
pub fn nonce() -> Result<Nonce> {
    let mut nonce = Nonce::default();
    fill(&mut nonce)?;
    Ok(nonce)
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).context("the system has no random numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_one_secret_end_hello_and_nonce() {
        let (secret, other) = (Secret::draw().unwrap(), Secret::draw().unwrap());
        let (ours, theirs) = (nonce().unwrap(), nonce().unwrap());
        let proof = secret.proof(End::Caller, b"hello", &ours);
        assert!(secret.verify(&proof, End::Caller, b"hello", &ours));
        assert!(!other.verify(&proof, End::Caller, b"hello", &ours), "another secret");
        assert!(!Secret::NONE.verify(&proof, End::Caller, b"hello", &ours), "no secret");
        assert!(!secret.verify(&proof, End::Host, b"hello", &ours), "a reflected proof");
        assert!(!secret.verify(&proof, End::Caller, b"hellp", &ours), "another hello");
        assert!(!secret.verify(&proof, End::Caller, b"hello", &theirs), "a replayed proof");
    }

    #[test]
    fn secrets_have_texts_that_are_not_shown() {
        let secret = Secret::draw().unwrap();
        assert_eq!((secret.reveal().len(), format!("{secret:?}")), (32, "a secret".to_owned()));
        assert_eq!(Secret::from_text(&format!(" {}\n", secret.reveal())).unwrap(), secret);
        assert!(Secret::from_text("").unwrap().is_none());
        assert!(Secret::from_text("password").unwrap_err().to_string().contains("at least 16"));
    }
}
