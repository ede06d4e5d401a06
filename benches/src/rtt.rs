//! How long the way there and back takes on the link.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use migrated_netns::{ADDRESSES, Pair};

use crate::statistics::Summary;

/// Round trips that are timed.
const TRIPS: usize = 500;

/// Times round trips of a byte between two programs over TCP, in µs: what a page's request and the page take at least,
/// with both programs' being woken.
///
/// # Errors
/// The link does not carry it.
pub fn measure(pair: &Pair) -> Result<Summary> {
    let listener = pair.enter(1, || TcpListener::bind((ADDRESSES[1], 0)))??;
    let port = listener.local_addr()?.port();
    let stream = pair.enter(0, || TcpStream::connect((ADDRESSES[1], port)))??;
    let echo = std::thread::spawn(move || echo(&listener));
    let times = trips(stream).context("can't time round trips")?;
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    Summary::of(times.iter().map(|time| time.as_secs_f64() * 1e6)).context("no round trip")
}

fn trips(mut stream: TcpStream) -> io::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    let trip = |_| {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        Ok(sent.elapsed())
    };
    (0..TRIPS).map(trip).collect()
}

fn echo(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}
