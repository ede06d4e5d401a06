//! Output as it comes, wherever the guest is.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use migrated_api::{ConsoleHeaders, ConsoleQuery};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::escape::Escape;
use crate::client::{ApiClient, ApiClientError};

/// After how long without output an answer ends and another begins: so a link that died is noticed.
const IDLE: Duration = Duration::from_secs(15);
/// How much later than that an end may come.
const LATE: Duration = Duration::from_secs(15);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(200);
/// How long a daemon may be away.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest that left here may be unknown at the host where it went to.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Says something beside the guest's output, which may stand in the middle of a line.
pub fn note(text: &str) {
    let mut stderr = std::io::stderr();
    let line = if stderr.is_terminal() { "\n" } else { "" };
    // Nobody can be told that standard error is closed.
    let _ = writeln!(stderr, "{line}[{text}]");
}

/// Reads a console from an offset on.
pub struct Follower {
    client: ApiClient,
    /// The VM as the user calls it.
    name: String,
    /// Its name or id for the daemon.
    key: String,
    from: u64,
    /// The host that the guest was on last.
    host: Option<String>,
}

/// How an answer ended.
enum End {
    /// The guest has ended, and everything it wrote is there.
    Guest,
    /// There may be more.
    Answer,
}

/// Nobody takes the output any more.
#[derive(Debug, thiserror::Error)]
#[error("can't write the output")]
struct Unwritten;

impl Follower {
    pub const fn new(client: ApiClient, name: String, key: String, from: u64) -> Self {
        Self { client, name, key, from, host: None }
    }

    /// Tells a person how to leave.
    pub fn greet(&self, escape: Escape) {
        let leave = if escape.is_some() { format!("; {escape} detaches") } else { String::new() };
        note(&format!("console of {}{leave}", self.name));
    }

    /// Everything that is there now.
    pub async fn read(&mut self, output: mpsc::Sender<Vec<u8>>) -> Result<()> {
        let answer = self.ask(false).await?;
        self.pass_on(answer, &output).await?;
        Ok(())
    }

    /// Output as it comes, until the guest ends.
    pub async fn follow(&mut self, output: mpsc::Sender<Vec<u8>>) -> Result<()> {
        let mut lost: Option<Instant> = None;
        let mut met = false;
        loop {
            let before = self.from;
            let failed = match self.ask(true).await {
                Ok(answer) => {
                    if lost.take().is_some() {
                        note("connected again");
                    }
                    met = true;
                    match self.pass_on(answer, &output).await {
                        Ok(End::Guest) => return Ok(()),
                        Ok(End::Answer) if self.from > before => continue,
                        Ok(End::Answer) => None,
                        Err(e) if e.is::<Unwritten>() => return Err(e),
                        Err(e) => Some(e),
                    }
                }
                Err(e) if met => match patience(&e) {
                    Some(patience) if lost.is_none_or(|since| since.elapsed() < patience) => Some(e.into()),
                    // It was there, and was deleted.
                    _ if is_not_found(&e) => return Ok(()),
                    _ => return Err(e.into()),
                },
                Err(e) => return Err(e.into()),
            };
            if let Some(e) = failed
                && lost.is_none()
            {
                lost = Some(Instant::now());
                note(&format!("lost the console: {e:#}; trying again"));
            }
            sleep(RETRY).await;
        }
    }

    async fn ask(&mut self, follow: bool) -> Result<Response<Incoming>, ApiClientError> {
        let idle_ms = follow.then_some(IDLE.as_millis() as u32);
        let query = ConsoleQuery { from: self.from, follow, idle_ms, hops: 0 };
        let answer = self.client.open(&format!("/v1/vms/{}/console?{}", self.key, query.to_query())).await?;
        let told = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(host) = told(ConsoleHeaders::HOST)
            && self.host.as_deref() != Some(host)
            && let Some(_former) = self.host.replace(host.to_owned())
        {
            note(&format!("{} moved to {host}", self.name));
        }
        if let Some(first) = told(ConsoleHeaders::FROM).and_then(|first| first.parse::<u64>().ok()) {
            // What is older than everything kept when one begins was not missed.
            if first > self.from && self.from > 0 {
                note(&format!(
                    "{} bytes of output are lost: the guest wrote faster than they were read",
                    first - self.from
                ));
            }
            self.from = first;
        }
        Ok(answer)
    }

    /// Hands an answer's bytes on.
    async fn pass_on(&mut self, answer: Response<Incoming>, output: &mpsc::Sender<Vec<u8>>) -> Result<End> {
        let ended = answer.headers().get(ConsoleHeaders::ENDED).is_some_and(|ended| ended == "true");
        let mut body = answer.into_body();
        loop {
            let frame = timeout(IDLE + LATE, body.frame()).await;
            let Some(frame) = frame.map_err(|_| anyhow::anyhow!("nothing came for {:?}", IDLE + LATE))?
            else {
                return Ok(if ended { End::Guest } else { End::Answer });
            };
            if let Ok(bytes) = frame?.into_data() {
                let length = bytes.len() as u64;
                output.send(bytes.into()).await.map_err(|_| Unwritten)?;
                self.from += length;
            }
        }
    }
}

fn is_not_found(error: &ApiClientError) -> bool {
    matches!(error, ApiClientError::Problem(problem) if problem.code == "vm_not_found")
}

/// How long to try again after that; nothing when it can't help.
fn patience(error: &ApiClientError) -> Option<Duration> {
    match error {
        ApiClientError::Problem(problem) if problem.status == 404 => None,
        // The host that it went to may not have seen it come yet.
        _ if is_not_found(error) => Some(ARRIVAL),
        ApiClientError::Problem(problem) if problem.status < 500 => None,
        _ => Some(PATIENCE),
    }
}
