//! Watching a migration: its events, as a progress bar.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use indicatif::{ProgressBar, ProgressStyle};
use migrated_api::{MigrationRecord, MigrationState};

use super::{postcopy, throttle};
use crate::client::ApiClient;
use crate::daemon::pages_follow;
use crate::units::{show_bit_rate, show_us};

/// Follows a migration to its end and gives its last record.
pub async fn watch(client: &ApiClient, id: &str, show: bool) -> Result<MigrationRecord> {
    let body = client.stream(&format!("/v1/migrations/{id}/events")).await?;
    let mut events = EventStream::new(body);
    let bar = if show { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {percent:>3} %  {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    let ended = loop {
        let Some(record) = events.next().await? else {
            bail!(
                "the daemon broke off while the migration was on; `migrated migration show {id}` tells how it went on"
            );
        };
        paint(&bar, &record);
        if record.state.is_some_and(MigrationState::is_final) {
            break record;
        }
    };
    bar.finish_and_clear();
    Ok(ended)
}

/// Shows a record on a progress bar: the share of the current iteration, and the figures.
pub fn paint(bar: &ProgressBar, record: &MigrationRecord) {
    bar.set_prefix(record.state.map_or("negotiating", |state| state.name()));
    if let Some(followed) = record.postcopy.as_ref().filter(|_| follows(record)) {
        bar.set_length(followed.missing_pages);
        bar.set_position(followed.missing_pages.saturating_sub(record.remaining_pages));
        return bar.set_message(postcopy::progress(record, followed));
    }
    let current = record.iterations.last();
    let sent = current.map_or(0, |iteration| iteration.pages);
    bar.set_length(sent + record.remaining_pages);
    bar.set_position(sent);
    let expected = record.expected_downtime_us.map(|us| format!(", expected downtime {}", show_us(us)));
    bar.set_message(format!(
        "iteration {}, {} pages left, {}, {:.0} dirty pages/s{}{}",
        current.map_or(1, |iteration| iteration.n),
        record.remaining_pages,
        show_bit_rate(record.throughput_bps),
        current.map_or(0.0, |iteration| iteration.dirty_rate_pps),
        throttle::progress(record).unwrap_or_default(),
        expected.unwrap_or_default()
    ));
}

/// Whether pages follow a guest that has switched hosts.
fn follows(record: &MigrationRecord) -> bool {
    record.state.is_some_and(pages_follow)
}

/// Records out of a stream of server-sent events.
struct EventStream {
    body: Incoming,
    buffer: Vec<u8>,
}

/// Most bytes of one event: a record's lists are bounded.
const MAX_EVENT: usize = 1 << 20;

impl EventStream {
    const fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new() }
    }

    /// The next record, or `None` at the stream's end.
    async fn next(&mut self) -> Result<Option<MigrationRecord>> {
        loop {
            if let Some(data) = take_event(&mut self.buffer) {
                if data.is_empty() {
                    continue;
                }
                return Ok(Some(
                    serde_json::from_slice(&data).context("the daemon sent no migration record")?,
                ));
            }
            if self.buffer.len() > MAX_EVENT {
                bail!("the daemon sent an event of more than {MAX_EVENT} bytes");
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame.context("the daemon broke off")?.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}

/// Takes the first whole event out of the buffer and gives its data, which is empty for a comment.
fn take_event(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let event: Vec<u8> = buffer.drain(..end + 2).collect();
    let data = event.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
    Some(data.map(|line| line.strip_prefix(b" ").unwrap_or(line)).collect::<Vec<_>>().join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::take_event;

    #[test]
    fn events_are_taken_whole_and_comments_have_no_data() {
        let mut buffer = b":\n\nevent: precopy\ndata: {\"a\":1}\n\ndata: rest".to_vec();
        assert_eq!(take_event(&mut buffer), Some(vec![]));
        assert_eq!(take_event(&mut buffer), Some(b"{\"a\":1}".to_vec()));
        assert_eq!(take_event(&mut buffer), None);
        assert_eq!(buffer, b"data: rest");
    }
}
