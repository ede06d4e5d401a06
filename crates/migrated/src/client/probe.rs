//! Measuring the way to a peer over its API.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::CONTENT_TYPE;
use hyper_util::rt::TokioIo;
use migrated_api::ProbeAnswer;

use super::{ApiClient, ApiClientError};

/// Requests without content, of which the fastest tells the round trip time: the first also sets up what a connection
/// and a handler need.
const ROUND_TRIPS: usize = 4;
/// How long bytes are sent to measure the rate: some round trips of any link that guests move over, and 31 MB at
/// 1 Gbit/s.
const SEND_FOR: Duration = Duration::from_millis(250);
/// Bytes handed to the connection at a time.
const CHUNK: usize = 256 << 10;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// What the way to a peer is like.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Round trip time, with the time that HTTP takes.
    pub rtt: Duration,
    /// What came there, if it was asked how fast.
    pub flood: Option<ProbeAnswer>,
}

impl ApiClient {
    /// Measures the round trip time and, with `how_fast`, the rate, over one connection.
    pub async fn measure(&self, path: &str, how_fast: bool) -> Result<Measured, ApiClientError> {
        self.within(Self::PATIENCE, self.measure_slowly(path, how_fast)).await
    }

    async fn measure_slowly(&self, path: &str, how_fast: bool) -> Result<Measured, ApiClientError> {
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(io).await.map_err(|e| self.not_ours(e))?;
        // It ends with its sender.
        tokio::spawn(connection);
        let mut rtt = Duration::MAX;
        for _ in 0..ROUND_TRIPS {
            let asked = Instant::now();
            self.post_zeros(&mut sender, path, Zeros { left: 0, until: None }).await?;
            rtt = rtt.min(asked.elapsed());
        }
        let flood = match how_fast {
            true => {
                let zeros = Zeros { left: ProbeAnswer::MAX_BYTES, until: None };
                Some(self.post_zeros(&mut sender, path, zeros).await?)
            }
            false => None,
        };
        Ok(Measured { rtt, flood })
    }

    async fn post_zeros(
        &self,
        sender: &mut SendRequest<Zeros>,
        path: &str,
        zeros: Zeros,
    ) -> Result<ProbeAnswer, ApiClientError> {
        sender.ready().await.map_err(|e| self.not_ours(e))?;
        let request =
            self.head(Method::POST, path).header(CONTENT_TYPE, "application/octet-stream").body(zeros);
        let request = request.map_err(|e| self.not_ours(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.not_ours(e))?;
        if !response.status().is_success() {
            return Err(self.problem(response).await);
        }
        let body = self.read(response.into_body()).await?;
        serde_json::from_slice(&body).map_err(|e| self.not_ours(e))
    }
}

/// A body of zeros, as many as the connection takes in a time.
struct Zeros {
    left: u64,
    until: Option<Instant>,
}

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + SEND_FOR);
        if self.left == 0 || now >= until {
            return Poll::Ready(None);
        }
        let chunk = self.left.min(CHUNK as u64);
        self.left -= chunk;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..chunk as usize])))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.left == 0 { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
