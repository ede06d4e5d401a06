use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use migrated_api::{ProbeAnswer, Problem};

use super::ApiError;

/// How long a probe may take: a source sends for a quarter of a second what then is in its buffers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts what a source sends and throws it away, so that the source knows what the link carries.
#[utoipa::path(
    post, path = "/v1/incoming/probe", tag = "incoming", operation_id = "probe_incoming",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "Anything, 64 MiB at most"),
    responses(
        (status = 200, description = "What came", body = ProbeAnswer),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json")
    )
)]
pub async fn probe(body: Body) -> Result<axum::Json<ProbeAnswer>, ApiError> {
    let late = |_| {
        let detail = format!("the probe did not end within {PATIENCE:?}");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "probe_timed_out", detail)
    };
    tokio::time::timeout(PATIENCE, count(body)).await.map_err(late)?.map(axum::Json)
}

async fn count(mut body: Body) -> Result<ProbeAnswer, ApiError> {
    let (begun, mut arrivals) = (Instant::now(), Arrivals::default());
    while let Some(frame) = body.frame().await {
        let unreadable = |e| ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", format!("{e}"));
        let bytes = frame.map_err(unreadable)?.into_data().map_or(0, |data| data.len() as u64);
        arrivals.add(begun.elapsed(), bytes);
        if arrivals.bytes > ProbeAnswer::MAX_BYTES {
            let detail = format!("a probe may send {} bytes at most", ProbeAnswer::MAX_BYTES);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
        }
    }
    Ok(arrivals.answer())
}

/// What came when.
#[derive(Debug, Default)]
struct Arrivals {
    bytes: u64,
    first: Option<At>,
    settled: Option<At>,
    last: Duration,
}

/// A time, and how many bytes had come by then.
#[derive(Clone, Copy, Debug)]
struct At {
    time: Duration,
    bytes: u64,
}

impl Arrivals {
    /// From then on the rate is a link's: before, a connection starts slowly, and what shapes a link lets a burst pass.
    const SETTLED_AFTER: Duration = Duration::from_millis(50);
    /// A shorter time than that, or fewer bytes, tell no rate.
    const SHORTEST: Duration = Duration::from_millis(2);
    const FEWEST: u64 = 64 << 10;

    fn add(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        self.last = now;
        let at = At { time: now, bytes: self.bytes };
        let first = *self.first.get_or_insert(at);
        if now >= first.time + Self::SETTLED_AFTER {
            self.settled.get_or_insert(at);
        }
    }

    /// Bits a second since then, if that is enough to tell.
    fn rate_since(&self, then: At) -> Option<f64> {
        let (time, bytes) = (self.last - then.time, self.bytes - then.bytes);
        (time >= Self::SHORTEST && bytes >= Self::FEWEST).then(|| bytes as f64 * 8.0 / time.as_secs_f64())
    }

    /// Whether what came since then is most of it. What waited for us in a buffer comes all at once, so that what
    /// is seen of a short time alone may be anything.
    fn is_long(&self, first: At, since: At) -> bool {
        (self.last - since.time) * 2 >= self.last - first.time
    }

    fn answer(&self) -> ProbeAnswer {
        let since = |at: Option<At>| at.and_then(|at| self.rate_since(at));
        let settled = self.settled.filter(|at| self.first.is_some_and(|first| self.is_long(first, *at)));
        ProbeAnswer {
            bytes: self.bytes,
            took_us: self.first.map_or(0.0, |first| (self.last - first.time).as_secs_f64() * 1e6),
            rate_bps: since(settled).or_else(|| since(self.first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(all: impl IntoIterator<Item = (u64, u64)>) -> ProbeAnswer {
        let mut arrivals = Arrivals::default();
        all.into_iter().for_each(|(ms, bytes)| arrivals.add(Duration::from_millis(ms), bytes));
        arrivals.answer()
    }

    #[test]
    fn what_comes_before_the_connection_has_settled_does_not_count() {
        // A burst of 10 MB, then 1 MB each 8 ms: 1 Gbit/s.
        let burst = [(3, 10_000_000)].into_iter();
        let answer = arrivals(burst.chain((1..=30).map(|n| (3 + n * 8, 1_000_000))));
        assert_eq!((answer.bytes, answer.rate_bps), (40_000_000, Some(1e9)));
        assert!((answer.took_us - 240e3).abs() < 1e-6, "{answer:?}");
    }

    #[test]
    fn what_was_read_late_and_at_once_is_not_taken_for_a_fast_link() {
        // Nothing is read from 40 ms to 240 ms, and then all that has come.
        let stall = (0..=4).map(|n| (n * 10, 1_250_000)).chain([(240, 20_000_000), (243, 5_000_000)]);
        let rate = arrivals(stall).rate_bps.unwrap();
        assert!((0.9e9..1.1e9).contains(&rate), "{rate}");
    }

    #[test]
    fn a_fast_link_is_measured_by_what_came_after_the_first_bytes() {
        let answer = arrivals((0..20).map(|n| (n, 1_000_000)));
        assert_eq!(answer.rate_bps, Some(8e9));
    }

    #[test]
    fn too_little_tells_nothing() {
        assert_eq!(arrivals([]), ProbeAnswer::default());
        assert_eq!(arrivals([(0, 1 << 20)]).rate_bps, None);
        assert_eq!(arrivals([(0, 1), (100, 1)]).rate_bps, None);
    }
}
