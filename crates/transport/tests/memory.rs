//! The in-memory transport passes what every transport must.

use std::io::{self, Read, Write};

use migrated_transport::conformance::{Link, Rig, Stranger, Via};
use migrated_transport::memory::{Cut, MemoryTransport};
use migrated_transport::{Endpoint, Stream, Transport};

struct Memory(MemoryTransport);

impl Rig for Memory {
    fn transport(&self) -> &dyn Transport {
        &self.0
    }

    fn link(&self, to: &Endpoint, cut: Option<Cut>) -> Link<'_> {
        let transport = cut.map_or_else(|| self.0.clone(), |cut| self.0.with_cut(cut));
        Link {
            transport: Via::Own(Box::new(transport)),
            endpoint: to.clone(),
            passed: Box::new(|direction| self.0.passed(direction)),
        }
    }

    fn stranger(&self, to: &Endpoint) -> Box<dyn Stranger> {
        Box::new(Bare(self.0.dial(to).expect("the listener can be reached")))
    }
}

struct Bare(Stream);

impl Read for Bare {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.reader.read(buf, None).or(Ok(0))
    }
}

impl Write for Bare {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.writer.write(buf, &[]).map_err(io::Error::other)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

migrated_transport::conformance_tests!(Memory(MemoryTransport::new()));
