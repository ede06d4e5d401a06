use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to open its socket.
const START: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as the socket is there.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + START;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("QEMU does not listen at {}", socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(ANSWER))?;
        let mut qmp = Self { lines: BufReader::new(stream) };
        // Its greeting.
        qmp.read()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.lines.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.read().with_context(|| format!("QEMU does not answer {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// An answer, or an event.
    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("QEMU hung up");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
