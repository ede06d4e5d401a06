//! What the link carries: the bound that a migration's time is held against.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrated_netns::ADDRESSES;
use serde_json::Value;

use crate::lab::Lab;

/// Bytes of TCP payload in a full packet of Ethernet, with timestamps: 1500 less 20 of IP, 20 of TCP, 12 of options.
const PAYLOAD: f64 = 1448.0;
/// The same packet as tbf counts it: with Ethernet's header, without preamble and gap.
const PACKET: f64 = 1514.0;
/// How long the server may take until it listens.
const LISTEN: Duration = Duration::from_secs(10);

/// A link's TCP payload rate.
#[derive(Clone, Debug)]
pub struct Payload {
    /// In bits a second.
    pub bps: f64,
    /// How it is known.
    pub how: &'static str,
}

impl Payload {
    /// Measures it with iperf3 where that is on PATH; else it is reckoned from `rate`.
    ///
    /// # Errors
    /// iperf3 fails, or is not there and there is no rate.
    pub fn of(lab: &Lab, rate: Option<u64>) -> Result<Self> {
        let there = Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_ok();
        match (there, rate) {
            (true, _) => Ok(Self { bps: iperf3(lab)?, how: "measured by iperf3" }),
            (false, Some(rate)) => {
                Ok(Self { bps: rate as f64 * PAYLOAD / PACKET, how: "the link's rate × 1448 ÷ 1514" })
            }
            (false, None) => bail!("an unshaped link's rate must be measured; install iperf3"),
        }
    }
}

fn iperf3(lab: &Lab) -> Result<f64> {
    let mut server = lab.pair.command(1, "iperf3");
    let mut server = server.args(["--server", "--one-off"]).stdout(Stdio::null()).spawn()?;
    let measured = client(lab);
    // One that served has ended by itself.
    let _ = server.kill();
    server.wait()?;
    measured
}

fn client(lab: &Lab) -> Result<f64> {
    let deadline = Instant::now() + LISTEN;
    let address = ADDRESSES[1].to_string();
    loop {
        let mut client = lab.pair.command(0, "iperf3");
        let output = client.args(["--client", &address, "--time", "2", "--omit", "1", "--json"]).output()?;
        // With --json some versions end well although nobody listened.
        let received = received(&output.stdout);
        if received.is_ok() || Instant::now() > deadline {
            return received;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn received(json: &[u8]) -> Result<f64> {
    let report: Value = serde_json::from_slice(json)?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 does not say what it received: {report}"))
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn what_came_counts() {
        let report =
            br#"{"end":{"sum_sent":{"bits_per_second":2.0},"sum_received":{"bits_per_second":1.5}}}"#;
        assert!((received(report).unwrap() - 1.5).abs() < 1e-9);
        assert!(received(b"{}").is_err());
    }
}
