use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// Which part of a console to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// Offset of the first byte, into all that the guest wrote on whichever host; older than what is kept means the
    /// oldest. Of what it wrote before it came to its host the last 16 KiB are kept.
    #[serde(default)]
    pub from: u64,
    /// Go on as output comes.
    #[serde(default)]
    pub follow: bool,
    /// End the answer when no output came for so long, in ms.
    #[serde(default)]
    pub idle_ms: Option<u32>,
    /// For peers: how many daemons have passed the question on.
    #[serde(default)]
    pub hops: u8,
}

impl ConsoleQuery {
    /// What follows the `?`.
    #[must_use]
    pub fn to_query(&self) -> String {
        let Self { from, follow, idle_ms, hops } = self;
        let idle = idle_ms.map(|idle| format!("&idle_ms={idle}")).unwrap_or_default();
        format!("from={from}&follow={follow}&hops={hops}{idle}")
    }
}

/// How input came here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleInputQuery {
    /// For peers: how many daemons have passed it on.
    #[serde(default)]
    pub hops: u8,
}

/// Headers of a console's answer.
#[derive(Clone, Copy, Debug)]
pub struct ConsoleHeaders;

impl ConsoleHeaders {
    /// Offset of the answer's first byte.
    pub const FROM: &str = "x-console-from";
    /// Name of the host that the guest is on.
    pub const HOST: &str = "x-console-host";
    /// `true` when the guest has ended and the answer holds the last of it.
    pub const ENDED: &str = "x-console-ended";
    /// All of them.
    pub const ALL: [&str; 3] = [Self::FROM, Self::HOST, Self::ENDED];
}
