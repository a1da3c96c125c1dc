//! Failures of a transfer, and whether another attempt may help.

use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection came about.
    Unreachable,
    /// Another attempt may help.
    Passing,
    /// Another attempt would give the same.
    Final,
}

/// A failure, in one line.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub kind: Kind,
    pub text: String,
    /// The HTTP status of a refusal.
    pub status: Option<u16>,
    /// The hub's own word for a refusal, such as `GatedRepo`.
    pub code: String,
    /// The time that the server asks to wait.
    pub wait: Option<Duration>,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Failure { kind, text: text.into(), status: None, code: String::new(), wait: None }
    }

    pub fn passing(text: impl Into<String>) -> Self {
        Self::new(Kind::Passing, text)
    }

    pub fn fixed(text: impl Into<String>) -> Self {
        Self::new(Kind::Final, text)
    }

    pub fn may_pass(&self) -> bool {
        self.kind != Kind::Final
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Errors of the disk end a transfer.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::fixed(format!("{error:#}"))
    }
}
