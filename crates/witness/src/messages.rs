use std::io::{self, Read, Write};

use crate::Readings;

/// A question: two numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which one of a connection's questions it is.
    pub number: u64,
    /// Anything.
    pub nonce: u64,
}

/// What the guest says to it: five numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's number.
    pub number: u64,
    /// [`Answer::digest_of`] the request, so that a mangled or misplaced answer is noticed.
    pub digest: u64,
    /// The guest's wall clock when it answered, in ns since the Unix epoch.
    pub unix_ns: u64,
    /// What it has seen of its clocks.
    pub clocks: Readings,
}

impl Request {
    /// Reads one.
    ///
    /// # Errors
    /// The stream's; `UnexpectedEof` when it ends.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let [number, nonce] = read(stream)?;
        Ok(Self { number, nonce })
    }

    /// Writes it, at once.
    ///
    /// # Errors
    /// The stream's.
    pub fn write(self, stream: &mut impl Write) -> io::Result<()> {
        write(stream, [self.number, self.nonce])
    }
}

impl Answer {
    /// The digest that answers a request. The constants are those of splitmix64.
    #[must_use]
    pub const fn digest_of(request: Request) -> u64 {
        let mut digest = request.nonce ^ request.number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        digest = (digest ^ digest >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        digest = (digest ^ digest >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        digest ^ digest >> 31
    }

    /// Whether this is what must be said to that request.
    #[must_use]
    pub const fn answers(&self, request: Request) -> bool {
        self.number == request.number && self.digest == Self::digest_of(request)
    }

    /// Reads one.
    ///
    /// # Errors
    /// The stream's; `UnexpectedEof` when it ends.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let [number, digest, unix_ns, backward_ns, gap_ns] = read(stream)?;
        Ok(Self { number, digest, unix_ns, clocks: Readings { backward_ns, gap_ns } })
    }

    /// Writes it, at once.
    ///
    /// # Errors
    /// The stream's.
    pub fn write(self, stream: &mut impl Write) -> io::Result<()> {
        let Readings { backward_ns, gap_ns } = self.clocks;
        write(stream, [self.number, self.digest, self.unix_ns, backward_ns, gap_ns])
    }
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u64; N]> {
    let mut numbers = [[0; 8]; N];
    stream.read_exact(numbers.as_flattened_mut())?;
    Ok(numbers.map(u64::from_le_bytes))
}

fn write<const N: usize>(stream: &mut impl Write, numbers: [u64; N]) -> io::Result<()> {
    stream.write_all(numbers.map(u64::to_le_bytes).as_flattened())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let request = Request { number: 3, nonce: u64::MAX };
        let mut bytes = Vec::new();
        request.write(&mut bytes).unwrap();
        assert_eq!(Request::read(&mut bytes.as_slice()).unwrap(), request);

        let digest = Answer::digest_of(request);
        let answer = Answer { number: 3, digest, unix_ns: 7, clocks: Readings { backward_ns: 1, gap_ns: 2 } };
        bytes.clear();
        answer.write(&mut bytes).unwrap();
        assert_eq!(Answer::read(&mut bytes.as_slice()).unwrap(), answer);
        bytes.pop();
        assert_eq!(Answer::read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_answer_answers_one_request_only() {
        let request = Request { number: 3, nonce: 4 };
        let answer = Answer {
            number: 3,
            digest: Answer::digest_of(request),
            unix_ns: 0,
            clocks: Readings { backward_ns: 0, gap_ns: 0 },
        };
        assert!(answer.answers(request));
        assert!(!answer.answers(Request { number: 2, ..request }));
        assert!(!answer.answers(Request { nonce: 5, ..request }));
    }
}
