use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Answer, Clocks, Request};

/// Answers every request of every connection, for good.
///
/// # Errors
/// The listener's. What goes wrong on a connection ends that connection.
pub fn serve(listener: &TcpListener, clocks: &'static Clocks) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        thread::Builder::new().spawn(move || answer(stream, clocks))?;
    }
}

fn answer(mut stream: TcpStream, clocks: &Clocks) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let request = Request::read(&mut stream)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let answer = Answer {
            number: request.number,
            digest: Answer::digest_of(request),
            unix_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            clocks: clocks.take(),
        };
        answer.write(&mut stream)?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn each_request_gets_its_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, Clocks::watch().unwrap()));
        let mut stream = TcpStream::connect(address).unwrap();
        let before = SystemTime::now();
        for number in 0..3 {
            let request = Request { number, nonce: number << 40 };
            request.write(&mut stream).unwrap();
            let answer = Answer::read(&mut stream).unwrap();
            assert!(answer.answers(request), "{answer:?}");
            let at = UNIX_EPOCH + std::time::Duration::from_nanos(answer.unix_ns);
            assert!(at >= before && at <= SystemTime::now(), "{answer:?}");
        }
    }
}
